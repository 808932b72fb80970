"""Plays whole episodes of Realm with a policy that sees the game itself; the yardsticks are made of this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from millrace.games.realm.game import RealmGame
from millrace.games.realm.kernels import RUNNING
from millrace.games.realm.rules import NUM_ACTIONS, NUM_DIRECTIONS

Policy = Callable[[RealmGame], npt.NDArray[np.int64]]
"""Actions [B] for every slot of a game; those of slots that are not running do not count."""


@dataclass(frozen=True)
class PlayedGames:
    """What came of one episode in each of n slots."""

    figures: list[dict[str, float]]
    """Episode figures of each."""
    actions: list[npt.NDArray[np.int64]]
    """Actions of each, as many as its steps."""

    def of(self, name: str) -> npt.NDArray[np.float64]:
        """One figure of every episode, [n]."""
        return np.array([figures[name] for figures in self.figures])


def play_games(game: RealmGame, seeds: Sequence[int] | npt.NDArray[np.uint64], policy: Policy) -> PlayedGames:
    """Play one episode from each of `seeds[B]`, all slots of the game beside each other."""
    if len(seeds) != game.num_slots:
        raise ValueError(f"{len(seeds)} seeds for a game of {game.num_slots} slots; there must be one for each")
    active = np.ones(game.num_slots, dtype=np.bool_)
    reward = np.zeros(game.num_slots, dtype=np.float32)
    terminated, truncated = np.zeros_like(active), np.zeros_like(active)
    game.reset(active, np.asarray(seeds, dtype=np.uint64))
    played = []
    while active.any():
        played.append(policy(game).copy())
        game.step(played[-1], active, reward, terminated, truncated)
        active = game.slots.status == RUNNING
    figures = [game.episode_figures(slot) for slot in range(game.num_slots)]
    by_slot = np.array(played, dtype=np.int64).T
    return PlayedGames(figures, [by_slot[i, : int(one["steps"])] for i, one in enumerate(figures)])


def random_policy(seed: int = 0) -> Policy:
    """Uniformly random legal actions."""
    rng = np.random.default_rng(seed)

    def actions(game: RealmGame) -> npt.NDArray[np.int64]:
        legal = np.where(game.slots.flash_wait == 0, NUM_ACTIONS, NUM_DIRECTIONS)
        return rng.integers(0, legal)

    return actions
