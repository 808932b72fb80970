"""Commands as a person types them, in a directory of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from millrace.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Said:
    """What a command returned and printed."""

    code: int
    out: str
    err: str


Cli = Callable[..., Said]

TINY = (
    "--backend", "serial", "--workers", "1", "--envs-per-worker", "4", "--rollout-steps", "16", "--max-policy-lag", "0",
    "--metrics.tensorboard", "false", "--metrics.every_s", "0", "--ppo.threads", "1", "--total-env-steps", "256",
)  # fmt: skip


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command in this process, with an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    # Commands that start themselves again must find the same source.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(tmp_path)]))

    def run(*words: str) -> Said:
        capfd.readouterr()
        code = main(list(words))
        said = capfd.readouterr()
        return Said(code, said.out, said.err)

    return run


def in_new_process(code: str) -> subprocess.CompletedProcess[str]:
    """Some Python in an interpreter of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
