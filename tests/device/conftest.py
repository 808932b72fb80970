from __future__ import annotations

import pytest

from device import simulated


@pytest.fixture(scope="session")
def device() -> str:
    """The simulated device's name; skips where it cannot be built."""
    reason = simulated.missing()
    if reason:
        pytest.skip(reason)
    simulated.load()
    return simulated.NAME
