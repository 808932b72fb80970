"""Recorded games: a file of JSON lines from which episodes can be played again, wherever the same environment is."""

from __future__ import annotations

import collections
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from millrace.envs.protocol import EnvRow
from millrace.errors import ConfigError
from millrace.types import Array, EpisodeRecord


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
        self._games: dict[int, RecordedGame] = {}

    def step(self, action: Array, row: EnvRow) -> None:
        """Actions [B, A], and the row that they led to; resets are no part of a game."""
        for slot in np.flatnonzero(row.valid):
            self._actions[int(slot)].append(action[slot].tolist())

    def finish(self, slot: int, record: EpisodeRecord, index: int | None) -> None:
        """The slot's episode is over; it is kept as the game of this index, or for None not at all."""
        actions = self._actions.pop(slot)
        if index is not None:
            self._games[index] = RecordedGame(record.seed, actions, episode_return=record.episode_return)

    def write(self, path: str | Path) -> int:
        """All games in the order of their indices; how many.

        Raises:
            ConfigError: the episodes have no seeds to be played from again, or the file cannot be written.
        """
        games = [self._games[index] for index in sorted(self._games)]
        if any(game.seed < 0 for game in games):
            raise ConfigError(f"{path}: the environment draws its own seeds, so its games cannot be played again")
        try:
            Path(path).write_text("".join(game.to_line() for game in games), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write the games to {path}: {error.strerror}") from None
        return len(games)


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
