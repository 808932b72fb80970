"""Millrace: PPO for games, in parallel, from one process to many.

`train`, `resume`, `evaluate` and `load_policy` are all that most programs need; they are imported on first use,
so that `import millrace` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "rllib_env": "millrace.rllib.envs",
    "train": "millrace.training",
    "resume": "millrace.training",
    "train_seeds": "millrace.experiments.seeds",
    "sweep": "millrace.experiments.sweep",
    "Result": "millrace.training",
    "Config": "millrace.config",
    "load_policy": "millrace.deploy.policy",
    "evaluate": "millrace.deploy.evaluate",
    "export_policy": "millrace.deploy.export",
    "play": "millrace.deploy.play",
    "register_envs": "millrace.envs.registration",
    "MillraceError": "millrace.errors",
}

__all__ = [
    "Config",
    "MillraceError",
    "Result",
    "evaluate",
    "export_policy",
    "load_policy",
    "play",
    "register_envs",
    "resume",
    "rllib_env",
    "sweep",
    "train",
    "train_seeds",
]

if TYPE_CHECKING:
    from millrace.config import Config
    from millrace.deploy.evaluate import evaluate
    from millrace.deploy.export import export_policy
    from millrace.deploy.play import play
    from millrace.deploy.policy import load_policy
    from millrace.envs.registration import register_envs
    from millrace.errors import MillraceError
    from millrace.experiments.seeds import train_seeds
    from millrace.experiments.sweep import sweep
    from millrace.rllib.envs import rllib_env
    from millrace.training import Result, resume, train


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'millrace' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
