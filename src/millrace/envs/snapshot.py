"""Saving an environment by its attributes, where they are all plain data.

Many Gymnasium environments (CartPole, Acrobot, grid worlds and their wrappers) keep their whole state in
numbers, arrays and a NumPy generator. Those can be saved as data. One attribute of any other kind (a physics
engine's handle) and the answer is None: the caller then replays the episode's actions instead.
"""

from __future__ import annotations

import collections
import types
from typing import Any

import gymnasium as gym
import numpy as np

GENERATOR_KEY = "__generator__"
STATIC_TYPES = (
    gym.Space,
    gym.envs.registration.EnvSpec,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    type,
    gym.vector.AutoresetMode,
)
SKIPPED_NAMES = {"env", "envs", "spec", "_cached_spec", "metadata", "screen", "clock", "screens", "surf", "recorded_frames"}


class _Opaque(Exception):
    """An attribute that is not plain data."""


def layers(env: Any) -> list[Any]:
    """The wrappers, outermost first, and the environment itself."""
    found = [env]
    while getattr(found[-1], "env", None) is not None:
        found.append(found[-1].env)
    return found


def save(env: Any) -> list[dict[str, Any]] | None:
    """One dictionary of plain values per layer, or None where some attribute is not plain data."""
    try:
        return [_save_layer(layer) for layer in layers(env)]
    except _Opaque:
        return None


def load(env: Any, state: list[dict[str, Any]]) -> None:
    """Set the attributes of every layer back."""
    for layer, values in zip(layers(env), state, strict=True):
        if "__save_state__" in values:
            layer.load_state(values["__save_state__"])
            continue
        for name, value in values.items():
            setattr(layer, name, _thaw(value, getattr(layer, name, None)))


def _save_layer(layer: Any) -> dict[str, Any]:
    if not hasattr(layer, "env") and hasattr(layer, "save_state"):
        return {"__save_state__": layer.save_state()}
    saved = {}
    for name, value in vars(layer).items():
        if name in SKIPPED_NAMES or isinstance(value, STATIC_TYPES):
            continue
        saved[name] = _freeze(value)
    return saved


def _freeze(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return _freeze(value.item())
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.copy()
    if isinstance(value, np.random.Generator):
        return {GENERATOR_KEY: value.bit_generator.state}
    if isinstance(value, list | tuple | collections.deque):
        return [_freeze(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _freeze(item) for key, item in value.items()}
    raise _Opaque(type(value).__name__)


def _thaw(value: Any, current: Any) -> Any:
    if isinstance(value, dict) and GENERATOR_KEY in value:
        current.bit_generator.state = value[GENERATOR_KEY]
        return current
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(current, collections.deque):
        return collections.deque(value, maxlen=current.maxlen)
    if isinstance(current, tuple):
        return tuple(value)
    if isinstance(current, np.generic) and value is not None:
        return current.dtype.type(value)
    return value
