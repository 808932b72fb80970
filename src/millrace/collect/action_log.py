"""The actions since each episode began, in shared memory, so that they outlive a worker that dies."""

from __future__ import annotations

from typing import Any

import numpy as np

from millrace.envs.protocol import episode_seed
from millrace.types import Array, Rollout, RolloutLayout

HEADER_WORDS = 1  # steps recorded so far
SLOT_WORDS = 4


class ActionLog:
    """A ring of the last `capacity_steps` actions of every slot, written one rollout at a time."""

    def __init__(self, memory: memoryview, layout: RolloutLayout, capacity_steps: int) -> None:
        slots, columns = layout.num_slots, layout.spec.action.num_columns
        self._capacity = capacity_steps
        self._recorded = np.ndarray((1,), np.int64, buffer=memory)
        offset = 8 * HEADER_WORDS
        # Step at which each slot's episode began, its number, its seed, and whether it began before the log.
        self._starts, self._episodes, self._seeds, self._cut = (
            np.ndarray((slots,), np.int64, buffer=memory, offset=offset + 8 * slots * i) for i in range(SLOT_WORDS)
        )
        dtype = np.dtype(layout.spec.action.dtype)
        self._ring = np.ndarray(
            (capacity_steps, slots, columns), dtype, buffer=memory, offset=offset + 8 * SLOT_WORDS * slots
        )

    @staticmethod
    def nbytes(layout: RolloutLayout, capacity_steps: int) -> int:
        action = layout.spec.action
        per_step = layout.num_slots * action.num_columns * np.dtype(action.dtype).itemsize
        return 8 * (HEADER_WORDS + SLOT_WORDS * layout.num_slots) + capacity_steps * per_step

    def clear(self, seeds: Array, episodes: Array | int = 0, cut: bool = False) -> None:
        """A worker begins with episodes of these seeds and numbers; cut ones began before the log."""
        self._recorded[0] = 0
        self._starts[:], self._episodes[:], self._seeds[:], self._cut[:] = 0, episodes, seeds, cut

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
            self._cut[ended] = False
        self._seeds[:] = seeds
        self._recorded[0] = first + steps

    def slots(self, rollout: Rollout | None, steps_in_rollout: int, stream_seed: int) -> list[dict[str, Any]]:
        """For each slot the seed and actions of its episode, with the rollout that was being written."""
        taken = 0 if rollout is None else steps_in_rollout
        return [self._slot(slot, rollout, taken, stream_seed) for slot in range(len(self._starts))]

    def _slot(self, slot: int, rollout: Rollout | None, taken: int, stream_seed: int) -> dict[str, Any]:
        recorded, start, episode = int(self._recorded[0]), int(self._starts[slot]), int(self._episodes[slot])
        seed, cut = int(self._seeds[slot]), bool(self._cut[slot])
        partial = self._ring[:0, slot] if rollout is None else rollout.action[:taken, slot]
        # The step under way has no flags yet.
        done = (
            np.zeros(0, bool)
            if rollout is None
            else (rollout.terminated | rollout.truncated)[: max(taken - 1, 0), slot]
        )
        if done.any():
            start = recorded + len(done) - 1 - int(done[::-1].argmax()) + 2
            episode += int(done.sum())
        if start > recorded:  # the episode began in this rollout, after its worker last told its seeds
            seed, cut = episode_seed(stream_seed, slot, episode) if seed >= 0 else seed, False
        steps = np.arange(min(start, recorded), recorded)
        past = self._ring[steps[-self._capacity :] % self._capacity, slot]
        actions = np.concatenate([past, partial[max(0, start - recorded) :]])
        complete = not cut and len(steps) <= self._capacity
        return {
            "slot": slot,
            "seed": seed,
            "start_step": start,
            "complete": complete,
            "actions": actions.tolist(),
        }
