"""What every built-in game offers: many slots of one game, stepped by arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
Observation = dict[str, npt.NDArray[Any]]
GameState = dict[str, npt.NDArray[Any]]

ACTION_MASK = "action_mask"
"""Observation key of the legal actions: uint8, shape (num_actions,), 1 legal."""


@dataclass(frozen=True)
class ObservationField:
    """One array of an observation, without the slot axis."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    low: float
    high: float


class BatchedGame(Protocol):
    """Many slots of one game. B is `num_slots` throughout; arrays are C-contiguous.

    An episode is a pure function of (seed, the options it began with, the actions). Nothing resets by itself:
    a finished slot keeps its final state until `reset` selects it.
    """

    num_slots: int
    num_actions: int
    observation_fields: Mapping[str, ObservationField]

    def reset(self, slots: BoolArray, seeds: npt.NDArray[np.uint64]) -> None:
        """Begin a new episode in each slot where `slots[B]` is true, from `seeds[B]` (others are not read)."""

    def set_options(self, options: Mapping[str, Any]) -> None:
        """Change options by name, for each slot from its next `reset` on: an episode in progress keeps its own.

        Raises ValueError, and changes nothing, for an unknown option, for a value that cannot be played, and for an
        option that a live game cannot change; the message names it and says why.
        """

    def step(
        self,
        action: npt.NDArray[np.int64],
        active: BoolArray,
        reward: npt.NDArray[np.float32],
        terminated: BoolArray,
        truncated: BoolArray,
    ) -> None:
        """Advance the slots where `active[B]`; write reward [B] and flags [B] (0 and False in the others).

        A reward of NaN says that the step's score was lost; the episode goes on, or has ended, as the flags say.

        Raises ValueError, and moves no slot, when an active slot has no running episode or its action
        is outside 0..num_actions-1.
        """

    def observe(self, observation: Observation) -> None:
        """Write every slot's present observation, the final one of a finished slot too, into the arrays [B, ...]."""

    def episode_figures(self, slot: int) -> dict[str, float]:
        """The game's own figures of the slot's episode; read when it has ended and before the next reset."""

    def save_state(self) -> GameState:
        """Everything needed to go on, as copies in plain arrays; saving changes nothing."""

    def load_state(self, state: GameState) -> None:
        """Put a saved state back; going on from it is bit-identical to never having stopped."""

    def close(self) -> None:
        """Release what the game holds; a second call does nothing."""
