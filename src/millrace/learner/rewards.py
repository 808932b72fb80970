"""Reward scaling by the deviation of the discounted return."""

from __future__ import annotations

from typing import Any

import numpy as np

from millrace.types import Array, Rollout


class RewardScaler:
    """Divides rewards by the running deviation of the discounted return of each slot (Huang 2022, continuous 8 and 9).

    Statistics grow by each inserted rollout once, after it was learned from.
    """

    CLIP = 10.0

    def __init__(self, gamma: float) -> None:
        self._gamma = gamma
        self._running: dict[int, Array] = {}  # by worker: [B] discounted return so far
        self._count, self._mean, self._sum_of_squares = 0.0, 0.0, 0.0

    def scale(self, reward: Array) -> Array:
        """[T, B] rewards in units of the return's deviation so far; unchanged before there is one."""
        if self._count < 2:
            return reward
        deviation = np.sqrt(self._sum_of_squares / self._count + 1e-8)
        return np.clip(reward / np.float32(deviation), -self.CLIP, self.CLIP)

    def update(self, worker: int, rollout: Rollout) -> None:
        """Add one worker's rollout to the statistics."""
        running = self._running.setdefault(worker, np.zeros(rollout.num_slots))
        done = rollout.terminated | rollout.truncated
        returns = np.empty(rollout.reward.shape)
        for t in range(rollout.num_steps):
            running *= self._gamma
            running += rollout.reward[t]
            returns[t] = running
            running[done[t]] = 0.0
        self._add(returns[rollout.valid])

    def _add(self, values: Array) -> None:
        if not values.size:
            return
        mean, count = float(values.mean()), float(values.size)
        delta, total = mean - self._mean, self._count + count
        self._sum_of_squares += float(((values - mean) ** 2).sum()) + delta**2 * self._count * count / total
        self._mean += delta * count / total
        self._count = total

    def save_state(self) -> dict[str, Any]:
        """Plain numbers and arrays."""
        return {
            "count": self._count,
            "mean": self._mean,
            "sum_of_squares": self._sum_of_squares,
            "running": {str(worker): array.copy() for worker, array in self._running.items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self._count, self._mean = float(state["count"]), float(state["mean"])
        self._sum_of_squares = float(state["sum_of_squares"])
        self._running = {int(worker): np.array(array, np.float64) for worker, array in state["running"].items()}
