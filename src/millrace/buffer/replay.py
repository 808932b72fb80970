"""Rollouts that are learned from more than once: slab x sampler x rate limiter."""

from __future__ import annotations

import collections
import time
from dataclasses import dataclass

import numpy as np

from millrace.buffer.batch import Batch, Draws, Item, Refresh
from millrace.buffer.rate_limiter import RateLimiter
from millrace.buffer.samplers import importance_weights, make_sampler, sequence_priority
from millrace.buffer.slab import Slab
from millrace.config import ReplayConfig
from millrace.types import Array, Rollout

NEVER = -1


@dataclass
class ReplayCounts:
    """What happened to items so far.

    Attributes:
        overwritten: they made room for newer ones; `unseen` of them had never been drawn.
        blocked: grants that waited because the buffer was full or far enough ahead.
    """

    inserted: int = 0
    drawn: int = 0
    overwritten: int = 0
    unseen: int = 0
    blocked: int = 0


class Replay:
    """A buffer from which items are drawn, each perhaps several times.

    An item is one slot's column of a rollout, or a single step. Its key is fixed by its place: rollout, then slot, or
    rollout, step and slot. Rollouts stay where collectors wrote them; drawing gathers from there.

    Args:
        slab: with room for the capacity, and for what is under way.
        config: resolved, without auto values.
        seed: of the draws.
    """

    def __init__(self, slab: Slab, config: ReplayConfig, seed: int) -> None:
        self.slab, self.config = slab, config
        self.counts = ReplayCounts()
        layout = slab.layout
        self._is_step = config.item == "step"
        self._per_place = layout.num_slots * (layout.num_steps if self._is_step else 1)
        num_places = len(slab.rollouts)
        self._sampler = make_sampler(config.sampler, num_places * self._per_place, config.alpha)
        self._limiter = RateLimiter(config.samples_per_insert, config.min_size_items, config.error_items)
        self._rng = np.random.default_rng(seed)
        self._begin_s = time.monotonic()
        self._held: collections.OrderedDict[int, Item] = collections.OrderedDict()  # by place, oldest first
        self._max_places = config.capacity_items // self._per_place
        self._num_live = np.zeros(num_places, np.int64)
        self._is_live = np.zeros(num_places * self._per_place, bool)
        self._times_drawn = np.zeros(num_places * self._per_place, np.int64)
        self._fresh: list[Item] = []
        self._gone: list[Item] = []  # overwritten while they were
        self._new_env_steps = 0
        self._worker_of_place = np.zeros(num_places, np.int64)
        self._stacked = slab.stacked()
        # [P, T + 1, B] by how much value targets exceed values; the row behind the last is not part of the rollout.
        shape = (num_places, layout.num_steps + 1, layout.num_slots) if self._is_step else (0, 0, 0)
        self._error = np.zeros(shape, np.float32)
        self._refreshed_at = np.full(num_places, NEVER, np.int64)

    def __len__(self) -> int:
        """Items held."""
        return int(self._num_live.sum())

    def waiting(self) -> list[Item]:
        """Rollouts that have come and no batch has told of."""
        return list(self._fresh)

    def insert(self, item: Item) -> None:
        """Take over a finished rollout; the oldest makes room for it."""
        while len(self._held) >= self._max_places:
            self._overwrite(next(iter(self._held.values())))
        keys = self._first_key(item) + np.flatnonzero(self._holds_experience(item))
        self._is_live[keys], self._times_drawn[keys] = True, 0
        self._num_live[item.place] = len(keys)
        self._worker_of_place[item.place] = item.worker
        self._refreshed_at[item.place] = NEVER
        self._held[item.place] = item
        self._fresh.append(item)
        self._new_env_steps += int(self.slab.rollouts[item.place].valid.sum())
        self._sampler.insert(keys)
        self._limiter.inserted(len(keys))
        self.counts.inserted += len(keys)

    def _first_key(self, item: Item) -> int:
        return item.place * self._per_place

    def _holds_experience(self, item: Item) -> Array:
        """Which items of a rollout are any."""
        valid = self.slab.rollouts[item.place].valid
        return valid.reshape(-1) if self._is_step else np.asarray(valid.any(0))

    def _keys(self, item: Item) -> Array:
        """Of the items of a rollout that are still held."""
        first = self._first_key(item)
        return first + np.flatnonzero(self._is_live[first : first + self._per_place])

    def _overwrite(self, item: Item) -> None:
        keys = self._keys(item)
        self.counts.overwritten += len(keys)
        self.counts.unseen += int((self._times_drawn[keys] == 0).sum())
        if item in self._fresh:
            self._gone.append(item)
        self._forget(item, keys)

    def _forget(self, item: Item, keys: Array) -> None:
        """Let the last items of a rollout go, and its place with them."""
        self._sampler.remove(keys)
        self._is_live[keys] = False
        self._num_live[item.place] = 0
        del self._held[item.place]
        self._fresh = [fresh for fresh in self._fresh if fresh is not item]
        self.slab.release(item.place)

    def admits(self, num_granted: int, updates_ahead: int) -> bool:
        """Whether another rollout may be collected: draws keep up, and there is room or something may go."""
        if len(self) < self.config.batch_size_items:
            return True  # what has left or never counted must not keep draws and inserts waiting for each other
        is_full = self.config.when_full == "block" and len(self._held) + num_granted >= self._max_places
        if (is_full and self.can_take()) or not self._limiter.can_insert((num_granted + 1) * self._per_place):
            self.counts.blocked += 1
            return False
        return True

    def can_take(self) -> bool:
        """Whether enough is held, and draws are not ahead of inserts."""
        if time.monotonic() - self._begin_s < self.config.preload_s:
            return False
        size = self.config.batch_size_items
        return len(self) >= size and self._limiter.can_sample(size)

    def drop_stale(self, oldest_version: int) -> list[int]:
        """Let go of the rollouts below a version; the transitions of each of which nothing was ever drawn."""
        lost = []
        for item in [item for item in self._held.values() if item.version < oldest_version]:
            keys = self._keys(item)
            if not self._times_drawn[keys].any():
                lost.append(int(self.slab.rollouts[item.place].valid.sum()))
            self._forget(item, keys)
        return lost

    def take(self, version: int, progress: float = 0.0) -> Batch:
        """A batch of drawn items.

        Args:
            version: updates made so far.
            progress: of the run, 0..1, along which the importance weights' power grows to 1.
        """
        size = self.config.batch_size_items
        keys, probability = self._sampler.draw(size, self._rng)
        np.add.at(self._times_drawn, keys, 1)
        self._limiter.sampled(size)
        self.counts.drawn += size
        weight = np.ones(size, np.float32)
        if self.config.sampler == "prioritized":
            beta = self.config.beta + (1 - self.config.beta) * progress
            weight = importance_weights(probability, len(self), beta)
        place, step, slot = self._coordinates(keys)
        rollout = self._single_steps(place, step, slot) if self._is_step else self._columns(place, slot)
        draws = Draws(keys, weight)
        if self._is_step:
            self._refresh(draws, place, version)
            draws.carried = lambda: self._error[place, step + 1, slot]
        batch = Batch(
            rollout,
            self._fresh,
            self.slab.layout.num_slots,
            version,
            self._new_env_steps,
            draws,
            fresh=[self.slab.rollouts[item.place] for item in self._fresh],
            gone=self._gone,
            workers=self._worker_of_place[place],
        )
        self._fresh, self._gone, self._new_env_steps = [], [], 0
        return batch

    def _coordinates(self, keys: Array) -> tuple[Array, Array, Array]:
        """(place, step, slot) of each key; step is 0 for columns."""
        place, within = np.divmod(keys, self._per_place)
        step, slot = np.divmod(within, self.slab.layout.num_slots)
        return place, step, slot

    def _columns(self, place: Array, slot: Array) -> Rollout:
        """[T, N] the drawn columns side by side."""
        return Rollout.from_fields({name: array[:, place, slot] for name, array in self._stacked.items()})

    def _single_steps(self, place: Array, step: Array, slot: Array) -> Rollout:
        """[1, N] the drawn steps, with the row behind each."""
        num_steps = self.slab.layout.num_steps
        fields = {}
        for name, array in self._stacked.items():
            rows = np.arange(len(array) - num_steps + 1)[:, None] if len(array) >= num_steps else 0
            fields[name] = array[step + rows, place, slot]
        return Rollout.from_fields(fields)

    def _refresh(self, draws: Draws, place: Array, version: int) -> None:
        """Have the errors of new rollouts computed, and of some of those that were not for longest."""
        draws.target_age = float((version - np.maximum(self._refreshed_at[place], 0)).mean())
        oldest = sorted(self._held, key=lambda p: self._refreshed_at[p])
        never = int((self._refreshed_at[oldest] == NEVER).sum())
        due = oldest[: never + self.config.refresh_rollouts]
        self._refreshed_at[due] = version
        draws.refresh = [Refresh(self.slab.rollouts[p], self._error[p]) for p in due]

    def figures(self) -> dict[str, float]:
        """What is held, and what happened to items so far."""
        counts = self.counts
        return {
            "replay_items": len(self),
            "replay_overwritten": counts.overwritten,
            "replay_unseen": counts.unseen,
            "replay_blocked": counts.blocked,
            "samples_per_insert": counts.drawn / max(counts.inserted, 1),
        }

    def feedback(self, batch: Batch) -> None:
        """Remember what learning found out about the items of a batch."""
        draws = batch.draws
        assert draws is not None
        assert draws.error is not None
        assert draws.priority is not None
        keys, surprise = draws.keys, np.abs(draws.priority)
        if self._is_step:
            place, step, slot = self._coordinates(keys)
            self._error[place, step, slot] = draws.error[0]
            self._sampler.update(keys, surprise[0])
        else:
            self._sampler.update(keys, sequence_priority(surprise, batch.rollout.valid, self.config.eta))
        if self.config.when_full == "block":
            self._retire(np.unique(keys))

    def close(self) -> None:
        """Nobody else holds the slab."""

    def _retire(self, keys: Array) -> None:
        """Of these, the ones that were drawn often enough leave; a rollout's place is free when all of its have."""
        leaving = keys[self._times_drawn[keys] >= self.config.samples_per_insert]
        self._sampler.remove(leaving)
        self._is_live[leaving] = False
        places = leaving // self._per_place
        np.subtract.at(self._num_live, places, 1)
        for place in np.unique(places[self._num_live[places] == 0]):
            self._forget(self._held[int(place)], leaving[:0])
