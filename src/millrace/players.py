"""Who plays when a policy is to imitate: scripts, functions of the user's own, recorded games."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from millrace.collect.collector import Player
from millrace.deploy.episodes import random_choice
from millrace.deploy.recorded_games import RecordedGame
from millrace.envs.game_slots import GameSlots
from millrace.envs.make import load_object
from millrace.envs.protocol import EnvRow, SlotEnv
from millrace.errors import ConfigError, EnvError
from millrace.types import Array, EpisodeRecord

RETURN_TOLERANCE = 1e-4
REALM_PLAYERS = ("walker", "oracle")


def make_player(name: str, env: SlotEnv, seed: int) -> Player:
    """The player that `imitate.player` names, recorded games apart, for the slots of one environment.

    Raises:
        ConfigError: there is no such player, or it cannot play this.
    """
    if name in REALM_PLAYERS:
        return checked(_realm_player(name, env), name)
    if name == "random":
        choose = random_choice(env.spec, seed)
        return checked(lambda env, row: choose(row.observation, row.action_mask, row.terminated), name)
    if ":" in name:
        return checked(_function_player(load_object(name, "imitate.player")), name)
    raise ConfigError(
        f"imitate.player={name!r} is nobody; use {', '.join(REALM_PLAYERS)}, random, module:function or FILE.jsonl"
    )


def _realm_player(name: str, env: SlotEnv) -> Player:
    from millrace.games.realm.game import RealmGame
    from millrace.games.realm.oracle import Oracle, build_tables
    from millrace.games.realm.walker import walker_actions

    game = env.game if isinstance(env, GameSlots) else None
    if not isinstance(game, RealmGame):
        raise ConfigError(f"imitate.player={name} plays Realm alone, without wrappers and not env.vectorization=single")
    act = walker_actions if name == "walker" else Oracle(game, build_tables(game))
    return lambda env, row: act(game)[:, None]


def _function_player(function: Callable[[dict[str, Array], Array | None], Any]) -> Player:
    def play(env: SlotEnv, row: EnvRow) -> Array:
        action = np.asarray(function(row.observation, row.action_mask))
        return action[:, None] if action.ndim == 1 else action

    return play


def checked(player: Player, name: str) -> Player:
    """The player, watched: what it may not do ends the run with a sentence."""

    def play(env: SlotEnv, row: EnvRow) -> Array:
        action = player(env, row)
        wanted = (env.num_slots, env.spec.action.num_columns)
        if action.shape != wanted:
            raise EnvError(f"the player {name} gave actions {list(action.shape)}; they must be {list(wanted)}")
        _refuse_illegal(action, env, row, name)
        return action

    return play


def _refuse_illegal(action: Array, env: SlotEnv, row: EnvRow, name: str) -> None:
    counts = ~(row.terminated | row.truncated) | env.same_step_reset  # else the step resets, whatever the action
    first = 0
    for column, size in enumerate(env.spec.action.nvec):
        chosen = action[:, column].astype(np.int64)
        legal = (chosen >= 0) & (chosen < size)
        if row.action_mask is not None:
            legal &= row.action_mask[np.arange(len(chosen)), first + np.clip(chosen, 0, size - 1)]
        if (counts & ~legal).any():
            slot = int(np.flatnonzero(counts & ~legal)[0])
            seed = int(env.episode_seeds()[slot])
            raise EnvError(
                f"the player {name} chose {action[slot].tolist()} in slot {slot}, episode seed {seed}: "
                f"column {column} is not within 0..{size - 1}, or masked"
            )
        first += size


class RecordedPlayer:
    """Plays recorded games, one after another in each slot and from the first again after the last.

    Args:
        name: the file's, for messages.
    """

    def __init__(self, games: Sequence[RecordedGame], num_slots: int, name: str) -> None:
        self._games, self._num_slots, self._name = games, num_slots, name
        self._episode = np.zeros(num_slots, np.int64)
        self._step = np.zeros(num_slots, np.int64)
        self._returns = {game.seed: game.episode_return for game in games}

    @property
    def options(self) -> dict[str, Any]:
        """What the environment is to be reset with.

        Raises:
            ConfigError: games with different options, which slots that step together cannot play.
        """
        if any(game.options != self._games[0].options for game in self._games):
            raise ConfigError(f"{self._name}: its games have different options; one file for each")
        return self._games[0].options

    def game(self, slot: int, episode: int) -> RecordedGame:
        """Which game a slot plays as its k-th episode."""
        return self._games[(slot + episode * self._num_slots) % len(self._games)]

    def __call__(self, env: SlotEnv, row: EnvRow) -> Array:
        """See `millrace.collect.collector.Player`."""
        if env.same_step_reset or (env.episode_seeds() < 0).any():
            raise EnvError(f"{self._name}: this environment draws its own seeds; games cannot be played again in it")
        action = np.zeros((env.num_slots, env.spec.action.num_columns), env.spec.action.dtype)
        done = row.terminated | row.truncated
        for slot in range(env.num_slots):
            game = self.game(slot, int(self._episode[slot]))
            if bool(done[slot]) != (self._step[slot] == len(game.actions)):
                raise self._elsewhere(game, f"it is {'over' if done[slot] else 'not over'} after {self._step[slot]}")
            if done[slot]:  # the step to come resets
                self._episode[slot] += 1
                self._step[slot] = 0
            else:
                action[slot] = game.actions[self._step[slot]]
                self._step[slot] += 1
        return action

    def check(self, record: EpisodeRecord) -> None:
        """Hold a finished episode to what was recorded of it.

        Raises:
            EnvError: it came to another return.
        """
        wanted = self._returns.get(record.seed)
        if wanted is not None and abs(record.episode_return - wanted) > RETURN_TOLERANCE * max(1.0, abs(wanted)):
            game = next(game for game in self._games if game.seed == record.seed)
            raise self._elsewhere(game, f"its return is {record.episode_return:g}, and was {wanted:g}, after all")

    def _elsewhere(self, game: RecordedGame, what: str) -> EnvError:
        return EnvError(
            f"{self._name}: the game of seed {game.seed} leads elsewhere here: {what} of its {len(game.actions)} "
            "steps; play it with the environment, arguments and wrappers that it was recorded with"
        )
