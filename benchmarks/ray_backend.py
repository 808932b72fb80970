"""Collectors in actors of a local Ray cluster against worker processes, and what the object store holds meanwhile.

    python -m benchmarks.ray_backend cost|uneven-16|uneven-64|start [--repeats 3] [--seconds 20]
    python -m benchmarks.ray_backend store [--seconds 600]

`cost`: 2 workers with 4 games each, whose steps sleep, or compute, for one millisecond. `uneven-16` and `uneven-64`:
games whose steps sleep 10 to 50 ms, one to a worker; 64 of them ask one actor that acts for all. `start`: to the first
update of CartPole, interpreter and cluster included. `store`: CartPole at full load.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from typing import Any

import gymnasium
import numpy as np

from benchmarks import child, harness

BACKENDS = ("processes", "ray")
STEADY = {"total_env_steps": 10**9, "metrics.tensorboard": False, "metrics.console": "off"}
SLOW = {"collect.envs_per_worker": 1, "collect.rollout_steps": 16, "collect.max_policy_lag": 2, "ppo.epochs": 4}
PAIR = {"collect.workers": 2, "collect.envs_per_worker": 4, "collect.rollout_steps": 64, "collect.max_policy_lag": 1}
MEAN_SLEEP_S = 0.03
WARM_UP_S = 5.0
START_AND_END_S = 240.0
LOOK_EVERY_S = 15.0


class BusyEnv(gymnasium.Env[Any, Any]):
    """Each step computes for so long."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (8,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(4)
        self._ticks = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin."""
        super().reset(seed=seed)
        self._ticks = 0
        return np.zeros(8, np.float32), {}

    def step(self, action: Any) -> Any:
        """Use the processor; an episode lasts 200 steps."""
        end = time.process_time() + self._step_s
        while time.process_time() < end:
            pass
        self._ticks += 1
        return np.zeros(8, np.float32), 1.0, self._ticks == 200, False, {}


def _work(name: str) -> tuple[Any, dict[str, Any], float]:
    """Environment, settings, and the steps per second that nothing can exceed; 0 where that is not known."""
    from benchmarks.envs import make_sleep, make_slow_uneven

    central = {"collect.inference": "central", "ray.worker_cpus": 0.25, "collect.rollout_steps": 64}
    return {
        "cost-sleep": (functools.partial(make_sleep, 1.0), PAIR, 0.0),
        "cost-compute": (functools.partial(BusyEnv, 0.001), PAIR, 0.0),
        "uneven-16": (make_slow_uneven, {**SLOW, "collect.workers": 16, "ray.worker_cpus": 0.5}, 16 / MEAN_SLEEP_S),
        "uneven-64": (make_slow_uneven, {**SLOW, **central, "collect.workers": 64}, 64 / MEAN_SLEEP_S),
        "start": ("CartPole-v1", {"collect.workers": 2}, 0.0),
    }[name]


def opened(env: Any, settings: dict[str, Any]) -> Any:
    """A run whose loop is turned here."""
    from millrace.config import Config
    from millrace.envs.make import EnvMaker
    from millrace.run import Run

    named = {"env.id": env} if isinstance(env, str) else {}
    config = Config().replace({**STEADY, **named, **settings, "run_dir": str(child.scratch() / "run")})
    return Run(config, EnvMaker(config.env, None if isinstance(env, str) else env))


def train(name: str, backend: str, seconds: float) -> None:
    """One side of one work: trains, and reports the rate of the time after the warm-up."""
    env, settings, ideal = _work(name)
    with opened(env, {**settings, "collect.backend": backend}) as run:
        train_for(run, 0.0)
        figures = {"first_update_s": child.since_launch_s()}
        if name != "start":
            train_for(run, WARM_UP_S)
            begin = time.perf_counter()
            rate = train_for(run, seconds) / (time.perf_counter() - begin)
            figures |= {"steps_per_second": rate, "latency_ms": 1e3 * run.source.rollout_latency_s}
            figures |= {"worker_mb": max(run.source.pool.memory_bytes()) / harness.BYTES_PER_MB}
            figures |= {"lost_rollouts": run.source.counts.lost_rollouts, "restarts": run.source.counts.restarts}
            figures |= {"of_ideal_percent": 100 * rate / ideal} if ideal else {}
    child.report(figures, ("millrace", "ray", "torch", "gymnasium"))


def train_for(run: Any, seconds: float) -> int:
    """Environment steps learned from in so many seconds, one update at least."""
    end, steps = time.perf_counter() + seconds, 0
    while not steps or time.perf_counter() < end:
        batch = run.source.next_batch()
        run.learner.update(batch, 0)
        run.publish()
        steps += batch.env_steps
    return steps


def watch_store(seconds: float) -> None:
    """Train at full load; what is used of the object store, every so often."""
    import ray

    from millrace.config import Config
    from millrace.envs.make import EnvMaker
    from millrace.run import Run

    sizes = {"collect.workers": 2, "collect.envs_per_worker": 128, "collect.rollout_steps": 128}
    settings = {"env.id": "CartPole-v1", "collect.backend": "ray", "ppo.epochs": 1, **sizes, **STEADY}
    config = Config().replace({**settings, "run_dir": str(child.scratch() / "run")})
    with Run(config, EnvMaker(config.env)) as run:
        begin, due, used, steps = time.perf_counter(), 0.0, [], 0
        while (now := time.perf_counter() - begin) < seconds:
            batch = run.source.next_batch()
            run.learner.update(batch, 0)
            run.publish()
            steps += batch.env_steps
            if now >= due:
                total, free = ray.cluster_resources(), ray.available_resources()
                due += LOOK_EVERY_S
                used.append(
                    (total["object_store_memory"] - free.get("object_store_memory", 0.0)) / harness.BYTES_PER_MB
                )
                harness.say(f"{now:5.0f} s  {used[-1]:7.1f} MB in the object store, {steps / now:,.0f} steps/s")
        layout = run.source.pool.setup.layout
        figures = {"rollout_mb": layout.nbytes / harness.BYTES_PER_MB, "steps_per_second": steps / seconds}
        figures |= {"first_mb": used[0], "last_mb": used[-1], "most_mb": max(used), "looks": len(used)}
    child.report(figures, ("millrace", "ray", "torch", "gymnasium"))


def _store_mb() -> float:
    """What is used of the object store now."""
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    return float(total["object_store_memory"] - free.get("object_store_memory", 0.0)) / harness.BYTES_PER_MB


COLUMNS = (
    harness.Column("steps_per_second", "steps/s"),
    harness.Column("of_ideal_percent", "% of ideal", 1),
    harness.Column("latency_ms", "rollout from grant to arrival, ms"),
    harness.Column("worker_mb", "largest worker (RSS), MB"),
    harness.Column("first_update_s", "start to first update, s", 1),
)


def main() -> None:
    """Measure, or be measured (`--backend`)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "work", choices=("cost", "uneven-16", "uneven-64", "start", "store", "cost-sleep", "cost-compute")
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.0, help="to measure for; 20, for `store` 600")
    parser.add_argument("--backend", choices=BACKENDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    seconds = arguments.seconds or (600.0 if arguments.work == "store" else 20.0)
    if arguments.backend:
        watch_store(seconds) if arguments.work == "store" else train(arguments.work, arguments.backend, seconds)
        return
    works = ("cost-sleep", "cost-compute") if arguments.work == "cost" else (arguments.work,)
    for work in works:
        script = (sys.executable, "-m", "benchmarks.ray_backend", work, "--seconds", str(seconds), "--backend")
        sides = ("ray",) if work == "store" else BACKENDS
        candidates = [harness.Candidate(f"millrace, {side}", (*script, side)) for side in sides]
        repeats = 1 if work == "store" else arguments.repeats
        columns = tuple(map(_plain, ("rollout_mb", "first_mb", "most_mb", "last_mb"))) if work == "store" else COLUMNS
        harness.measure(f"ray-{work}", candidates, columns, repeats, seconds + START_AND_END_S)


def _plain(figure: str) -> harness.Column:
    return harness.Column(figure, figure, 1)


if __name__ == "__main__":
    main()
