"""How Python becomes machine code here: Numba without the interpreter, kept on disk where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compile `function` on its first call, cached on disk.

    Numba tries NUMBA_CACHE_DIR, the package's own `__pycache__` and the user's cache directory in turn and
    raises at decoration when it can write none of them. Then each process compiles for itself: slower to
    start, nothing else.
    """
    return _compiled(function, forceinline=False)


def inlined(function: Function) -> Function:
    """A kernel that becomes part of every kernel that calls it.

    For small parts of an inner loop that take a game's whole state: a call hands over each array as seven numbers,
    which costs more than what such a part does.
    """
    return _compiled(function, forceinline=True)


def _compiled(function: Function, forceinline: bool) -> Function:
    # NumPy's division needs no branch for a zero divisor; no kernel divides by zero.
    options = {"error_model": "numpy", "forceinline": forceinline}
    try:
        compiled: Function = njit(cache=True, **options)(function)
    except RuntimeError:
        compiled = njit(**options)(function)
    return compiled
