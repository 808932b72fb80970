"""A policy copy in each worker against one process that acts for all, with and without double buffering.

    python -m benchmarks.central_inference [--workers 2 4 8 16] [--repeats 3] [--seconds 8] [--step-ms 5]

Each worker has 4 games of 84 x 84 bytes that sleep 5 ms a step; the policy sees 4 frames through the Nature network.
With `--step-ms 0` games cost nothing, and workers could all compute at once.
Nothing is learned: batches are thrown away and the same weights published after each, so that inference is what counts.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from typing import Any

import gymnasium
import numpy as np

from benchmarks import child, harness

SIDES: dict[str, dict[str, Any]] = {
    "local": {"collect.inference": "local"},
    "central, one buffer": {"collect.inference": "central", "collect.double_buffering": False},
    "central, two buffers": {"collect.inference": "central"},
}
COMMON: dict[str, Any] = {
    "collect.backend": "processes",
    "collect.envs_per_worker": 4,
    "collect.rollout_steps": 32,
    "collect.max_policy_lag": 1,
    "collect.action_log_steps": 0,
    "env.frame_stack": 4,
    "metrics.console": "off",
    "metrics.tensorboard": False,
    "total_env_steps": 10**9,
}
WARM_UP_S = 2.0
COLUMNS = (
    harness.Column("steps_per_second", "steps/s"),
    harness.Column("share_inference", "waiting for actions, share of the workers' time", 2),
    harness.Column("cpu_ms_per_step", "processor time outside the trainer, ms a step", 2),
    harness.Column("worker_mb", "MB a worker (PSS)"),
    harness.Column("inference_mb", "MB of the inference process"),
)
START_AND_END_S = 120.0


class SleepyPixels(gymnasium.Env[Any, Any]):
    """Sees noise; each step sleeps."""

    def __init__(self, step_s: float = 0.005) -> None:
        self._step_s = step_s
        self.observation_space = gymnasium.spaces.Box(0, 255, (84, 84), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(6)
        self._frame = np.random.default_rng(0).integers(0, 256, (84, 84), np.uint8)
        self._ticks = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin."""
        super().reset(seed=seed)
        self._ticks = 0
        return self._frame, {}

    def step(self, action: Any) -> Any:
        """Sleep; an episode lasts 500 steps."""
        if self._step_s:
            time.sleep(self._step_s)
        self._ticks += 1
        return self._frame, 1.0, self._ticks == 500, False, {}


def collect(side: str, workers: int, seconds: float, step_s: float, settings: dict[str, Any]) -> None:
    """One side: collect for a while, learn nothing."""
    from millrace.config import Config  # here: the harness side of this file runs without it
    from millrace.envs.make import EnvMaker
    from millrace.run import Run

    run_dir = {"run_dir": str(child.scratch() / "run"), "collect.workers": workers}
    config = Config().replace({**COMMON, **SIDES[side], **run_dir, **settings})
    with Run(config, EnvMaker(config.env, functools.partial(SleepyPixels, step_s))) as run:
        _collect_for(run, WARM_UP_S)
        pids = run.source.pool.pids()
        cpu_s, begin = _cpu_s(pids), time.perf_counter()
        waited = _waited(run)
        steps = _collect_for(run, seconds)
        wall_s = time.perf_counter() - begin
        figures = {
            "steps_per_second": steps / wall_s,
            "share_inference": (_waited(run) - waited) / (workers * wall_s),
            "cpu_ms_per_step": 1e3 * (_cpu_s(pids) - cpu_s) / steps,
            "worker_mb": statistics.median(_pss_mb(pid) for pid in pids[:workers]),
            **({"inference_mb": _pss_mb(pids[workers])} if len(pids) > workers else {}),
        }
    child.report(figures, ("millrace", "torch", "gymnasium"))


def _collect_for(run: Any, seconds: float) -> int:
    """Environment steps of whole batches."""
    weights, end, steps = run.learner.weights(), time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        batch = run.source.next_batch()
        steps += batch.env_steps
        run.source.updates += 1
        run.source.publish(weights)
    return steps


def _waited(run: Any) -> float:
    return float(run.source.times.inference_s)


def _cpu_s(pids: list[int]) -> float:
    from millrace import system

    return sum(system.cpu_time_s(pid) for pid in pids)


def _pss_mb(pid: int) -> float:
    from millrace import system

    return system.memory_pss_bytes(pid) / harness.BYTES_PER_MB


def main() -> None:
    """Measure, or be measured (`--collect`)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--step-ms", type=float, default=5.0)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of all sides")
    parser.add_argument("--collect", choices=tuple(SIDES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    settings = dict(pair.split("=", 1) for pair in arguments.set)
    if arguments.collect:
        numbers = {name: float(value) if "." in value else int(value) for name, value in settings.items()}
        collect(arguments.collect, arguments.workers[0], arguments.seconds, arguments.step_ms / 1e3, numbers)
        return
    script = (sys.executable, "-m", "benchmarks.central_inference", "--seconds", str(arguments.seconds))
    for workers in arguments.workers:
        options = ("--workers", str(workers), "--step-ms", str(arguments.step_ms), "--set", *arguments.set)
        candidates = [harness.Candidate(f"millrace, {side}", (*script, *options, "--collect", side)) for side in SIDES]
        name = f"central-inference-{workers}" + ("" if arguments.step_ms else "-no-sleep")
        timeout_s = START_AND_END_S + arguments.seconds
        harness.measure(name, candidates, COLUMNS, arguments.repeats, timeout_s)


if __name__ == "__main__":
    main()
