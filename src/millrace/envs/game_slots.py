"""A compiled game of `millrace.games`, used without Gymnasium in between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from millrace.envs.protocol import EnvRow, FinalObservation, SeedOf
from millrace.envs.spaces import MASK_KEY, slot_spec
from millrace.errors import EnvError
from millrace.games.protocol import BatchedGame
from millrace.types import Array, SlotSpec


class GameSlots:
    """Adapts a `BatchedGame` to `SlotEnv`: it writes straight into the rollout, and saves its whole state."""

    same_step_reset = False
    final: FinalObservation | None = None
    exactness = "state"

    def __init__(
        self,
        game: BatchedGame,
        spaces: tuple[gym.Space[Any], gym.Space[Any]],
        seed_of: SeedOf,
        on_bad_value: str = "count",
    ) -> None:
        self.game = game
        self.bad_values = 0
        self._refuse = on_bad_value == "refuse"
        self.spaces = spaces
        self.spec: SlotSpec = slot_spec(*spaces, mask_in_info=False)
        self.num_slots = game.num_slots
        self._seed_of = seed_of
        self._done = np.ones(self.num_slots, bool)
        self._episodes = np.zeros(self.num_slots, np.int64)
        self._seeds = np.full(self.num_slots, -1, np.int64)
        self._mask = np.zeros((self.num_slots, self.spec.num_mask_bits), np.uint8)
        self._figures: list[tuple[int, int, dict[str, float]]] = []

    def set_options(self, options: Mapping[str, Any]) -> None:
        try:
            self.game.set_options(options)
        except (TypeError, ValueError) as error:
            raise EnvError(str(error)) from error

    def reset(self, row: EnvRow) -> None:
        self._begin(np.ones(self.num_slots, bool))
        row.reward[:], row.valid[:], row.terminated[:], row.truncated[:] = 0.0, False, False, False
        self._done = np.zeros(self.num_slots, bool)
        self._observe(row)

    def _begin(self, slots: Array) -> None:
        for slot in np.flatnonzero(slots):
            self._seeds[slot] = self._seed_of(int(slot), int(self._episodes[slot]))
            self._episodes[slot] += 1
        self.game.reset(slots, self._seeds.astype(np.uint64))

    def step(self, action: Array, row: EnvRow) -> None:
        active = ~self._done
        self.game.step(action[:, 0].astype(np.int64), active, row.reward, row.terminated, row.truncated)
        if self._done.any():
            self._begin(self._done)
        row.valid[:] = active
        self._observe(row)
        self._done = np.logical_or(row.terminated, row.truncated)
        lost = np.isnan(row.reward)
        for slot in np.flatnonzero(self._done):
            figures = {} if lost[slot] else self.game.episode_figures(int(slot))
            self._figures.append((int(slot), int(self._seeds[slot]), figures))
        if lost.any():
            self._count_bad(lost, row)

    def _count_bad(self, lost: Array, row: EnvRow) -> None:
        """The game itself goes on, so its flags stay as they are: only these transitions count for nothing."""
        if self._refuse:
            slot = int(np.flatnonzero(lost)[0])
            raise EnvError(f"slot {slot}, episode seed {self._seeds[slot]}: the step's score was lost")
        self.bad_values += int(lost.sum())
        row.reward[lost], row.valid[lost] = 0.0, False

    def _observe(self, row: EnvRow) -> None:
        self.game.observe({**row.observation, MASK_KEY: self._mask} if self.spec.has_action_mask else row.observation)
        if row.action_mask is not None:
            row.action_mask[...] = self._mask

    def pop_figures(self) -> list[tuple[int, int, dict[str, float]]]:
        figures, self._figures = self._figures, []
        return figures

    def episode_seeds(self) -> Array:
        return self._seeds

    def save_state(self) -> dict[str, Any] | None:
        return {
            "game": self.game.save_state(),
            "done": self._done.copy(),
            "episodes": self._episodes.copy(),
            "seeds": self._seeds.copy(),
            "bad_values": self.bad_values,
        }

    def load_state(self, state: dict[str, Any], row: EnvRow) -> None:
        self.game.load_state(state["game"])
        self._done = np.array(state["done"], bool)
        self._episodes, self._seeds = np.array(state["episodes"]), np.array(state["seeds"])
        self.bad_values = int(state["bad_values"])
        self._observe(row)

    def render(self, slot: int) -> Array | None:
        render = getattr(self.game, "render", None)
        return None if render is None else np.asarray(render(slot))

    def close(self) -> None:
        close = getattr(self.game, "close", None)
        if close is not None:
            close()
