"""Reads pickles without running anything of them: what is not plain data comes out as a record of what it was.

A pickle is a program that names functions and calls them. Here no name is ever looked up: each stands for an `Inert`
class of its own that only notes what it was called with. What NumPy would have made is put together here, from bytes.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from millrace.errors import CheckpointError
from millrace.types import Array

MAX_BYTES = 1 << 29
"""512 MB: far above any policy that acts in real time, far below what hurts."""
NUMBERS = "biuf"
"""Kinds of arrays that are read; one of objects would be a pickle in the pickle."""


class Inert:
    """What a pickle would have made by calling something. A pickle may call it again, as if it were a class.

    Attributes:
        path: `module.name` of what it would have called.
        args: with which.
        state: its attributes, mostly, as set afterwards.
        items: what it would have been filled with: values, or (key, value).
    """

    path = ""
    args: tuple[Any, ...]
    state: Any
    items: list[Any]

    def __new__(cls: Any, *args: Any, **kwargs: Any) -> Inert:
        kind = cls if isinstance(cls, type) else type(cls)
        made: Inert = object.__new__(kind)
        made.args, made.state, made.items = args, kwargs or None, []
        return made

    def __call__(self, *args: Any) -> Inert:
        return type(self)(*args)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        """As a list or set would take it."""
        self.items.append(value)

    add = append

    def extend(self, values: Any) -> None:
        """As a list would take them."""
        self.items.extend(values)

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute that it would have had."""
        return self.state.get(attribute, default) if isinstance(self.state, dict) else default


def path_of(value: Any) -> str:
    """`module.name` of what a pickle names, or of what it would have made by calling that; else empty."""
    is_inert = isinstance(value, Inert) or (isinstance(value, type) and issubclass(value, Inert))
    return str(value.path) if is_inert else ""


class _Reader(pickle._Unpickler):  # in Python: the one in C takes only classes for classes
    def find_class(self, module: str, name: str) -> Any:
        return type("Inert", (Inert,), {"path": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside of it")

    def get_extension(self, code: int) -> Any:
        raise pickle.UnpicklingError("it refers to a registry of this process")


def read_pickle(path: Path) -> Any:
    """What a file says: numbers, texts, containers and arrays as they are, everything else `Inert`.

    Raises:
        CheckpointError: missing, no pickle, or too large.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ValueError(f"{size >> 20} MB are more than the {MAX_BYTES >> 20} MB that a policy may have")
        return parse(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # whatever a hostile file provokes
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(f"cannot read {path}: {text:.200}") from None


def parse(content: bytes) -> Any:
    """The same for bytes; what a broken pickle raises goes through."""
    return _Plain().of(_Reader(io.BytesIO(content)).load())


class _Plain:
    """Arrays and ordered dictionaries in place of the records of how to make them; each thing is looked at once."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Any, Any]] = {}  # with what it was made of, so that no id is used twice

    def of(self, value: Any) -> Any:
        if id(value) in self._made:
            return self._made[id(value)][1]
        made = self._make(value)
        self._made[id(value)] = value, made
        return made

    def _make(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self._filled(value, {}, lambda made: made.update((self.of(k), self.of(v)) for k, v in value.items()))
        if isinstance(value, list):
            return self._filled(value, [], lambda made: made.extend(map(self.of, value)))
        if isinstance(value, tuple):
            return tuple(map(self.of, value))
        if not isinstance(value, Inert):
            return value
        self._made[id(value)] = value, value  # for what refers to itself
        value.args, value.state, value.items = self.of(value.args), self.of(value.state), self.of(value.items)
        maker = _MAKERS.get(value.path)
        return maker(value) if maker else value

    def _filled(self, value: Any, made: Any, fill: Callable[[Any], None]) -> Any:
        self._made[id(value)] = value, made
        fill(made)
        return made


def _ordered(made: Inert) -> dict[Any, Any]:
    return dict([*made.args[0], *made.items] if made.args else made.items)


def _dtype(made: Inert) -> np.dtype[Any]:
    dtype = np.dtype(str(made.args[0]))
    if dtype.kind not in NUMBERS:
        raise pickle.UnpicklingError(f"an array of {dtype} is none of numbers")
    is_big = isinstance(made.state, tuple) and made.state[1] == ">"
    return dtype.newbyteorder(">") if is_big else dtype


def _from_buffer(made: Inert) -> Array:
    return _array(*made.args)


def _reconstructed(made: Inert) -> Array:
    """NumPy's form in pickles of earlier protocols."""
    _, shape, dtype, is_fortran, content = made.state
    return _array(content, dtype, shape, "F" if is_fortran else "C")


def _scalar(made: Inert) -> Any:
    dtype, content = made.args
    return _array(content, dtype, (), "C")[()]


def _array(content: Any, dtype: np.dtype[Any], shape: Any, order: str) -> Array:
    numbers = np.frombuffer(bytes(content), dtype)
    shape = shape if isinstance(shape, tuple) else (shape,)
    if math.prod(shape) != numbers.size or order not in ("C", "F"):
        raise pickle.UnpicklingError(f"an array of the shape {shape} has {numbers.size} numbers")
    return np.array(np.reshape(numbers, shape, order="F" if order == "F" else "C"))


def _encoded(made: Inert) -> bytes:
    """Bytes, as earlier protocols write them."""
    return str(made.args[0]).encode("latin1")


_MAKERS: dict[str, Callable[[Inert], Any]] = {
    "collections.OrderedDict": _ordered,
    "_codecs.encode": _encoded,
    "numpy.dtype": _dtype,
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _reconstructed for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
}
