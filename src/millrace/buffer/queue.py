"""The rollouts that wait to be learned from, each used once."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from millrace.buffer.batch import Batch, Item
from millrace.buffer.slab import Slab
from millrace.types import RolloutLayout


class EarlyUploads(Protocol):
    """Who copies observations to the learner's device before a batch is put together; `millrace.learner.uploads`."""

    def begin(self, place: int) -> None:
        """Have what lies in a place copied."""

    def finish(self, place: int) -> None:
        """Wait until the place may be written to."""

    def columns(self, places: list[int]) -> dict[str, Any]:
        """What was copied from some places, side by side: tensors by key."""

    def close(self) -> None:
        """Let go of the places."""


class RolloutQueue:
    """Ready rollouts, oldest policy first; a batch takes `batch_size_rollouts` of them and copies them out.

    Args:
        slab: where they lie.
        max_policy_lag: updates that a rollout may wait for and still be learned from.
        uploads: told of every rollout that comes and goes.
    """

    def __init__(
        self, slab: Slab, batch_size_rollouts: int, max_policy_lag: int, uploads: EarlyUploads | None = None
    ) -> None:
        self.slab = slab
        self._uploads = uploads
        self.batch_size_rollouts = batch_size_rollouts
        self._max_policy_lag = max_policy_lag
        self._ready: list[Item] = []
        layout = slab.layout
        wide = RolloutLayout(
            layout.spec,
            layout.num_steps,
            layout.num_slots * batch_size_rollouts,
            layout.same_step_reset,
            layout.state_size,
        )
        self._target = wide.allocate()
        self._columns = [
            self._target.columns(i * layout.num_slots, (i + 1) * layout.num_slots) for i in range(batch_size_rollouts)
        ]

    def __len__(self) -> int:
        return len(self._ready)

    def insert(self, item: Item) -> None:
        self._ready.append(item)
        if self._uploads is not None:
            self._uploads.begin(item.place)

    def _release(self, item: Item) -> None:
        if self._uploads is not None:
            self._uploads.finish(item.place)
        self.slab.release(item.place)

    def waiting(self) -> list[Item]:
        """What is ready and has not been learned from."""
        return list(self._ready)

    def admits(self, num_granted: int, updates_ahead: int) -> bool:
        """Whether a rollout granted now would be learned from before it is too old.

        Args:
            num_granted: rollouts under way.
            updates_ahead: of the newest published weights: made since, or under way.
        """
        return updates_ahead + (num_granted + len(self)) // self.batch_size_rollouts <= self._max_policy_lag

    def can_take(self) -> bool:
        """Whether there is a batch."""
        return len(self) >= self.batch_size_rollouts

    def drop_stale(self, oldest_version: int) -> list[int]:
        """Let go of everything collected with a version below `oldest_version`; the transitions of each rollout."""
        dropped = [item for item in self._ready if item.version < oldest_version]
        self._ready = [item for item in self._ready if item.version >= oldest_version]
        lost = [int(self.slab.rollouts[item.place].valid.sum()) for item in dropped]
        for item in dropped:
            self._release(item)
        return lost

    def take(self, version: int, progress: float = 0.0) -> Batch:
        """The oldest rollouts, copied side by side in order of worker; their places are free again."""
        # Stable: among equals the first to arrive goes first.
        self._ready.sort(key=lambda item: (item.turn, item.version))
        taken, self._ready = self._ready[: self.batch_size_rollouts], self._ready[self.batch_size_rollouts :]
        taken.sort(key=lambda item: item.worker)
        for item, target in zip(taken, self._columns, strict=True):
            for (_, into), (_, source) in zip(target.fields(), self.slab.rollouts[item.place].fields(), strict=True):
                np.copyto(into, source)
        uploaded = None if self._uploads is None else self._uploads.columns([item.place for item in taken])
        for item in taken:
            self._release(item)
        env_steps, width = int(self._target.valid.sum()), self.slab.layout.num_slots
        workers = np.repeat([item.worker for item in taken], width)
        return Batch(self._target, taken, width, version, env_steps, workers=workers, uploaded=uploaded)

    def figures(self) -> dict[str, float]:
        """Nothing that the lag does not tell."""
        return {}

    def feedback(self, batch: Batch) -> None:
        """What learning found out about a batch; here each rollout is used once, and nobody asks again."""

    def close(self) -> None:
        """Let go of the slab."""
        if self._uploads is not None:
            self._uploads.close()
