"""Games of EnvPool, which step as a batch in compiled code: `EnvPool/TASK`, such as `EnvPool/Pong-v5`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from millrace.errors import ConfigError, MissingExtraError

PREFIX = "EnvPool/"
MAX_SEED = 2**31
OURS = {"stack_num": 1, "reward_clip": False}
"""Where a task knows these: the collector stacks frames and stores each once, the learner clips."""


def is_envpool(env_id: str) -> bool:
    """Whether an id is one of EnvPool's."""
    return env_id.startswith(PREFIX)


def make_envpool(env_id: str, kwargs: Mapping[str, Any], num_envs: int, seed: int, max_episode_steps: int = 0) -> Any:
    """A Gymnasium vector environment that resets in the next step; its one thread is the worker's own.

    Raises:
        MissingExtraError: EnvPool is not installed. ConfigError: it has no such task, or takes no such argument.
    """
    try:
        import envpool
    except ModuleNotFoundError:
        raise MissingExtraError("envpool", "envpool", f"the environment {env_id}") from None
    task = env_id.removeprefix(PREFIX)
    if task not in envpool.list_all_envs():
        raise ConfigError(f"EnvPool has no task {task!r}; envpool.list_all_envs() lists them")
    known = envpool.make_spec(task).config._asdict()
    limit = {"max_episode_steps": max_episode_steps} if max_episode_steps else {}
    unknown = sorted(set(kwargs) - set(known))
    if unknown:
        raise ConfigError(f"env.kwargs: EnvPool's {task} takes no {', '.join(unknown)}; it takes {', '.join(known)}")
    ours = {name: value for name, value in OURS.items() if name in known}
    settings = {"num_threads": 1, **ours, **limit, **kwargs, "num_envs": num_envs, "seed": seed % MAX_SEED}
    return envpool.make(task, env_type="gymnasium", **settings)
