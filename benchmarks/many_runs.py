"""Short trainings by the hundred: each in a process of its own, kept as it ends, and not made again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.harness import machine
from millrace.metrics.rows import read_rows

QUIET = {
    "collect.backend": "serial",
    "collect.workers": 1,
    "metrics.tensorboard": False,
    "metrics.console": "off",
    "metrics.every_s": 0.0,
    "checkpoint.every_s": 0.0,
    "ppo.learning_rate_schedule": "constant",
    "ppo.threads": 1,
}
PROGRAM = "import json, sys, millrace; millrace.train(millrace.Config().replace(json.load(sys.stdin)), quiet=True)"


def train(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of one run that have a return."""
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "run"
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            input=json.dumps({**QUIET, **settings, "run_dir": str(run_dir)}),
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return [row for row in read_rows(run_dir) if "episode_return" in row]


def measure_missing(
    target: Path,
    wanted: Iterable[dict[str, Any]],
    measure_one: Callable[[dict[str, Any]], dict[str, Any]],
    about: dict[str, Any],
    jobs: int,
) -> list[dict[str, Any]]:
    """All runs in `target`, after those that are wanted and not there have been made, `jobs` at a time.

    Args:
        wanted: what each run is of; kept beside its figures.
        about: goes into the file too.
    """
    found: list[dict[str, Any]] = json.loads(target.read_text())["runs"] if target.exists() else []
    missing = [key for key in wanted if not any(key.items() <= run.items() for run in found)]
    with ThreadPoolExecutor(jobs) as threads:
        for key, figures in zip(missing, threads.map(measure_one, missing), strict=True):
            found.append({**key, **figures})
            target.write_text(json.dumps({"machine": machine(), **about, "runs": found}, indent=1))
            print(json.dumps(found[-1]), flush=True)
    return found
