"""Checkpoints that RLlib wrote, laid out on disk."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def rllib_checkpoints(tmp_path_factory) -> Path:
    """A directory of each of `make_checkpoints.py`'s, by name."""
    target = tmp_path_factory.mktemp("rllib")
    with tarfile.open(Path(__file__).with_name("checkpoints.tar.xz")) as archive:
        archive.extractall(target, filter="data")
    return target
