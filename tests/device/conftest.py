from __future__ import annotations

import pytest
import torch

from device import simulated


@pytest.fixture(scope="session")
def device() -> str:
    """The simulated device's name; skips where it cannot be built."""
    reason = simulated.missing()
    if reason:
        pytest.skip(reason)
    simulated.load()
    return simulated.NAME


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # as a run sets it; threads that share a core with others wait for each other
