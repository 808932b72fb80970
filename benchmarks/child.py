"""The measured side of the harness: what a benchmarked script reads from and says to `benchmarks.harness`.

Standard library only, so that it imports in every peer's environment.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LAUNCHED_AT = "BENCHMARK_LAUNCHED_AT"
SCRATCH = "BENCHMARK_SCRATCH"
SEED = "BENCHMARK_SEED"
_IMPORTED_AT = time.monotonic()


def since_launch_s() -> float:
    """Seconds since the harness launched this interpreter (outside the harness: since this import)."""
    return time.monotonic() - float(os.environ.get(LAUNCHED_AT, _IMPORTED_AT))


def seed() -> int:
    """The seed of this run: the number of the repeat."""
    return int(os.environ.get(SEED, "0"))


def scratch() -> Path:
    """A directory that is removed when this run has ended."""
    return Path(os.environ.get(SCRATCH) or tempfile.mkdtemp(prefix="millrace-bench-"))


def report(figures: Mapping[str, Any], packages: Iterable[str] = ()) -> None:
    """Print the figures as the one JSON line that the harness reads, with the versions of some packages."""
    versions = {"python": platform.python_version()}
    versions.update({name: _version(name) for name in packages})
    print(json.dumps({**figures, "versions": versions}), flush=True)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from the source tree
        return "not installed"
