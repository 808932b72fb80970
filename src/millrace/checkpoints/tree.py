"""Nested plain values and arrays as one JSON text and named arrays, and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from millrace.errors import CheckpointError
from millrace.types import Array

ARRAY_KEY = "__array__"


def flatten(tree: Any, arrays: dict[str, Array], path: str = "") -> Any:
    """The JSON part of a tree; its arrays are added to `arrays` under their paths."""
    if isinstance(tree, np.ndarray):
        while path in arrays:  # keys may hold the separator themselves
            path += "'"
        arrays[path] = np.ascontiguousarray(tree)
        # safetensors has no scalars of rank 0 in NumPy form, so the shape is kept here.
        return {ARRAY_KEY: path, "shape": list(tree.shape)}
    if isinstance(tree, dict):
        return {str(key): flatten(value, arrays, f"{path}/{key}") for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [flatten(value, arrays, f"{path}/{i}") for i, value in enumerate(tree)]
    if isinstance(tree, np.generic):
        return tree.item()
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise CheckpointError(f"{path}: a {type(tree).__name__} is neither a plain value nor an array")


def unflatten(data: Any, arrays: dict[str, Array]) -> Any:
    """The inverse of `flatten`."""
    if isinstance(data, dict):
        if ARRAY_KEY in data:
            return arrays[data[ARRAY_KEY]].reshape(data["shape"])
        return {key: unflatten(value, arrays) for key, value in data.items()}
    if isinstance(data, list):
        return [unflatten(value, arrays) for value in data]
    return data
