"""The seam for rewards that do not come from the game."""

from __future__ import annotations

from typing import Any, Protocol

from millrace.buffer.batch import Batch
from millrace.types import Array, Rollout


class Intrinsic(Protocol):
    """Rewards transitions beside the game: for novelty, for progress towards a subgoal, for anything a rollout shows.

    `Learner.update` calls `reward` once, before it computes advantages, and `learn` once, after its epochs; an update
    that skipped a gradient step, because something in the batch was not finite, is not learned from.
    `millrace.learner.rnd.RND` is a worked example.
    """

    def reward(self, rollout: Rollout) -> Array:
        """[T, B] float32, added to the game's reward after its scaling and clipping; changes nothing.

        In units of the scaled reward, any coefficient included. Row t is the transition from `rollout.present(key)[t]`
        to `[t + 1]`; where `rollout.valid` is False it counts for nothing.
        """

    def learn(self, batch: Batch) -> dict[str, float]:
        """Train, and add the batch to statistics, once; figures for the metrics.

        `batch.blocks()` tells which columns belong to which worker's slots, for what is carried from one
        rollout to the next.
        """

    def save_state(self) -> dict[str, Any]:
        """All that `reward` and `learn` depend on, random states too, as plain values and NumPy arrays."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue exactly where `save_state` was taken."""
