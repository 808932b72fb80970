"""Memory per additional worker, each with its Gymnasium environment and policy copy: the slope of PSS.

`python -m benchmarks.memory_per_worker`; millrace runs in this interpreter.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from benchmarks import child, harness

WORKERS = (1, 2, 4)
COLUMNS = (harness.Column("pss_median_mb", "PSS, MB"), harness.Column("pss_peak_mb", "peak PSS, MB"))
TIMEOUT_S = 120.0


def train(workers: int, seconds: float) -> None:
    """Train for a while; the harness watches the memory from outside."""
    import millrace  # here: the harness side of this file runs without it

    settings = {
        "collect.backend": "processes",
        "collect.workers": workers,
        "collect.envs_per_worker": 8,
        "metrics.tensorboard": False,
        "stop.wall_s": seconds,
        "total_env_steps": 1_000_000_000,
        "run_dir": str(child.scratch() / "run"),
    }
    result = millrace.train("CartPole-v1", settings=settings, quiet=True)
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
    parser.add_argument("--train", type=int, metavar="WORKERS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.train, arguments.seconds)
        return
    script = (sys.executable, "-m", "benchmarks.memory_per_worker", "--seconds", str(arguments.seconds))
    candidates = [
        harness.Candidate(f"millrace, {workers} workers", (*script, "--train", str(workers))) for workers in WORKERS
    ]
    runs = harness.measure("memory-per-worker", candidates, COLUMNS, arguments.repeats, TIMEOUT_S)
    print(f"{slope_mb(runs):.0f} MB for each additional worker (must: 200, aim: 120)")


if __name__ == "__main__":
    main()
