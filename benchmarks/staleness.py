"""How long each objective bears rollouts of an older policy: whole rollouts are learned from k updates late.

    python -m benchmarks.staleness [--games CartPole,RealmMini] [--seeds 3]

`collect.deterministic` delays exactly. Every run goes into `results/staleness.json` as it ends and is not made again;
the tables are printed and the figures drawn in `docs/images/`. A run's figure is the mean return over its second half.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import RESULTS
from benchmarks.many_runs import measure_missing, train
from millrace.experiments.curves import Curve
from millrace.experiments.picture import Line, draw_curves

TARGET = RESULTS / "staleness.json"
PICTURES = Path("docs/images")
OBJECTIVES: dict[str, dict[str, Any]] = {
    "behaviour-clipped": {"objective": "clip", "targets": "gae", "values": "actor"},
    "proximal": {"objective": "proximal", "targets": "gae", "values": "actor"},
    "decoupled": {"objective": "decoupled", "targets": "gae", "values": "learner"},
    "V-trace": {"objective": "clip", "targets": "vtrace", "values": "learner"},
}
COMMON = {"collect.deterministic": True}
GAMES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "CartPole": (
        (0, 1, 2, 4, 8, 16),
        {
            "env.id": "CartPole-v1",
            "total_env_steps": 120_000,
            "collect.envs_per_worker": 8,
            "collect.rollout_steps": 64,
            "ppo.epochs": 10,
            "ppo.minibatch_size": 128,
            "ppo.learning_rate": 1e-3,
        },
    ),
    "RealmMini": (
        (0, 2, 8, 16),
        {
            "env.id": "millrace/RealmMini-v0",
            "total_env_steps": 250_000,
            "collect.envs_per_worker": 32,
            "collect.rollout_steps": 32,
            "ppo.epochs": 4,
            "ppo.minibatch_size": 128,
            "ppo.learning_rate": 1e-3,
        },
    ),
}


def figures_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the second half of a run, and what it ended with."""
    half = [row for row in rows if row["env_steps"] > rows[-1]["env_steps"] / 2]
    names = ("episode_return", "effective_sample_share", "kl", "explained_variance")
    means = {name: float(np.mean([row[name] for row in half if row.get(name) is not None])) for name in names}
    return {**means, "last_return": rows[-1]["episode_return"], "seconds": rows[-1]["time_s"]}


def measure_one(key: dict[str, Any]) -> dict[str, Any]:
    """The figures of a run."""
    ppo = {f"ppo.{name}": value for name, value in OBJECTIVES[key["objective"]].items()}
    settings = {**COMMON, **GAMES[key["game"]][1], **ppo, "collect.max_policy_lag": key["lag"], "seed": key["seed"]}
    return figures_of(train(settings))


def returns(found: list[dict[str, Any]], game: str, lag: int, objective: str) -> list[float]:
    """Of each seed."""
    key = {"game": game, "lag": lag, "objective": objective}
    return [run["episode_return"] for run in found if key.items() <= run.items()]


def report(found: list[dict[str, Any]], game: str) -> None:
    """Table and figure of one game."""
    lags = [lag for lag in GAMES[game][0] if returns(found, game, lag, next(iter(OBJECTIVES)))]
    print(
        f"\n| {game}: objective | "
        + " | ".join(f"k = {lag}" for lag in lags)
        + " |\n"
        + "| --- " * (1 + len(lags))
        + "|"
    )
    lines = []
    for objective in OBJECTIVES:
        by_lag = [returns(found, game, lag, objective) for lag in lags]
        cells = [f"{np.mean(values):.1f} +- {np.std(values):.1f}" for values in by_lag]
        print(f"| {objective} | " + " | ".join(cells) + " |")
        seeds = min(map(len, by_lag))
        curves = [Curve(np.array(lags), np.array([values[seed] for values in by_lag])) for seed in range(seeds)]
        lines.append(Line(objective, curves))
    title = f"{game}: return over the second half of training"
    draw_curves(PICTURES / f"staleness-{game.lower()}.png", title, lines, "updates between collecting and learning")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", default=",".join(GAMES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    arguments = parser.parse_args()
    games = arguments.games.split(",")
    wanted = [
        {"game": game, "lag": lag, "objective": objective, "seed": seed}
        for game in games
        for seed, lag, objective in itertools.product(range(arguments.seeds), GAMES[game][0], OBJECTIVES)
    ]
    found = measure_missing(TARGET, wanted, measure_one, {"games": GAMES}, arguments.jobs)
    for game in games:
        report(found, game)


if __name__ == "__main__":
    main()
