"""The tests of `tests/device`, in a process of their own; see `conftest.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.timeout(600)
def test_everything_works_on_another_device_than_the_cpu() -> None:
    command = [sys.executable, "-m", "pytest", "tests/device", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
