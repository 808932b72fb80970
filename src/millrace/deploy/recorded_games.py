"""Recorded games: a file of JSON lines from which episodes can be played again, wherever the same environment is."""

from __future__ import annotations

import collections
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from millrace.envs.protocol import EnvRow
from millrace.errors import ConfigError, EnvError
from millrace.types import Array


@dataclass(frozen=True)
class RecordedGame:
    """One whole episode.

    Attributes:
        actions: of each step, [A] numbers: categories from 0, then continuous ones.
        options: that the environment was reset with.
        episode_return: sum of raw rewards; None where nobody wrote it down.
    """

    seed: int
    actions: list[list[float]]
    options: dict[str, Any] = field(default_factory=dict)
    episode_return: float | None = None

    def to_line(self) -> str:
        """One line of JSON."""
        data = {"seed": self.seed, "options": self.options, "actions": self.actions, "return": self.episode_return}
        return json.dumps(data) + "\n"


class Recorder:
    """Takes down the actions of B slots that step together."""

    def __init__(self) -> None:
        self._actions: dict[int, list[list[float]]] = collections.defaultdict(list)

    def step(self, action: Array, row: EnvRow) -> None:
        """Actions [B, A], and the row that they led to; resets are no part of a game."""
        for slot in np.flatnonzero(row.valid):
            self._actions[int(slot)].append(action[slot].tolist())

    def finish(self, slot: int, seed: int, options: Mapping[str, Any], episode_return: float) -> RecordedGame:
        """The slot's episode, which is over."""
        return RecordedGame(seed, self._actions.pop(slot), dict(options), episode_return)


def write_games(path: str | Path, games: Sequence[RecordedGame]) -> None:
    """One line for each.

    Raises:
        ConfigError: the episodes have no seeds to be played from again, or the file cannot be written.
    """
    if any(game.seed < 0 for game in games):
        raise ConfigError(f"{path}: the environment draws its own seeds, so its games cannot be played again")
    try:
        Path(path).write_text("".join(game.to_line() for game in games), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write the games to {path}: {error.strerror}") from None


def read_games(path: str | Path) -> Sequence[RecordedGame]:
    """The games of a file.

    Raises:
        ConfigError: it cannot be read, or a line is no game.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read the recorded games {path}: {error.strerror}") from None
    games = [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not games:
        raise ConfigError(f"{path} holds no games; `millrace eval RUN --record {path}` writes some")
    return games


EXAMPLE = '{"seed": 7, "options": {}, "actions": [[0], [3]]}'


def _parse(line: str, where: str) -> RecordedGame:
    try:
        data = json.loads(line)
        actions = [[float(number) for number in action] for action in data["actions"]]
        if not actions:
            raise ValueError("a game needs an action")
        return RecordedGame(int(data["seed"]), actions, dict(data.get("options") or {}), data.get("return"))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{where} is not a game ({type(error).__name__}: {error}); one looks like {EXAMPLE}"
        ) from None


@dataclass(frozen=True)
class Start:
    """A state to play from: where the first `steps` actions of a game lead, in an environment that follows from its
    seed and actions.

    Attributes:
        name: as it was asked for, for messages.
    """

    game: RecordedGame
    steps: int
    name: str

    def elsewhere(self, steps: int, seed: int) -> EnvError:
        """The error of an environment that did not come there."""
        if seed < 0:
            return EnvError(
                f"{self.name}: this environment draws its own seeds; no recorded state leads anywhere in it"
            )
        return EnvError(
            f"{self.name}: the game is over after {steps} steps here, and was not where it was recorded; play it with "
            "the environment, arguments and wrappers of then"
        )


def read_start(name: str) -> Start:
    """The state that GAMES.jsonl:EPISODE:STEP names; both are counted from 0.

    Raises:
        ConfigError: there is no such file, episode or step.
    """
    path, episode, step = (["", "", *name.rsplit(":", 2)])[-3:]
    if not (path and episode.isdigit() and step.isdigit()):
        raise ConfigError(f"{name!r} names no state; write GAMES.jsonl:EPISODE:STEP, both counted from 0")
    games = read_games(path)
    if int(episode) >= len(games):
        raise ConfigError(f"{name}: {path} holds {len(games)} games; the last is {len(games) - 1}")
    game = games[int(episode)]
    if int(step) >= len(game.actions):
        raise ConfigError(f"{name}: game {episode} is over after {len(game.actions)} steps; name an earlier one")
    return Start(game, int(step), name)
