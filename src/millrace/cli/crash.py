"""Reproducing a worker's crash: the slots' episodes again, from seed and actions."""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from millrace.collect.collector import EnvRows
from millrace.config import Config
from millrace.envs.make import EnvMaker
from millrace.errors import ConfigError
from millrace.types import RolloutLayout

CRASHED = 70
"""Exit code of a replayed slot that raised."""


@dataclass(frozen=True)
class Crash:
    """A crash file, as `collect.supervision.Fault` wrote it."""

    path: Path
    message: str
    kind: str
    traceback: str
    slots: list[dict[str, Any]]
    maker: EnvMaker

    @staticmethod
    def read(path: Path, env: str = "") -> Crash:
        """Read a crash file; `env` overrules the environment that it names.

        Raises:
            ConfigError: it is none.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            config = Config().replace({"env": {**data["env"], **({"id": env} if env else {})}}, where=str(path)).env
            return Crash(path, data["message"], data["kind"], data["traceback"], data["slots"], EnvMaker(config))
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is not a crash file ({type(error).__name__}: {error})") from None

    def slot(self, number: int) -> dict[str, Any]:
        """One slot's entry: its episode's seed and actions.

        Raises:
            ConfigError: there is none, or it cannot be replayed.
        """
        entry = next((slot for slot in self.slots if slot["slot"] == number), None)
        if entry is None:
            raise ConfigError(f"{self.path} has no slot {number}; it has {len(self.slots)}")
        if entry["seed"] < 0:
            raise ConfigError(
                f"slot {number} drew its own seed, as vector environments do; train with --env.vectorization single"
            )
        if not entry["complete"]:
            raise ConfigError(
                f"slot {number}: the action log does not reach back to the beginning of its episode; raise "
                "--collect.action_log_steps, or look at a crash that came later after a resume"
            )
        return entry


@dataclass(frozen=True)
class Replayed:
    """What became of one slot.

    Attributes:
        ended: played through, raised, killed by signal N, did not finish, or why it could not be played.
        crashed: the environment failed again.
    """

    slot: int
    seed: int
    steps: int
    ended: str
    crashed: bool
    traceback: str = ""


def play_slot(crash: Crash, number: int) -> int:
    """Play one slot's episode in this very process and return the step that it got to: crashes and all."""
    entry = crash.slot(number)
    maker = replace(crash.maker, config=replace(crash.maker.config, on_bad_value="refuse"))
    env = maker.make_seeded(1, lambda slot, episode: int(entry["seed"]))
    if entry.get("options"):
        env.set_options(entry["options"])
    layout = RolloutLayout(env.spec, 1, 1)
    row = EnvRows(layout.allocate(), layout).rows[1]
    env.reset(row)
    for step, action in enumerate(entry["actions"]):
        env.step(np.array([action], env.spec.action.dtype), row)
        if row.terminated[0] or row.truncated[0]:
            return step + 1
    return len(entry["actions"])


def replay(crash: Crash, env: str, timeout_s: float) -> Iterator[Replayed]:
    """Every slot in a process of its own, so that a fault that kills is reported, not suffered."""
    for entry in crash.slots:
        yield _replay_slot(crash, entry, env, timeout_s)


def _replay_slot(crash: Crash, entry: dict[str, Any], env: str, timeout_s: float) -> Replayed:
    number, seed, steps = entry["slot"], entry["seed"], len(entry["actions"])
    command = [sys.executable, "-X", "faulthandler", "-m", "millrace", "replay", str(crash.path), "--slot", str(number)]
    command += ["--env", env] if env else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Replayed(number, seed, steps, f"did not finish within {timeout_s:g} s", crashed=True)
    if done.returncode == 0:
        return Replayed(number, seed, steps, "played through", crashed=False)
    if done.returncode < 0:
        return Replayed(
            number, seed, steps, f"killed by signal {-done.returncode}", crashed=True, traceback=done.stderr
        )
    if done.returncode == CRASHED:
        reason = done.stderr.strip().splitlines()[-1]
        return Replayed(number, seed, steps, f"raised {reason}", crashed=True, traceback=done.stderr)
    text = done.stderr.strip().splitlines()
    ended = text[-1].removeprefix("millrace: ") if text else f"left with exit code {done.returncode}"
    # Our own refusals come with our prefix; anything else is the environment leaving the process.
    return Replayed(number, seed, steps, ended, crashed=not (text and text[-1].startswith("millrace: ")))


def play_slot_and_exit(crash: Crash, number: int) -> int:
    """`play_slot` as a process: 0 for played through, `CRASHED` with a traceback for raised."""
    entry = crash.slot(number)  # what is wrong with the file is no crash of the environment
    try:
        steps = play_slot(crash, number)
    except Exception:
        traceback.print_exc()
        return CRASHED
    print(f"slot {number}, seed {entry['seed']}: played through {steps} steps")
    return 0
