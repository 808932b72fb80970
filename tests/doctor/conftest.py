"""A run with three checkpoints, made once, and copies of it to damage."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from helpers import quick_train
from millrace.rundir import RunDirectory

HERE = Path(__file__).parent
SIZES = {"workers": 1, "envs_per_worker": 4, "rollout_steps": 16}


@pytest.fixture(autouse=True)
def _children_find_the_same_source(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [HERE, HERE.parent, HERE.parents[1] / "src"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    monkeypatch.syspath_prepend(str(HERE))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CartPole, 3 updates, a checkpoint after each."""
    path = tmp_path_factory.mktemp("doctor") / "run"
    settings = {"stop.updates": 3, "checkpoint.every_env_steps": 1}
    quick_train("CartPole-v1", path, settings, backend="serial", **SIZES)
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def newest(run: Path) -> Path:
    """Its newest checkpoint."""
    return RunDirectory(run).newest_checkpoint()[0].path
