"""The actions since each episode began, in shared memory, so that they outlive a worker that dies."""

from __future__ import annotations

from typing import Any

import numpy as np

from millrace.envs.protocol import episode_seed
from millrace.types import Array, Rollout, RolloutLayout

HEADER_WORDS = 1  # steps recorded so far


class ActionLog:
    """A ring of the last `capacity_steps` actions of every slot, written one rollout at a time."""

    def __init__(self, memory: memoryview, layout: RolloutLayout, capacity_steps: int) -> None:
        slots, columns = layout.num_slots, layout.spec.action.num_columns
        self._capacity = capacity_steps
        self._recorded = np.ndarray((1,), np.int64, buffer=memory)
        offset = 8 * HEADER_WORDS
        # Step at which each slot's episode began, its number and its seed.
        self._starts, self._episodes, self._seeds = (
            np.ndarray((slots,), np.int64, buffer=memory, offset=offset + 8 * slots * i) for i in range(3)
        )
        dtype = np.dtype(layout.spec.action.dtype)
        self._ring = np.ndarray((capacity_steps, slots, columns), dtype, buffer=memory, offset=offset + 24 * slots)

    @staticmethod
    def nbytes(layout: RolloutLayout, capacity_steps: int) -> int:
        action = layout.spec.action
        per_step = layout.num_slots * action.num_columns * np.dtype(action.dtype).itemsize
        return 8 * HEADER_WORDS + 24 * layout.num_slots + capacity_steps * per_step

    def clear(self, seeds: Array) -> None:
        """A new worker begins; its episodes have these seeds and are its first."""
        self._recorded[0] = 0
        self._starts[:], self._episodes[:], self._seeds[:] = 0, 0, seeds

    def append(self, rollout: Rollout, seeds: Array) -> None:
        """Record a whole rollout; `seeds` [B] are those of the episodes in progress after it."""
        first = int(self._recorded[0])
        steps = rollout.num_steps
        kept = min(steps, self._capacity)
        self._ring[(first + np.arange(steps - kept, steps)) % self._capacity] = rollout.action[steps - kept :]
        done = rollout.terminated | rollout.truncated
        ended = done.any(0)
        if ended.any():
            last = steps - 1 - done[::-1].argmax(0)
            # Row last + 1 is the reset transition, whose action the game never sees.
            self._starts[:] = np.where(ended, first + last + 2, self._starts)
            self._episodes += done.sum(0)
        self._seeds[:] = seeds
        self._recorded[0] = first + steps

    def slots(self, rollout: Rollout | None, steps_in_rollout: int, stream_seed: int) -> list[dict[str, Any]]:
        """For each slot the seed and actions of its episode, with the rollout that was being written."""
        entries = []
        for slot in range(len(self._starts)):
            start, seed = int(self._starts[slot]), int(self._seeds[slot])
            partial = rollout.action[:steps_in_rollout, slot] if rollout is not None else self._ring[:0, slot]
            if rollout is not None and steps_in_rollout:
                done = (rollout.terminated | rollout.truncated)[: steps_in_rollout - 1, slot]
                if done.any():
                    last = len(done) - 1 - int(done[::-1].argmax())
                    start, partial = int(self._recorded[0]) + last + 2, partial[last + 2 :]
                    episode = int(self._episodes[slot]) + int(done.sum())
                    seed = episode_seed(stream_seed, slot, episode) if seed >= 0 else seed
            entries.append({"slot": slot, "seed": seed, **self._actions(slot, start, partial)})
        return entries

    def _actions(self, slot: int, start: int, partial: Array) -> dict[str, Any]:
        recorded = int(self._recorded[0])
        steps = np.arange(min(start, recorded), recorded)
        complete = len(steps) <= self._capacity
        past = self._ring[steps[-self._capacity :] % self._capacity, slot] if self._capacity else partial[:0]
        return {"complete": bool(complete), "actions": np.concatenate([past, partial]).tolist()}
