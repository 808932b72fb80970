"""The one form in which collectors meet environments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from millrace.types import Array, SlotSpec

SeedOf = Callable[[int, int], int]  # (slot, number of its episode) to the seed of that episode


@dataclass(frozen=True)
class EnvRow:
    """Where an environment writes what one step of B slots gives: views into a rollout.

    Attributes:
        observation: [B, ...] per key; after a done step the final observation, before any reset.
        action_mask: [B, M] bool, unpacked; None where the game has none.
        reward, terminated, truncated, valid: [B] of the transition that led here.
    """

    observation: dict[str, Array]
    action_mask: Array | None
    reward: Array
    terminated: Array
    truncated: Array
    valid: Array


@dataclass(frozen=True)
class FinalObservation:
    """The final observations of slots that were reset in the same step, which have no row of their own."""

    slots: Array  # [K] int
    observation: dict[str, Array]  # [K, ...]


class SlotEnv(Protocol):
    """B slots that step together.

    A slot whose last transition was done is reset by its next `step`, whatever the action: that transition has
    `valid` False, reward 0, and both flags False. With `same_step_reset` it is reset at once instead, its row
    holds the first observation of the new episode, and `final` the one before.
    """

    spec: SlotSpec
    spaces: tuple[gym.Space[Any], gym.Space[Any]]  # observation and action space of one slot
    num_slots: int
    same_step_reset: bool
    final: FinalObservation | None
    bad_values: int  # rows invalidated so far because a reward or observation was missing or not finite
    exactness: str  # how episodes in progress come back at resume: "state", "replay", or why they cannot

    def set_options(self, options: Mapping[str, Any]) -> None:
        """Options for every slot's next episodes; those in progress keep the ones that they began with.

        Raises:
            EnvError: one that is unknown, or cannot be changed.
        """

    def reset(self, row: EnvRow) -> None:
        """Begin a new episode in every slot and write its first observation."""

    def step(self, action: Array, row: EnvRow) -> None:
        """Advance every slot by `action` [B, A]; the arrays of `row` are overwritten completely."""

    def pop_figures(self) -> list[tuple[int, int, dict[str, float]]]:
        """(slot, seed, the game's own numbers) of the episodes that ended since the last call, in order."""

    def episode_seeds(self) -> Array:
        """[B] int64 seeds of the episodes in progress; -1 where the environment draws its own."""

    def save_state(self) -> dict[str, Any] | None:
        """Everything needed to continue, as plain JSON values and arrays; None where that is impossible."""

    def load_state(self, state: dict[str, Any], row: EnvRow) -> None:
        """Continue from a saved state: also rewrites the current observation.

        Raises:
            EnvError: the state does not fit, or replayed actions lead elsewhere.
        """

    def render(self, slot: int) -> Array | None:
        """[H, W, 3] uint8 picture of one slot, or None."""

    def close(self) -> None:
        """Release what the environments hold."""


def episode_seed(stream_seed: int, slot: int, episode: int) -> int:
    """The seed of one episode, 0 <= seed < 2^31, from the worker's seed, its slot and the episode's number.

    Two rounds of SplitMix64 over the three numbers (Steele 2014): neighbours get unrelated seeds.
    """
    state = (stream_seed * 0x9E3779B97F4A7C15 + slot * 0xBF58476D1CE4E5B9 + episode * 0x94D049BB133111EB) % 2**64
    for _ in range(2):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return state >> 33


def plain_numbers(info: dict[str, Any]) -> dict[str, float]:
    """The entries of an `info` that are single finite numbers."""
    figures = {}
    for key, value in info.items():
        if isinstance(value, int | float | np.number | np.bool_) and np.isfinite(value):
            figures[key] = float(value)
    return figures
