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

GENERATOR_KEY, SCALAR_KEY, TUPLE_KEY, DEQUE_KEY = "__generator__", "__scalar__", "__tuple__", "__deque__"
SPACE_KEY = "__space__"
STATIC_TYPES = (
    gym.envs.registration.EnvSpec,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    type,
    gym.vector.AutoresetMode,
)
SKIPPED_NAMES = {"env", "spec", "_cached_spec", "metadata"}
PICTURE_NAMES = {"screen", "clock", "screens", "surf", "recorded_frames"}  # left out where they are pygame's objects


class _OpaqueError(Exception):
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
    except _OpaqueError:
        return None


def load(env: Any, state: list[dict[str, Any]]) -> None:
    """Set the attributes of every layer back."""
    for layer, values in zip(layers(env), state, strict=True):
        if "__save_state__" in values:
            layer.load_state(values["__save_state__"])
            continue
        for name, value in values.items():
            current = getattr(layer, name, None)
            if isinstance(current, np.random.Generator) and isinstance(value, dict) and GENERATOR_KEY in value:
                current.bit_generator.state = value[GENERATOR_KEY]  # in place: others may hold the same generator
            elif isinstance(current, gym.Space):
                _load_space(current, value)
            else:
                setattr(layer, name, _thaw(value))


def _save_layer(layer: Any) -> dict[str, Any]:
    if not hasattr(layer, "env") and hasattr(layer, "save_state"):
        return {"__save_state__": layer.save_state()}
    saved = {}
    for name, value in vars(layer).items():
        if name in SKIPPED_NAMES or isinstance(value, STATIC_TYPES):
            continue
        if isinstance(value, gym.Space) and isinstance(layer, gym.vector.VectorEnv):
            continue  # batching a space gives it a generator of its own, which nobody draws from
        try:
            saved[name] = _freeze(value)
        except _OpaqueError:
            if name not in PICTURE_NAMES:
                raise
    return saved


def _freeze(value: Any) -> Any:
    """Plain JSON values and numeric arrays that tell their own type, or `_OpaqueError`."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return {SCALAR_KEY: value.dtype.name, "value": value.item()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return value.copy()
    if isinstance(value, np.random.Generator):
        return {GENERATOR_KEY: value.bit_generator.state}
    if isinstance(value, gym.Space):
        return {SPACE_KEY: [_space_generator(part) for part in _parts(value)]}
    if type(value) is list:
        return [_freeze(item) for item in value]
    if type(value) is tuple:
        return {TUPLE_KEY: [_freeze(item) for item in value]}
    if type(value) is collections.deque:
        return {DEQUE_KEY: [_freeze(item) for item in value], "maxlen": value.maxlen}
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: _freeze(item) for key, item in value.items()}
    raise _OpaqueError(type(value).__name__)


def _parts(space: gym.Space[Any]) -> list[gym.Space[Any]]:
    """A space and those inside it; each draws its samples from a generator of its own."""
    inside = getattr(space, "spaces", ())
    nested = inside.values() if isinstance(inside, dict) else inside
    return [space, *(part for inner in nested for part in _parts(inner))]


def _space_generator(space: gym.Space[Any]) -> Any:
    return None if space._np_random is None else _freeze(space._np_random)


def _load_space(space: gym.Space[Any], value: Any) -> None:
    for part, generator in zip(_parts(space), value[SPACE_KEY], strict=True):
        part._np_random = _thaw(generator)


def _thaw(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, list):
        return [_thaw(item) for item in value]
    if not isinstance(value, dict):
        return value
    if GENERATOR_KEY in value:
        state = value[GENERATOR_KEY]
        bits = getattr(np.random, state["bit_generator"])()
        bits.state = state
        return np.random.Generator(bits)
    if SCALAR_KEY in value:
        return np.dtype(value[SCALAR_KEY]).type(value["value"])
    if TUPLE_KEY in value:
        return tuple(_thaw(item) for item in value[TUPLE_KEY])
    if DEQUE_KEY in value:
        return collections.deque((_thaw(item) for item in value[DEQUE_KEY]), maxlen=value["maxlen"])
    return {key: _thaw(item) for key, item in value.items()}
