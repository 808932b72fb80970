"""The device of `simulated_device.cpp`: built, loaded, and registered with torch as `simulated`."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import time
import types
from pathlib import Path
from typing import NamedTuple

import torch

NAME = "simulated"
SOURCE = Path(__file__).with_name("simulated_device.cpp")
BUILT = Path(__file__).parents[2] / "build" / "simulated_device"
TORCH = Path(torch.__file__).parent


class Traffic(NamedTuple):
    """What passed between host and device since `reset_traffic`.

    Attributes:
        scalars: numbers that the host asked for with `item`, `float`, `bool` and the like, and waited for.
        to_host, to_device: copies of tensors.
        non_blocking: how many of those copies were begun and not waited for.
        waits: other waiting: for shapes that depend on data, for streams and events.
        launches: operators that computed something on the device.
    """

    scalars: int
    to_host: int
    to_host_bytes: int
    to_device: int
    to_device_bytes: int
    non_blocking: int
    waits: int
    launches: int


def missing() -> str:
    """Why there can be no such device here; empty where it can be built."""
    if not shutil.which("g++"):
        return "the simulated device needs g++"
    if not (TORCH / "include" / "ATen").is_dir():
        return "the simulated device needs the headers of torch"
    return ""


@functools.cache
def load() -> ctypes.CDLL:
    """The library; after the first call of a process torch knows the device, for good."""
    path = _build()
    torch.ops.load_library(path)
    library = ctypes.CDLL(str(path))
    assert library.simulated_num_counts() == len(Traffic._fields)
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _module(library))
    # The thread of the device that ran backward lets go of its last graph a moment later, for which it needs Python:
    # where Python is ending by then, the process aborts.
    atexit.register(time.sleep, 0.05)
    return library


def traffic() -> Traffic:
    """Since the last `reset_traffic` of this process."""
    counts = (ctypes.c_int64 * len(Traffic._fields))()
    load().simulated_read_counts(counts)
    return Traffic(*counts)


def reset_traffic() -> None:
    load().simulated_reset_counts()


def _module(library: ctypes.CDLL) -> types.ModuleType:
    """`torch.simulated`, what torch asks of the module of a device."""
    module = types.ModuleType(f"torch.{NAME}")
    module.is_available = lambda: True
    module.is_initialized = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.synchronize = lambda device=None: library.simulated_synchronize()
    module.device = contextlib.nullcontext
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = lambda seed: library.simulated_seed(ctypes.c_uint64(seed % 2**64))
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    return module


def _build() -> Path:
    """The library of this source for this torch; built if it is not there yet, which takes some seconds."""
    digest = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    path = BUILT / f"{digest}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")  # others may be building the same
    command = [
        "g++", "-std=c++20", "-O1", "-fPIC", "-shared", f"-I{TORCH / 'include'}",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        str(SOURCE), "-o", str(unfinished), f"-L{TORCH / 'lib'}", "-lc10", "-ltorch_cpu",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{SOURCE.name} does not compile with torch {torch.__version__}:\n{done.stderr}")
    unfinished.rename(path)
    return path
