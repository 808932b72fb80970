"""What every test of the house shares: poisoned memory, quick runs, and a look at what is left behind."""

from __future__ import annotations

import os

os.environ["MILLRACE_POISON"] = "1"  # before anything of the package is imported; workers inherit it

import gc
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

DEVICE = Path(__file__).with_name("device")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`tests/device` gets a process of its own, in `test_devices.py`, unless it is what was asked for.

    Torch's autograd counts devices at its first gradient; one that is registered later cannot have any. And no other
    test should run where there is a device that is none.
    """
    is_asked_for = any("device" in argument for argument in config.invocation_params.args)
    return True if collection_path == DEVICE and not is_asked_for else None


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def nothing_left_behind() -> Iterator[None]:
    """No child process and no shared memory more than before, once the test is over."""
    before = shared_memory()
    yield
    deadline_s = time.monotonic() + 5.0
    while (children := worker_processes()) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not children, f"processes left behind: {children}"
    gc.collect()
    assert shared_memory() <= before


def worker_processes() -> list[psutil.Process]:
    """Child processes, without Python's own bookkeeper of named shared memory."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if child.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def shared_memory() -> set[str]:
    """Memory files held by this process and named segments of this machine."""
    memory_files = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue
        if "memfd:millrace" in target:
            memory_files.add(descriptor.name)
    return memory_files | {path.name for path in Path("/dev/shm").glob("psm_*")}
