"""Memory per additional worker: the slope of PSS over workers.

`python -m benchmarks.memory_per_worker`; millrace runs in this interpreter. A dense policy on CartPole, of which
each worker has a copy, and the Nature network on 84 x 84 frames, of which each worker or one process
alone has a copy.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

from benchmarks import child, harness

WORKERS = (1, 2, 4)
IMAGES: dict[str, Any] = {
    "env.frame_stack": 4,
    "collect.envs_per_worker": 4,
    "collect.rollout_steps": 32,
    "ppo.epochs": 1,
}
SIDES: dict[str, dict[str, Any]] = {
    "CartPole": {"collect.envs_per_worker": 8},
    "images, local": {**IMAGES, "collect.inference": "local"},
    "images, central": {**IMAGES, "collect.inference": "central"},
}
COLUMNS = (harness.Column("pss_median_mb", "PSS, MB"), harness.Column("pss_peak_mb", "peak PSS, MB"))
TIMEOUT_S = 120.0


def train(side: str, workers: int, seconds: float) -> None:
    """Train for a while; the harness watches the memory from outside."""
    import millrace  # here: the harness side of this file runs without it
    from benchmarks.central_inference import SleepyPixels

    settings = {
        "collect.backend": "processes",
        "collect.workers": workers,
        "metrics.tensorboard": False,
        "stop.wall_s": seconds,
        "total_env_steps": 1_000_000_000,
        "run_dir": str(child.scratch() / "run"),
        **SIDES[side],
    }
    env = "CartPole-v1" if side == "CartPole" else SleepyPixels
    result = millrace.train(env, settings=settings, quiet=True)
    child.report({"workers": workers, "env_steps": result.env_steps}, ("millrace", "torch", "gymnasium"))


def slope_mb(runs: list[harness.Run]) -> float:
    """Least squares slope of memory over workers."""
    done = [run for run in runs if not run.error]
    workers = [float(run.figures["workers"]) for run in done]
    return statistics.linear_regression(workers, [run.pss_median_mb for run in done]).slope


def main() -> None:
    """Measure, or be measured (`--train`)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--sides", nargs="+", choices=tuple(SIDES), default=list(SIDES))
    parser.add_argument("--train", nargs=2, metavar=("SIDE", "WORKERS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.train[0], int(arguments.train[1]), arguments.seconds)
        return
    script = (sys.executable, "-m", "benchmarks.memory_per_worker", "--seconds", str(arguments.seconds), "--train")
    slopes = {side: _measured(side, script, arguments.repeats) for side in arguments.sides}
    for side, slope in slopes.items():
        print(f"{side}: {slope:.0f} MB for each additional worker (must: 200, aim: 120)")


def _measured(side: str, script: tuple[str, ...], repeats: int) -> float:
    candidates = [
        harness.Candidate(f"millrace, {side}, {workers} workers", (*script, side, str(workers))) for workers in WORKERS
    ]
    name = "memory-per-worker" if side == "CartPole" else f"memory-per-worker-{side.replace(', ', '-')}"
    return slope_mb(harness.measure(name, candidates, COLUMNS, repeats, TIMEOUT_S))


if __name__ == "__main__":
    main()
