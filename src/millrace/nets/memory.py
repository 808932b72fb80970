"""What a policy knows of a slot besides its present observation: earlier frames, and a recurrent state."""

from __future__ import annotations

from typing import Any

import numpy as np

from millrace.types import Array, SlotSpec

MAX_AGE = 255


class Memory:
    """The memory of B slots of one policy. For a policy without any, everything here does nothing.

    `begin` the slots whose episode is new, then `see` each observation once, then act on what it returns.

    Attributes:
        state: [B, S] float32 recurrent state, which the actor overwrites; None without recurrence.
        age: [B] observations of the episode before the present one, up to 255.
    """

    def __init__(self, spec: SlotSpec, state_size: int, num_slots: int) -> None:
        self.state = np.zeros((num_slots, state_size), np.float32) if state_size else None
        self.age = np.full(num_slots, -1, np.int64)
        self.frames = {
            key: np.zeros((num_slots, *array.seen_shape), array.dtype)
            for key, array in spec.observation.items()
            if array.stack > 1
        }
        self.is_empty = self.state is None and not self.frames

    def begin(self, slots: Array) -> None:
        """Forget the slots of a mask [B] bool."""
        if self.is_empty:
            return
        self.age[slots] = -1
        if self.state is not None:
            self.state[slots] = 0.0

    def see(self, observation: dict[str, Array]) -> dict[str, Array]:
        """Take in one observation [B, ...] of every slot; what the policy sees of it, valid until the next one.

        Before an episode's first frame there is nothing: it stands in for those that are missing.
        """
        if self.is_empty:
            return observation
        np.minimum(self.age + 1, MAX_AGE, out=self.age)
        begun = self.age == 0
        for key, frames in self.frames.items():
            frames[:, :-1] = frames[:, 1:]
            frames[:, -1] = observation[key]
            if begun.any():
                frames[begun] = frames[begun, -1:]
        return self.seen(observation)

    def seen(self, observation: dict[str, Array]) -> dict[str, Array]:
        """What the policy sees of the observation that was taken in last."""
        return {**observation, **self.frames} if self.frames else observation

    def peek(self, slots: Array, observation: dict[str, Array]) -> tuple[dict[str, Array], Array | None]:
        """What some slots [K] would see next, and a copy of their state, without taking it in."""
        state = None if self.state is None else self.state[slots]
        frames = {
            key: np.concatenate([frames[slots, 1:], observation[key][:, None]], axis=1)
            for key, frames in self.frames.items()
        }
        return {**observation, **frames}, state

    def save_state(self) -> dict[str, Any]:
        """Copies of everything."""
        return {
            "age": self.age.copy(),
            "state": None if self.state is None else self.state.copy(),
            "frames": {key: frames.copy() for key, frames in self.frames.items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `save_state`."""
        self.age[...] = state["age"]
        if self.state is not None:
            self.state[...] = state["state"]
        for key, frames in self.frames.items():
            frames[...] = state["frames"][key]
