"""The rollouts that wait to be learned from, each used once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from millrace.types import EpisodeRecord, Rollout, RolloutLayout


@dataclass(frozen=True)
class Item:
    """A finished rollout in its place.

    Attributes:
        version: policy version that it was collected with.
        place: index into the slab.
    """

    worker: int
    version: int
    place: int
    episodes: tuple[EpisodeRecord, ...] = ()


@dataclass
class Batch:
    """What one update learns from: the columns of several rollouts side by side.

    Attributes:
        items: where each block of `slots_per_item` columns came from, left to right.
        lag: largest difference between the learner's version and a rollout's.
    """

    rollout: Rollout
    items: list[Item]
    slots_per_item: int
    version: int
    env_steps: int = 0

    @property
    def lag(self) -> int:
        return max(self.version - item.version for item in self.items)

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
        return [episode for item in self.items for episode in item.episodes]

    def blocks(self) -> list[tuple[int, Rollout]]:
        """(worker, its columns) for each item."""
        width = self.slots_per_item
        return [(item.worker, self.rollout.columns(i * width, (i + 1) * width)) for i, item in enumerate(self.items)]


@dataclass
class RolloutQueue:
    """Ready rollouts, oldest policy first; a batch takes `batch_size_rollouts` of them and copies them out."""

    layout: RolloutLayout
    batch_size_rollouts: int
    _ready: list[Item] = field(default_factory=list)

    def __post_init__(self) -> None:
        wide = RolloutLayout(
            self.layout.spec,
            self.layout.num_steps,
            self.layout.num_slots * self.batch_size_rollouts,
            self.layout.same_step_reset,
            self.layout.state_size,
        )
        self._target = wide.allocate()
        self._columns = [
            self._target.columns(i * self.layout.num_slots, (i + 1) * self.layout.num_slots)
            for i in range(self.batch_size_rollouts)
        ]

    def __len__(self) -> int:
        return len(self._ready)

    def insert(self, item: Item) -> None:
        self._ready.append(item)

    def workers(self) -> set[int]:
        """Whose rollouts are ready."""
        return {item.worker for item in self._ready}

    def drop_stale(self, oldest_version: int) -> list[Item]:
        """Take out everything collected with a version below `oldest_version`."""
        dropped = [item for item in self._ready if item.version < oldest_version]
        self._ready = [item for item in self._ready if item.version >= oldest_version]
        return dropped

    def take(self, rollouts: list[Rollout], version: int) -> Batch:
        """The oldest rollouts, copied side by side in order of worker; their places can then be released."""
        # Stable: among equals the first to arrive goes first.
        self._ready.sort(key=lambda item: item.version)
        taken, self._ready = self._ready[: self.batch_size_rollouts], self._ready[self.batch_size_rollouts :]
        taken.sort(key=lambda item: item.worker)
        for item, target in zip(taken, self._columns, strict=True):
            for (_, into), (_, source) in zip(target.fields(), rollouts[item.place].fields(), strict=True):
                np.copyto(into, source)
        env_steps = int(self._target.valid.sum())
        return Batch(self._target, taken, self.layout.num_slots, version, env_steps)
