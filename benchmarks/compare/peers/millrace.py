"""millrace itself, through its Python interface. `SETTINGS` is the one place for what it is run with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import millrace
from benchmarks import child
from benchmarks.compare.peer import SCORE, SETTLE_S, Figures, Job, main, with_ideal
from benchmarks.envs import make_slow_uneven
from millrace.config import read_toml

FOREVER = 1_000_000_000
RECIPES = Path(millrace.__file__).parent / "recipes"
SETTINGS: dict[str, dict[str, Any]] = {
    "cartpole-throughput": read_toml(RECIPES / "cartpole-throughput.toml"),
    "cartpole-time-to-475": read_toml(RECIPES / "cartpole-quick.toml"),
    "slow-uneven": {
        "collect.backend": "processes",
        "collect.envs_per_worker": 1,
        "collect.rollout_steps": 16,
        "collect.max_policy_lag": 2,
        "ppo.epochs": 4,
    },
}
QUIET: dict[str, Any] = {"metrics.tensorboard": False, "metrics.every_s": 0.1}
START_S = 5.0 + SETTLE_S
"""Room for the start, in works that measure for a while."""


def throughput(job: Job) -> Figures:
    """CartPole-v1 in the steady state."""
    stop = {"stop.wall_s": job.seconds + START_S, "total_env_steps": FOREVER}
    run_dir, began_s = _train("CartPole-v1", job, SETTINGS["cartpole-throughput"], stop)
    # The settings must also learn: the best mean return stands beside the speed.
    best_return = max(row.get("episode_return", 0.0) for row in _rows(run_dir))
    return {**_steady(run_dir, began_s), "best_return": best_return}


def time_to_475(job: Job) -> Figures:
    """From process start to the return of a training that stops at the score."""
    run_dir, _ = _train("CartPole-v1", job, SETTINGS["cartpole-time-to-475"], {"stop.mean_return": SCORE})
    returned_s, rows = child.since_launch_s(), list(_rows(run_dir))
    reached = any((row.get("episode_return") or 0.0) >= SCORE for row in rows)
    return {"seconds_to_475": returned_s if reached else None, "env_steps": rows[-1]["env_steps"]}


def slow_uneven(job: Job) -> Figures:
    """One worker per copy."""
    settings = {**SETTINGS["slow-uneven"], "collect.workers": job.copies}
    run_dir, began_s = _train(make_slow_uneven, job, settings, {"stop.wall_s": job.seconds + START_S})
    return with_ideal(_steady(run_dir, began_s), job.copies)


def _train(
    env: str | Callable[[], Any], job: Job, settings: dict[str, Any], stop: dict[str, Any]
) -> tuple[Path, float]:
    """The run, and the seconds from process start to the start of its own clock."""
    run_dir = child.scratch() / "run"
    everything = {"total_env_steps": FOREVER} | settings | QUIET | stop
    train = millrace.train  # imports what training needs
    began_s = child.since_launch_s()
    train(env, settings={**everything, "seed": job.seed, "run_dir": str(run_dir)}, quiet=True)
    return run_dir, began_s


def _rows(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The log rows of a run, oldest first."""
    with (run_dir / "metrics.jsonl").open(encoding="utf-8") as lines:
        yield from (row for row in map(json.loads, lines) if "env_steps" in row)


def _steady(run_dir: Path, began_s: float) -> Figures:
    """Steps per second from `SETTLE_S` after the first log row, which comes with an update, to the last."""
    rows = list(_rows(run_dir))
    first_update_s = rows[0]["time_s"]
    first, *_, last = (row for row in rows if row["time_s"] >= first_update_s + SETTLE_S)
    elapsed_s = last["time_s"] - first["time_s"]
    return {
        "steps_per_second": (last["env_steps"] - first["env_steps"]) / elapsed_s,
        "first_update_s": began_s + first_update_s,
        "measured_s": elapsed_s,
        "updates": last["updates"] - first["updates"],
    }


if __name__ == "__main__":
    main(
        {
            "cartpole-throughput": {"processes": throughput},
            "cartpole-time-to-475": {"default": time_to_475},
            "slow-uneven": {"processes": slow_uneven},
        },
        packages=("millrace", "torch", "gymnasium", "numpy"),
    )
