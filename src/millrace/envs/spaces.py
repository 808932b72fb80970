"""Gymnasium spaces to flat arrays and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from millrace.errors import EnvError
from millrace.types import ActionSpec, Array, ArraySpec, SlotSpec

MASK_KEY = "action_mask"
Leaf = tuple[str, tuple[Any, ...], spaces.Space[Any]]  # flat name, path into the nested observation, space


def leaves(space: spaces.Space[Any], name: str = "", path: tuple[Any, ...] = ()) -> list[Leaf]:
    """The spaces without parts of their own, depth first; a plain space is named `obs`."""
    if isinstance(space, spaces.Dict):
        return [leaf for key, part in space.items() for leaf in leaves(part, _join(name, key), (*path, key))]
    if isinstance(space, spaces.Tuple):
        return [leaf for i, part in enumerate(space) for leaf in leaves(part, _join(name, i), (*path, i))]
    return [(name or "obs", path, space)]


def _join(name: str, key: Any) -> str:
    return f"{name}/{key}" if name else str(key)


def pick(value: Any, path: tuple[Any, ...]) -> Any:
    """Follow a path into nested dicts and tuples."""
    for key in path:
        value = value[key]
    return value


def leaf_value(observation: Any, path: tuple[Any, ...], space: spaces.Space[Any]) -> Array:
    """One leaf of an observation, or of a batch of them, as an array; categories are counted from 0."""
    value = np.asarray(pick(observation, path))
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(space.start):
        return np.asarray(value - space.start)
    return value


def slot_spec(observation: spaces.Space[Any], action: spaces.Space[Any], mask_in_info: bool) -> SlotSpec:
    """What one slot sees and does.

    Raises:
        EnvError: a space that cannot be turned into arrays of fixed shape.
    """
    arrays = {name: _array_spec(name, space) for name, _, space in leaves(observation) if name != MASK_KEY}
    if not arrays:
        raise EnvError(f"the observation space {observation} holds nothing to learn from")
    has_mask = mask_in_info or any(name == MASK_KEY for name, _, _ in leaves(observation))
    return SlotSpec(arrays, action_spec(action), has_mask)


def _array_spec(name: str, space: spaces.Space[Any]) -> ArraySpec:
    if isinstance(space, spaces.Discrete):
        return ArraySpec((), "int64", num_classes=int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return ArraySpec(space.shape, "int64", num_classes=int(space.nvec.max()))
    if isinstance(space, spaces.MultiBinary):
        return ArraySpec(space.shape, "int8")
    if isinstance(space, spaces.Box):
        dtype = np.dtype("float32") if space.dtype == np.float64 else np.dtype(space.dtype)
        scale = 1.0 / float(space.high.max()) if dtype.kind == "u" and space.high.size and space.high.max() > 0 else 1.0
        return ArraySpec(space.shape, dtype.name, scale=scale)
    raise EnvError(
        f"the observation {name} has the space {space}, which has no fixed array form; wrap it into a Box, Discrete, "
        "MultiDiscrete, MultiBinary, or a Dict or Tuple of these"
    )


def action_spec(space: spaces.Space[Any]) -> ActionSpec:
    """The product of categoricals and Gaussians that covers an action space."""
    nvec: list[int] = []
    low: list[float] = []
    high: list[float] = []
    for _, _, leaf in leaves(space):
        if isinstance(leaf, spaces.Discrete):
            nvec.append(int(leaf.n))
        elif isinstance(leaf, spaces.MultiDiscrete):
            nvec.extend(int(n) for n in leaf.nvec.ravel())
        elif isinstance(leaf, spaces.MultiBinary):
            nvec.extend([2] * int(np.prod(leaf.shape)))
        elif isinstance(leaf, spaces.Box):
            low.extend(float(x) for x in leaf.low.ravel())
            high.extend(float(x) for x in leaf.high.ravel())
        else:
            raise EnvError(f"the action space {leaf} is not one of Box, Discrete, MultiDiscrete, MultiBinary")
    return ActionSpec(tuple(nvec), tuple(low), tuple(high))


def action_converter(space: spaces.Space[Any]) -> Callable[[Array], Any]:
    """A function from [A] action columns to what `env.step` wants; continuous actions are clipped to the space."""
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return lambda columns: int(columns[0]) + start
    parts: list[tuple[tuple[Any, ...], Callable[[Array, int], tuple[Any, int]]]] = []
    for _, path, leaf in leaves(space):
        parts.append((path, _leaf_converter(leaf)))
    spec = action_spec(space)

    def convert(columns: Array) -> Any:
        cursors = {"category": 0, "box": len(spec.nvec)}
        values = {}
        for (path, converter), (_, _, leaf) in zip(parts, leaves(space), strict=True):
            kind = "box" if isinstance(leaf, spaces.Box) else "category"
            values[path], cursors[kind] = converter(columns, cursors[kind])
        return _assemble(space, values)

    return convert


def _leaf_converter(leaf: spaces.Space[Any]) -> Callable[[Array, int], tuple[Any, int]]:
    size = int(np.prod(leaf.shape)) if leaf.shape else 1

    def convert(columns: Array, cursor: int) -> tuple[Any, int]:
        taken = columns[cursor : cursor + size]
        if isinstance(leaf, spaces.Discrete):
            return int(taken[0]) + int(leaf.start), cursor + 1
        value = taken.reshape(leaf.shape)
        if isinstance(leaf, spaces.Box):
            value = np.clip(value, leaf.low, leaf.high)
        elif isinstance(leaf, spaces.MultiDiscrete):
            value = value + leaf.start
        return value.astype(leaf.dtype), cursor + size

    return convert


def _assemble(space: spaces.Space[Any], values: Mapping[tuple[Any, ...], Any], path: tuple[Any, ...] = ()) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _assemble(part, values, (*path, key)) for key, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_assemble(part, values, (*path, i)) for i, part in enumerate(space))
    return values[path]


def batch_action_converter(space: spaces.Space[Any]) -> Callable[[Array], Any]:
    """A function from [B, A] action columns to what a vector environment's `step` wants."""
    if isinstance(space, spaces.Discrete):
        if space.start == 0:
            return lambda columns: columns[:, 0]
        return lambda columns: columns[:, 0] + space.start
    if isinstance(space, spaces.Box):
        shape = (-1, *space.shape)
        return lambda columns: np.clip(columns.reshape(shape), space.low, space.high).astype(space.dtype)
    convert = action_converter(space)
    if isinstance(space, spaces.Dict | spaces.Tuple):
        batched = gym.vector.utils.batch_space

        def convert_nested(columns: Array) -> Any:
            single = [convert(row) for row in columns]
            out = gym.vector.utils.create_empty_array(space, len(single))
            return gym.vector.utils.concatenate(space, single, out)

        assert batched is not None
        return convert_nested
    return lambda columns: np.stack([convert(row) for row in columns])


