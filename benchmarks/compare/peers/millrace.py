"""millrace itself, through its Python interface. `SETTINGS` is the one place for what it is run with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import millrace
from benchmarks import child
from benchmarks.compare.peer import SCORE, Figures, Job, main, with_ideal
from benchmarks.envs import MapEnv, make_slow_uneven
from benchmarks.millrace_runs import FOREVER, START_S, Row, rate, steady_span, train
from millrace.config import read_toml

WORKER_START_S = 1.5
"""Room for the start of a worker, of which there may be many."""
RECIPES = Path(millrace.__file__).parent / "recipes"
PIXELS: dict[str, Any] = {
    "collect.workers": 1,
    "collect.envs_per_worker": 8,
    "collect.rollout_steps": 128,
    "ppo.epochs": 4,
    "ppo.minibatches": 4,
}
PLACES: dict[str, dict[str, Any]] = {
    "processes": {"collect.backend": "processes", "collect.max_policy_lag": 1},
    "bf16": {
        "collect.backend": "processes",
        "collect.max_policy_lag": 1,
        "ppo.precision": "bf16",
        "ppo.threads": 1,
    },
}
"""One worker beside the learner, which takes both cores in fp32 and one in bf16: what is fastest for each."""
BACKENDS = ("processes", "ray")
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
    **{f"pong {place}": PIXELS | settings for place, settings in PLACES.items()},
    **{f"dict {place}": PIXELS | settings for place, settings in PLACES.items()},
}


def throughput(job: Job, backend: str) -> Figures:
    """CartPole-v1 in the steady state."""
    # On Ray with the two workers that RLlib is given; alone, one beside the learner suits two cores best.
    workers = {"collect.workers": 2} if backend == "ray" else {}
    settings = {**SETTINGS["cartpole-throughput"], "collect.backend": backend, **workers}
    rows, began_s = _train_for("CartPole-v1", settings, job)
    # The settings must also learn: the best mean return stands beside the speed.
    best_return = max(row.get("episode_return", 0.0) for row in rows)
    return {**_steady(rows, began_s), "best_return": best_return}


def time_to_475(job: Job) -> Figures:
    """From process start to the return of a training that stops at the score."""
    settings = {**SETTINGS["cartpole-time-to-475"], "stop.mean_return": SCORE}
    rows, _ = train("CartPole-v1", settings, job.seed)
    returned_s = child.since_launch_s()
    reached = any((row.get("episode_return") or 0.0) >= SCORE for row in rows)
    return {"seconds_to_475": returned_s if reached else None, "env_steps": rows[-1]["env_steps"]}


def slow_uneven(job: Job, backend: str) -> Figures:
    """One worker per copy."""
    settings = {**SETTINGS["slow-uneven"], "collect.workers": job.copies, "collect.backend": backend}
    longer = replace(job, seconds=job.seconds + WORKER_START_S * job.copies)
    return with_ideal(_steady(*_train_for(make_slow_uneven, settings, longer)), job.copies)


def pong(job: Job, place: str) -> Figures:
    """The recipe's game and network."""
    return _steady(*_train_for("pong-cleanrl", SETTINGS[f"pong {place}"], job))


def maps(job: Job, place: str) -> Figures:
    """The mask is used: it is part of the game."""
    return _steady(*_train_for(MapEnv, SETTINGS[f"dict {place}"], job))


def _train_for(env: str | Callable[[], Any], settings: dict[str, Any], job: Job) -> tuple[list[Row], float]:
    stop = {"stop.wall_s": job.seconds + START_S, "total_env_steps": FOREVER}
    return train(env, {**settings, **stop}, job.seed)


def _steady(rows: list[Row], began_s: float) -> Figures:
    first, last = steady_span(rows)
    return {
        "steps_per_second": rate(first, last),
        "first_update_s": began_s + rows[0]["time_s"],
        "measured_s": last["time_s"] - first["time_s"],
        "updates": last["updates"] - first["updates"],
    }


if __name__ == "__main__":
    main(
        {
            "cartpole-throughput": {backend: partial(throughput, backend=backend) for backend in BACKENDS},
            "cartpole-time-to-475": {"default": time_to_475},
            "slow-uneven": {backend: partial(slow_uneven, backend=backend) for backend in BACKENDS},
            "pong": {place: partial(pong, place=place) for place in PLACES},
            "dict": {place: partial(maps, place=place) for place in PLACES},
        },
        packages=("millrace", "torch", "gymnasium", "ale-py", "numpy"),
    )
