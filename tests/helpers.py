"""Small runs, and what they left on disk."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import millrace
from millrace.config import Config
from millrace.envs.make import EnvMaker
from millrace.envs.protocol import EnvRow
from millrace.run import Run
from millrace.rundir import RunDirectory
from millrace.types import Rollout, SlotSpec

QUICK = {
    "metrics.tensorboard": False,
    "metrics.every_s": 0.0,
    "ppo.learning_rate_schedule": "constant",
    "ppo.threads": 1,
    "collect.restart_backoff_s": 0.01,
    "net.hidden": [16],
}


def quick_train(
    env: str | Callable[..., Any], run_dir: Path, settings: dict[str, Any] | None = None, **short: Any
) -> Any:
    """A run small enough for a test: 2 workers x 2 slots x 8 steps, lock-step, unless said otherwise."""
    sizes = {"workers": 2, "envs_per_worker": 2, "rollout_steps": 8, "max_policy_lag": 0, "total_env_steps": 10**9}
    return millrace.train(
        env, run_dir=str(run_dir), quiet=True, settings={**QUICK, **(settings or {})}, **{**sizes, **short}
    )


@contextmanager
def opened(env: str | Callable[..., Any], run_dir: Path, **settings: Any) -> Iterator[Run]:
    """A run whose loop the test turns by hand: 2 workers x 4 slots x 16 steps in this process by default."""
    names = {"env.id": env} if isinstance(env, str) else {}
    sizes = {
        "collect.workers": 2,
        "collect.envs_per_worker": 4,
        "collect.rollout_steps": 16,
        "collect.max_policy_lag": 0,
        "collect.backend": "serial",
        "total_env_steps": 10**9,
    }
    quiet = {"run_dir": str(run_dir), "metrics.console": "off"}
    config = Config().replace({**QUICK, **sizes, **quiet, **names, **settings})
    with Run(config, EnvMaker(config.env, None if isinstance(env, str) else env)) as run:
        yield run


def evaluated(run: Run, rollout: Rollout) -> Any:
    """Parameters and values of all T + 1 rows under the learner's policy, as tensors."""
    import torch

    from millrace.learner.rows import seen

    policy, targets, num_rows = run.learner.policy, run.learner._targets, rollout.num_steps + 1
    with torch.no_grad():
        observation = seen(targets._observation(rollout, num_rows))
        if not policy.state_size:
            return policy(observation)
        return policy.unroll(observation, targets.state(rollout), targets._begins(rollout, num_rows))[:2]


def learned(run_dir: Path) -> dict[str, Any]:
    """Everything that learning made, from the newest checkpoint: weights, moments, statistics, collectors."""
    checkpoint, _ = RunDirectory(Path(run_dir)).newest_checkpoint()
    trainer = checkpoint.read_trainer()
    return {
        "policy": checkpoint.read_policy()[1],
        **{key: trainer[key] for key in ("env_steps", "episodes", "recent", "learner", "collectors")},
    }


def differences(first: Any, second: Any, path: str = "") -> list[str]:
    """Where two trees are not the same bit for bit."""
    if isinstance(first, dict) and isinstance(second, dict):
        names = sorted({*first, *second}, key=str)
        return [
            line
            for name in names
            for line in (
                differences(first[name], second[name], f"{path}/{name}")
                if name in first and name in second
                else [f"{path}/{name} only once"]
            )
        ]
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{path}/{i}")]
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        same = first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
        return [] if same else [f"{path}: {first} is not {second}"]
    return [] if first == second else [f"{path}: {first!r} is not {second!r}"]


def libraries_of(pid: int, name: str) -> list[str]:
    """Shared libraries from the folder of an installed package that are mapped into a process."""
    folder = str(Path(importlib.util.find_spec(name).origin).parent)
    return [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if folder in line]


def rows_of(run_dir: Path) -> list[dict[str, float]]:
    """The figures of a run."""
    return [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]


def log_of(run_dir: Path) -> str:
    return (Path(run_dir) / "log.txt").read_text()


def new_row(spec: SlotSpec, num_slots: int) -> EnvRow:
    """A row full of rubbish, so that what an environment forgets to write shows."""
    observation = {}
    for key, array in spec.observation.items():
        observation[key] = np.full((num_slots, *array.shape), 113, array.dtype)
    mask = np.zeros((num_slots, spec.num_mask_bits), bool) if spec.has_action_mask else None
    return EnvRow(
        observation,
        mask,
        np.full(num_slots, np.nan, np.float32),
        *(np.ones(num_slots, bool) for _ in range(3)),
    )
