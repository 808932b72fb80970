"""The code that the documents offer runs, and learns."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import millrace

from .conftest import ROOT


def test_the_starter_game_is_learned_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    result = millrace.train(
        "examples.my_game:make_env",
        total_env_steps=40_000,
        workers=1,
        seed=1,
        run_dir=str(tmp_path / "run"),
        quiet=True,
    )
    played = millrace.evaluate(result.run_dir, episodes=50)
    assert played.figure("found").mean() > 0.9
    target, _ = millrace.play(result.run_dir, tmp_path / "game.gif")
    assert target.stat().st_size > 0


def test_the_python_in_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    names: dict[str, object] = {}
    exec(code.group(1), names)
    assert names["action"] in (0, 1)
    assert (tmp_path / "runs").is_dir()


def test_the_python_in_the_page_on_sparse_games_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "sparse-games.md").read_text("utf-8"), re.DOTALL):
        exec(code, names)
    assert names["lean"]({"obs": np.eye(4)}, None).tolist() == [False, False, True, True]
    first, second = sorted((tmp_path / "runs").iterdir(), key=lambda path: path.stat().st_mtime)
    assert last_row(first)["cells_seen"] > 32
    assert last_row(first)["intrinsic_reward"] < 0.1
    assert last_row(second)["auxiliary_loss"] < 0.1


def last_row(run_dir: Path) -> dict[str, float]:
    row: dict[str, float] = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    return row
