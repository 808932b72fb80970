"""Checkpoints that RLlib wrote, laid out on disk."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def rllib_checkpoints(tmp_path_factory) -> Path:
    """A directory of each of `make_checkpoints.py`'s, by name."""
    target = tmp_path_factory.mktemp("rllib")
    safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4 and 3.10.12 on
    with tarfile.open(Path(__file__).with_name("checkpoints.tar.xz")) as archive:
        archive.extractall(target, **safely)
    return target
