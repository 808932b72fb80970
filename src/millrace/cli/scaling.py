"""How training's speed and memory grow with workers: one short training run for each number of them."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace import system
from millrace.errors import MillraceError

SAMPLE_S = 0.25
SETTLING_SHARE = 0.25
"""Share of the rows at the start that do not count: workers that started early have rollouts waiting."""


@dataclass(frozen=True)
class ScalingPoint:
    """What one run gave.

    Attributes:
        memory_mb: peak of the proportional set size of trainer and workers together; 0 where unknown.
        cpu_share: processor time over wall time, 1.0 is one core; 0 where unknown.
    """

    workers: int
    steps_per_second: float
    episodes_per_hour: float
    memory_mb: float
    cpu_share: float


def measure_scaling(env: str, workers: int, seconds: float, settings: list[str]) -> ScalingPoint:
    """Train for `seconds` with so many workers.

    Args:
        env: what `millrace train` takes.
        settings: further words for its command line.

    Raises:
        MillraceError: the run failed, with its message.
    """
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as scratch:
        command = [
            sys.executable, "-m", "millrace", "train", env, "--json", "--backend", "processes",
            "--workers", str(workers), "--run-dir", str(Path(scratch, "run")), "--stop.wall_s", str(seconds),
            "--total-env-steps", str(10**12), "--ppo.learning_rate_schedule", "constant",
            "--metrics.tensorboard", "false", *settings,
        ]  # fmt: skip
        with open(Path(scratch, "out"), "w+") as out, open(Path(scratch, "err"), "w+") as err:
            process = subprocess.Popen(command, stdout=out, stderr=err)
            try:
                memory_mb, cpu_share = _watch(process)
            finally:
                process.kill()
                process.wait()
            out.seek(0)
            err.seek(0)
            if process.returncode:
                raise MillraceError(f"the run with {workers} workers failed: {err.read().strip()[-2000:]}")
            return _point(workers, [json.loads(line) for line in out], memory_mb, cpu_share)


def _watch(process: subprocess.Popen[Any]) -> tuple[float, float]:
    """Peak memory in MB, and processor time over wall time, of a process and its children until it ends."""
    begin_s, peak_bytes = time.monotonic(), 0
    cpu_s: dict[int, float] = {}
    while process.poll() is None:
        pids = system.process_tree(process.pid)
        peak_bytes = max(peak_bytes, sum(map(system.memory_pss_bytes, pids)))
        # By process: the time of one that has ended is not lost.
        cpu_s |= {pid: max(cpu_s.get(pid, 0.0), system.cpu_time_s(pid)) for pid in pids}
        time.sleep(SAMPLE_S)
    return peak_bytes / 1e6, sum(cpu_s.values()) / (time.monotonic() - begin_s)


def _point(workers: int, lines: list[dict[str, Any]], memory_mb: float, cpu_share: float) -> ScalingPoint:
    rows = [line for line in lines if "env_steps" in line]
    if len(rows) < 3:
        raise MillraceError(f"the run with {workers} workers made too few updates to measure; give it more --seconds")
    first, last = rows[int(len(rows) * SETTLING_SHARE)], rows[-1]
    passed_s = last["time_s"] - first["time_s"]
    return ScalingPoint(
        workers,
        (last["env_steps"] - first["env_steps"]) / passed_s,
        (last["episodes"] - first["episodes"]) / passed_s * 3600,
        memory_mb,
        cpu_share,
    )
