"""What a run of an experiment came to, and what several came to together."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from millrace.metrics.rows import last_row, read_rows
from millrace.metrics.sinks import Row

NAN = float("nan")


@dataclass(frozen=True)
class RunRecord:
    """One run, as its directory tells.

    Attributes:
        state: `complete`, `stop.NAME=VALUE reached`, `stopped by SIGNAL`, `failed`, `cut off`, `running` or
            `not started`.
        mean_return: of the last 100 training episodes; nan where none finished.
        best_return: the best evaluation, or the best `mean_return` of a run that never evaluated.
        steps_per_second: environment steps between the first row of figures and the last, start-up left out.
        error: the last line that a failed run printed.
        exit_code: of its process; see `millrace --help`.
    """

    seed: int
    run_dir: Path
    state: str = "not started"
    env_steps: int = 0
    episodes: int = 0
    mean_return: float = NAN
    best_return: float = NAN
    steps_per_second: float = NAN
    wall_s: float = 0.0
    error: str = ""
    exit_code: int = 0

    @property
    def finished(self) -> bool:
        """Whether it came to the end that its settings name."""
        return self.state == "complete" or self.state.startswith("stop.")

    @property
    def failed(self) -> bool:
        return self.state == "failed"

    @property
    def policy(self) -> Any:
        """The trained policy, loaded from the last checkpoint; see `millrace.load_policy`."""
        from millrace.deploy.policy import load_policy

        return load_policy(self.run_dir, trust=True)  # what this process had written

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it: no figure is null."""
        return {field.name: jsonable(getattr(self, field.name)) for field in fields(self)}


def read_record(seed: int, run_dir: Path) -> RunRecord:
    """The record of a run that no process is at work on."""
    rows = read_rows(run_dir)
    state = _state(run_dir)
    if not rows:
        return RunRecord(seed, run_dir, state)
    last = rows[-1]
    return RunRecord(
        seed,
        run_dir,
        state,
        env_steps=int(last["env_steps"]),
        episodes=int(last["episodes"]),
        mean_return=last.get("episode_return", NAN),
        best_return=_best_return(rows),
        steps_per_second=_steps_per_second(rows),
        wall_s=last["time_s"],
    )


def read_progress(seed: int, run_dir: Path) -> RunRecord:
    """The record of a run at work, from its newest row alone: cheap enough to ask for again and again."""
    row = last_row(run_dir) or {}
    return RunRecord(
        seed,
        run_dir,
        "running",
        env_steps=int(row.get("env_steps", 0)),
        episodes=int(row.get("episodes", 0)),
        mean_return=row.get("episode_return", NAN),
        steps_per_second=row.get("steps_per_second", NAN),
        wall_s=row.get("time_s", 0.0),
    )


def _state(run_dir: Path) -> str:
    try:
        state = str(json.loads((run_dir / "status.json").read_text(encoding="utf-8"))["state"])
    except FileNotFoundError:
        return "not started"
    except (ValueError, KeyError):
        return "cut off"  # killed while writing it
    return "cut off" if state == "running" else state


def _best_return(rows: list[Row]) -> float:
    evaluated = [row["eval_return"] for row in rows if "eval_return" in row]
    trained = [row["episode_return"] for row in rows if "episode_return" in row]
    return max(evaluated or trained, default=NAN)


def _steps_per_second(rows: list[Row]) -> float:
    first, last = rows[0], rows[-1]
    if len(rows) == 1:
        return float(last.get("steps_per_second", NAN))
    passed_s = max(last["time_s"] - first["time_s"], 1e-9)
    return float((last["env_steps"] - first["env_steps"]) / passed_s)


@dataclass(frozen=True)
class Spread:
    """Several figures together; nan where there are too few.

    Attributes:
        deviation: sample standard deviation (divisor n - 1); nan for fewer than two.
    """

    count: int
    mean: float
    deviation: float
    lowest: float
    highest: float


def spread(values: list[float]) -> Spread:
    """Mean, deviation and range, nan left out."""
    known = np.array([value for value in values if value == value], np.float64)
    if not known.size:
        return Spread(0, NAN, NAN, NAN, NAN)
    deviation = float(known.std(ddof=1)) if known.size > 1 else NAN
    return Spread(known.size, float(known.mean()), deviation, float(known.min()), float(known.max()))


def jsonable(value: Any) -> Any:
    """A value as JSON can hold it: paths as text, nan as null."""
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and value != value else value
