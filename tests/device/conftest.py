from __future__ import annotations

import pytest
import torch

from device import simulated


@pytest.fixture(scope="session")
def device() -> str:
    """A device to test on: a GPU where there is one, else the simulated one; skips where that cannot be built."""
    if torch.cuda.is_available():
        torch.backends.cudnn.allow_tf32 = False  # the CPU is the measure
        return "cuda"
    reason = simulated.missing()
    if reason:
        pytest.skip(reason)
    simulated.load()
    return simulated.NAME


@pytest.fixture
def simulated_device(device: str) -> str:
    """The simulated one alone, which counts what passes between it and the host."""
    if device != simulated.NAME:
        pytest.skip("there is a GPU, and a process has one kind of device")
    return device


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # as a run sets it; threads that share a core with others wait for each other
