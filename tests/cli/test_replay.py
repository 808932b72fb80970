"""`millrace replay`: crashes that come again, and those that do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from millrace.collect.supervision import Fault

from .conftest import TINY, Cli

GAME = """
import os
import signal
import time

import gymnasium as gym
import numpy as np
from gymnasium import spaces

class Fragile(gym.Env):
    '''Fails in its own way when action 1 was played three times in an episode whose seed is even.'''

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, way="raise"):
        self.way = way

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.even, self.ones, self.steps = seed % 2 == 0, 0, 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.ones += int(action)
        self.steps += 1
        if self.even and self.ones == 3:
            if self.way == "raise":
                raise RuntimeError("three ones")
            if self.way == "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            if self.way == "hang":
                time.sleep(60)
            if self.way == "exit":
                os._exit(5)
        return np.zeros(2, np.float32), 0.0, self.steps == 40, False, {}
"""


@pytest.fixture
def game(tmp_path: Path) -> None:
    (tmp_path / "fragile_game.py").write_text(GAME)


def crash_file(directory: Path, way: str) -> str:
    slots = (
        {"slot": 0, "seed": 3, "complete": True, "actions": [[1], [1], [1]]},
        {"slot": 1, "seed": 4, "complete": True, "actions": [[1], [0], [1], [1]]},
    )
    fault = Fault(0, "died", "worker 0, step 4: the process ended", "its own traceback", 7, 4, slots)
    return str(fault.write(directory, {"id": "fragile_game:Fragile", "kwargs": {"way": way}}))


@pytest.mark.usefixtures("game")
@pytest.mark.parametrize(
    ("way", "ended"),
    [
        ("raise", "raised RuntimeError: three ones"),
        ("segfault", "killed by signal 11"),
        ("exit", "left with exit code 5"),
        ("hang", "did not finish within 3 s"),
    ],
)
def test_each_kind_of_crash_comes_again_in_its_slot(cli: Cli, tmp_path: Path, way: str, ended: str) -> None:
    said = cli("replay", crash_file(tmp_path, way), "--json", "--timeout", "3")
    assert said.code == 0, said.err
    told = json.loads(said.out)
    assert told["reproduced"] is True
    assert [(slot["ended"], slot["crashed"]) for slot in told["slots"]] == [("played through", False), (ended, True)]


@pytest.mark.usefixtures("game")
def test_a_crash_that_does_not_come_again_is_exit_code_1_and_shows_the_old_traceback(cli: Cli, tmp_path: Path) -> None:
    said = cli("replay", crash_file(tmp_path, "never"))
    assert said.code == 1
    assert "not reproduced" in said.out
    assert "its own traceback" in said.out


@pytest.mark.usefixtures("game")
def test_one_slot_replays_in_this_process(cli: Cli, tmp_path: Path) -> None:
    file = crash_file(tmp_path, "raise")
    assert cli("replay", file, "--slot", "0").out == "slot 0, seed 3: played through 3 steps\n"
    assert "RuntimeError: three ones" in cli("replay", file, "--slot", "1").err
    assert cli("replay", file, "--slot", "9").code == 2


def test_a_file_that_is_no_crash_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("[1, 2]")
    said = cli("replay", "other.json")
    assert said.code == 2
    assert "is not a crash file" in said.err


@pytest.mark.usefixtures("game")
def test_the_file_of_a_real_crash_reproduces_it(cli: Cli, tmp_path: Path) -> None:
    words = ("train", "fragile_game:Fragile", *TINY, "--run-dir", "mine", "--collect.max_restarts", "0")
    said = cli(*words)
    assert said.code == 3
    assert "three ones" in said.err
    crash = next((tmp_path / "mine" / "crashes").glob("*.json"))
    said = cli("replay", str(crash))
    assert said.code == 0, said.err
    assert "RuntimeError: three ones" in said.out
