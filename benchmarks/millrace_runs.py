"""Runs of millrace that are measured from what they log."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import millrace
from benchmarks import child
from benchmarks.compare.peer import SETTLE_S

FOREVER = 1_000_000_000
QUIET: dict[str, Any] = {"metrics.tensorboard": False, "metrics.every_s": 0.1}
START_S = 5.0 + SETTLE_S
"""Room for the start, in works that measure for a while."""

Row = dict[str, Any]


def train(env: str | Callable[[], Any], settings: dict[str, Any], seed: int) -> tuple[list[Row], float]:
    """The rows that a run logs, oldest first, and the seconds from process start to the start of its own clock.

    Args:
        env: an environment, or the name of a recipe.
    """
    run_dir = child.scratch() / "run"
    everything = {"total_env_steps": FOREVER} | QUIET | settings | {"seed": seed, "run_dir": str(run_dir)}
    begin_training = millrace.train  # imports what training needs
    began_s = child.since_launch_s()
    begin_training(env, settings=everything, quiet=True)
    return list(_rows(run_dir)), began_s


def _rows(run_dir: Path) -> Iterator[Row]:
    with (run_dir / "metrics.jsonl").open(encoding="utf-8") as lines:
        yield from (row for row in map(json.loads, lines) if "env_steps" in row)


def steady_span(rows: list[Row]) -> tuple[Row, Row]:
    """The ends of the steady state: `SETTLE_S` after the first row, which comes with an update, and the last row."""
    first, *_, last = (row for row in rows if row["time_s"] >= rows[0]["time_s"] + SETTLE_S)
    return first, last


def rate(first: Row, last: Row) -> float:
    """Environment steps per second between two rows."""
    return float((last["env_steps"] - first["env_steps"]) / (last["time_s"] - first["time_s"]))
