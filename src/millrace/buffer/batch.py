"""What one update learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from millrace.types import Array, EpisodeRecord, Rollout


@dataclass(frozen=True)
class Item:
    """A finished rollout in its place.

    Attributes:
        version: policy version that it was collected with.
        place: index into the slab.
        turn: the batch that it was granted for, where batches are dealt out in turn.
    """

    worker: int
    version: int
    place: int
    episodes: tuple[EpisodeRecord, ...] = ()
    turn: int = 0


@dataclass(frozen=True)
class Refresh:
    """A rollout whose cached errors are to be computed anew.

    Attributes:
        error: [T + 1, B] float32, written: by how much the value targets exceed the values; the last row stays 0.
    """

    rollout: Rollout
    error: Array


@dataclass
class Draws:
    """How a batch was drawn from a replay buffer.

    Attributes:
        keys: [N] of the items.
        weight: [N] float32 importance weights, the largest 1.
        refresh: rollouts to be refreshed before the batch is learned from; single steps only.
        carried: after that, [N] cached error of the step behind each drawn one; None for whole columns.
        target_age: mean updates since the cached errors of the drawn steps were computed.
        error: [T, N] by how much the value targets exceed the values: written by the learner.
        priority: [T, N] temporal-difference error or advantage of each row: written by the learner.
    """

    keys: Array
    weight: Array
    refresh: list[Refresh] = field(default_factory=list)
    carried: Callable[[], Array] | None = None
    target_age: float = 0.0
    error: Array | None = None
    priority: Array | None = None


@dataclass
class Batch:
    """The columns that one update learns from, side by side.

    Attributes:
        rollout: [T, N] steps and columns.
        version: updates made so far.
        items: rollouts that have come since the batch before. In a queue they are the batch, left to right, and have
            `slots_per_item` columns each.
        env_steps: transitions of those rollouts.
        draws: where the rows were drawn from a replay buffer.
        fresh: the rollouts of `items`, where they are not the batch itself.
        gone: rollouts that have come since and were overwritten before this batch could tell of them; `env_steps` and
            `episodes` count them.
        workers: [N] whose column each one is.
        emphasis: [N] float32 what each column weighs; None for 1.
        uploaded: the observations of `rollout` as tensors on the learner's device, where they are there already.
    """

    rollout: Rollout
    items: list[Item]
    slots_per_item: int
    version: int
    env_steps: int = 0
    draws: Draws | None = None
    fresh: list[Rollout] | None = None
    gone: list[Item] = field(default_factory=list)
    workers: Array | None = None
    emphasis: Array | None = None
    uploaded: dict[str, Any] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing in it can be learned from."""
        return not self.rollout.valid.any()

    @property
    def lag(self) -> int:
        """The largest difference between the learner's version and a row's."""
        return int(self.lags()["policy_lag"])

    def lags(self) -> dict[str, float]:
        """Largest, mean and smallest lag over the rows that count."""
        lag = self.version - self.rollout.policy_version[self.rollout.valid]
        return {
            "policy_lag": float(lag.max()),
            "policy_lag_mean": float(lag.mean()),
            "policy_lag_min": float(lag.min()),
        }

    @property
    def episodes(self) -> list[EpisodeRecord]:
        return [episode for item in (*self.gone, *self.items) for episode in item.episodes]

    def blocks(self) -> list[tuple[int, Rollout]]:
        """(worker, rollout) of everything that has come since the batch before, for what counts each row once."""
        width = self.slots_per_item
        rollouts = self.fresh
        if rollouts is None:
            rollouts = [self.rollout.columns(i * width, (i + 1) * width) for i in range(len(self.items))]
        return [(item.worker, rollout) for item, rollout in zip(self.items, rollouts, strict=True)]