def space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    """A space as plain values; Box bounds keep one number where all are alike."""
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": {key: space_to_json(part) for key, part in space.items()}}
    if isinstance(space, spaces.Tuple):
        return {"type": "Tuple", "spaces": [space_to_json(part) for part in space]}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "shape": list(space.shape)}
    if isinstance(space, spaces.Box):
        bounds = {name: _bound_to_json(getattr(space, name)) for name in ("low", "high")}
        return {"type": "Box", "shape": list(space.shape), "dtype": np.dtype(space.dtype).name, **bounds}
    raise EnvError(f"the space {space} has no plain form")


def _bound_to_json(bound: Array) -> Any:
    # As text, because JSON has no infinities.
    values = [repr(float(x)) for x in bound.ravel()]
    return values[0] if len(set(values)) == 1 else values


def space_from_json(data: Mapping[str, Any]) -> spaces.Space[Any]:
    """The inverse of `space_to_json`."""
    kind = data["type"]
    if kind == "Dict":
        return spaces.Dict({key: space_from_json(part) for key, part in data["spaces"].items()})
    if kind == "Tuple":
        return spaces.Tuple([space_from_json(part) for part in data["spaces"]])
    if kind == "Discrete":
        return spaces.Discrete(data["n"], start=data["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(data["nvec"], start=data["start"])
    if kind == "MultiBinary":
        shape = data["shape"]
        return spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)
    if kind == "Box":
        shape, dtype = tuple(data["shape"]), np.dtype(data["dtype"])
        low, high = (_bound_from_json(data[name], shape, dtype) for name in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    raise EnvError(f"unknown kind of space {kind!r}")


def _bound_from_json(bound: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    values = np.array([float(x) for x in (bound if isinstance(bound, list) else [bound])])
    return np.broadcast_to(values.reshape(shape) if isinstance(bound, list) else values[0], shape).astype(dtype)


def with_stack(spec: SlotSpec, stack: int) -> SlotSpec:
    """The spec with `stack` frames seen of each image, or of every array where there are no images.

    Categories are never stacked.
    """
    fits = {key: array for key, array in spec.observation.items() if not array.num_classes}
    stacked = {key: replace(array, stack=stack) for key, array in fits.items()}
    images = {key: array for key, array in stacked.items() if array.is_image}
    return replace(spec, observation={**spec.observation, **(images or stacked)})
