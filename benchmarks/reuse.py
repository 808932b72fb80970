"""Learning from experience more than once: environment steps and seconds to a threshold, and what is reached.

    python -m benchmarks.reuse [--games CartPole,RealmMini] [--seeds 3]

Every run goes into `results/reuse.json` as it ends and is not made again. A run ends where the mean return of its last
100 episodes reaches the threshold, or after so many steps.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import numpy as np

from benchmarks.harness import RESULTS
from benchmarks.many_runs import measure_missing, train

TARGET = RESULTS / "reuse.json"
RATIOS = (1, 2, 4, 8)
COMMON = {"ppo.learning_rate": 1e-3, "ppo.epochs": 1}
# One gradient step of 256 rows for each batch drawn; the buffer holds 16 batches.
KINDS: dict[str, dict[str, Any]] = {
    "queue, K epochs": {},
    "uniform columns": {"replay.sampler": "uniform"},
    "prioritized columns": {"replay.sampler": "prioritized"},
    "uniform steps": {"replay.sampler": "uniform", "replay.item": "step"},
    "prioritized steps": {"replay.sampler": "prioritized", "replay.item": "step"},
}
GAMES: dict[str, dict[str, Any]] = {
    "CartPole": {
        "env.id": "CartPole-v1",
        "total_env_steps": 120_000,
        "stop.mean_return": 400.0,
        "collect.envs_per_worker": 8,
        "collect.rollout_steps": 32,
    },
    "RealmMini": {
        "env.id": "millrace/RealmMini-v0",
        "total_env_steps": 250_000,
        "stop.mean_return": 50.0,
        "collect.envs_per_worker": 32,
        "collect.rollout_steps": 32,
    },
}


def settings_of(game: str, kind: str, ratio: int) -> dict[str, Any]:
    """Of one run: as many gradient rows per step collected whatever the kind."""
    settings = {**COMMON, **GAMES[game], **KINDS[kind]}
    rows = settings["collect.envs_per_worker"] * settings["collect.rollout_steps"]
    if kind.startswith("queue"):
        return {**settings, "ppo.epochs": ratio, "ppo.minibatch_size": 256, "collect.max_policy_lag": 0}
    per_item = 1 if settings.get("replay.item") == "step" else settings["collect.rollout_steps"]
    sizes = {
        "replay.samples_per_insert": float(ratio),
        "replay.batch_size_items": 256 // per_item,
        "replay.capacity_items": 16 * rows // per_item,
        "ppo.minibatch_size": 256,
    }
    return {**settings, **sizes}


def figures_of(rows: list[dict[str, Any]], threshold: float) -> dict[str, Any]:
    """When a run ended, and how."""
    last, returns = rows[-1], [row["episode_return"] for row in rows]
    return {
        "reached": last["episode_return"] >= threshold,
        "env_steps": last["env_steps"],
        "seconds": last["time_s"],
        "best": max(returns),
        "last": returns[-1],
        "effective_sample_share": float(np.mean([row["effective_sample_share"] for row in rows])),
    }


def measure_one(key: dict[str, Any]) -> dict[str, Any]:
    """The figures of a run."""
    settings = settings_of(key["game"], key["kind"], key["ratio"])
    return figures_of(train({**settings, "seed": key["seed"]}), settings["stop.mean_return"])


def report(found: list[dict[str, Any]], game: str) -> None:
    """Steps and seconds to the threshold by kind and ratio; where not all seeds reached it, how many did."""
    print(
        f"\n| {game}: steps (s) to {GAMES[game]['stop.mean_return']:g} | " + " | ".join(f"{r} x" for r in RATIOS) + " |"
    )
    print("| --- " * (1 + len(RATIOS)) + "|")
    for kind in KINDS:
        cells = [
            _cell([run for run in found if (run["game"], run["kind"], run["ratio"]) == (game, kind, ratio)])
            for ratio in RATIOS
        ]
        print(f"| {kind} | " + " | ".join(cells) + " |")


def _cell(runs: list[dict[str, Any]]) -> str:
    if not runs:
        return ""
    reached = [run for run in runs if run["reached"]]
    if len(reached) < len(runs):
        return f"{len(reached)} of {len(runs)}; best {np.mean([run['best'] for run in runs]):.0f}"
    return f"{np.median([run['env_steps'] for run in runs]):,.0f} ({np.median([run['seconds'] for run in runs]):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", default=",".join(GAMES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    arguments = parser.parse_args()
    games = arguments.games.split(",")
    wanted = [
        {"game": game, "kind": kind, "ratio": ratio, "seed": seed}
        for game in games
        for seed, kind, ratio in itertools.product(range(arguments.seeds), KINDS, RATIOS)
    ]
    found = measure_missing(TARGET, wanted, measure_one, {"games": GAMES}, arguments.jobs)
    for game in games:
        report(found, game)


if __name__ == "__main__":
    main()
