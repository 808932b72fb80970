"""The one way game code is compiled: Numba without the interpreter, kept on disk where that is possible."""

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
    # NumPy's division needs no branch for a zero divisor; no kernel divides by zero.
    try:
        compiled: Function = njit(cache=True, error_model="numpy")(function)
    except RuntimeError:
        compiled = njit(error_model="numpy")(function)
    return compiled
