"""Which items of a replay buffer are learned from next, and how much each then counts.

Items lie at fixed places, numbered by keys 0..num_keys-1.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from millrace.types import Array, require

LEAST_PRIORITY = 1e-6
"""Added to every priority, so that an item of error 0 is still drawn at times (Schaul et al. 2016, section 3.3)."""


class Sampler(Protocol):
    """Knows which keys hold items, and chooses among them. Keys are int64 [n], distinct within a call."""

    def insert(self, keys: Array) -> None:
        """These hold new items now, whether or not they held others."""

    def remove(self, keys: Array) -> None:
        """These hold nothing any more, whether or not they did."""

    def draw(self, num: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Keys [num] int64 of items, and the probability [num] float64 with which each one was drawn per draw."""

    def update(self, keys: Array, priority: Array) -> None:
        """What learning found out: priority [n], 0 or more, of items drawn before; keys may repeat, or be gone."""

    def __len__(self) -> int:
        """Items held."""


def make_sampler(name: str, num_keys: int, alpha: float) -> Sampler:
    """The sampler that `replay.sampler` names: fifo, uniform or prioritized; `alpha` is for the last alone."""
    require(
        name in ("fifo", "uniform", "prioritized"),
        f"replay.sampler={name!r} is unknown; use 'fifo', 'uniform' or 'prioritized'",
    )
    if name == "prioritized":
        return Prioritized(num_keys, alpha)
    return Fifo(num_keys) if name == "fifo" else Uniform(num_keys)


class Fifo:
    """Those drawn least often first, among them those inserted first; distinct within a draw; no chance in it.

    A draw looks at all `num_keys`: 0.2 ms for 10^5.
    """

    ONE_DRAW = 1 << 40  # above the number of any insertion
    ABSENT = np.iinfo(np.int64).max

    def __init__(self, num_keys: int) -> None:
        self._rank = np.full(num_keys, self.ABSENT)  # times drawn * ONE_DRAW + number of the insertion
        self._num_inserted = 0
        self._num_held = 0

    def __len__(self) -> int:
        return self._num_held

    def insert(self, keys: Array) -> None:
        self.remove(keys)
        self._rank[keys] = self._num_inserted + np.arange(len(keys))
        self._num_inserted += len(keys)
        self._num_held += len(keys)

    def remove(self, keys: Array) -> None:
        self._num_held -= int(np.count_nonzero(self._rank[keys] != self.ABSENT))
        self._rank[keys] = self.ABSENT

    def draw(self, num: int, rng: np.random.Generator) -> tuple[Array, Array]:
        _check_draw(num, len(self))
        keys = np.argpartition(self._rank, num - 1)[:num]
        keys = keys[np.argsort(self._rank[keys])]
        self._rank[keys] += self.ONE_DRAW
        return keys, np.full(num, 1.0 / len(self))

    def update(self, keys: Array, priority: Array) -> None:
        """Changes nothing."""


class Uniform:
    """Each with the same probability; distinct within a draw."""

    def __init__(self, num_keys: int) -> None:
        self._keys = np.zeros(num_keys, np.int64)  # those held come first, in no order
        self._position = np.full(num_keys, -1)  # of each key in `_keys`, -1 where it is not held
        self._num_held = 0

    def __len__(self) -> int:
        return self._num_held

    def insert(self, keys: Array) -> None:
        new = keys[self._position[keys] < 0]
        end = self._num_held + len(new)
        self._keys[self._num_held : end] = new
        self._position[new] = np.arange(self._num_held, end)
        self._num_held = end

    def remove(self, keys: Array) -> None:
        """Those that are left at the end move into the holes before it."""
        gone = keys[self._position[keys] >= 0]
        end = self._num_held - len(gone)
        holes = self._position[gone]
        holes = holes[holes < end]
        self._position[gone] = -1
        last = self._keys[end : self._num_held]
        moved = last[self._position[last] >= 0]
        self._keys[holes] = moved
        self._position[moved] = holes
        self._num_held = end

    def draw(self, num: int, rng: np.random.Generator) -> tuple[Array, Array]:
        _check_draw(num, len(self))
        positions = rng.choice(len(self), num, replace=False, shuffle=False)
        return self._keys[positions], np.full(num, 1.0 / len(self))

    def update(self, keys: Array, priority: Array) -> None:
        """Changes nothing."""


class Prioritized:
    """In proportion to (priority + LEAST_PRIORITY) ** alpha, stratified; a key may come more than once in a draw.

    New items get the largest priority seen so far, 1 at first (Schaul et al. 2016, arXiv 1511.05952, algorithm 1).
    """

    def __init__(self, num_keys: int, alpha: float) -> None:
        from millrace.buffer.sum_tree import SumTree  # brings Numba, which the other samplers do without

        self._tree = SumTree(num_keys)
        self._alpha = alpha
        self._is_held = np.zeros(num_keys, np.bool_)
        self._num_held = 0
        self._largest = 1.0

    def __len__(self) -> int:
        return self._num_held

    def insert(self, keys: Array) -> None:
        self._num_held += int(np.count_nonzero(~self._is_held[keys]))
        self._is_held[keys] = True
        self._tree.update(keys, (self._largest + LEAST_PRIORITY) ** self._alpha)

    def remove(self, keys: Array) -> None:
        self._num_held -= int(np.count_nonzero(self._is_held[keys]))
        self._is_held[keys] = False
        self._tree.update(keys, 0.0)

    def draw(self, num: int, rng: np.random.Generator) -> tuple[Array, Array]:
        _check_draw(min(num, 1), len(self))
        return self._tree.sample(num, rng)

    def update(self, keys: Array, priority: Array) -> None:
        """Of a repeated key the last priority stays; one that is not finite counts as the largest seen so far."""
        is_held = self._is_held[keys]
        priority = np.asarray(priority, np.float64)[is_held]
        is_finite = np.isfinite(priority)
        self._largest = max(self._largest, float(priority[is_finite].max(initial=0.0)))
        priority = np.where(is_finite, priority, self._largest)
        self._tree.update(keys[is_held], (priority + LEAST_PRIORITY) ** self._alpha)


def _check_draw(num: int, num_held: int) -> None:
    if num > num_held:
        raise ValueError(f"a draw of {num} items, of which only {num_held} are held: wait until there are enough")


def importance_weights(probability: Array, num_items: int, beta: float) -> Array:
    """Weights [n] float32 of items drawn with `probability` [n] out of `num_items`, the largest 1.

    (N P)^-beta / max (N P)^-beta, which for beta = 1 undoes what the probabilities add to the gradient
    (Schaul et al. 2016, section 3.4, the maximum taken over the draw).
    """
    weights = (num_items * probability) ** -beta
    return np.asarray(weights / weights.max(), np.float32)


def sequence_priority(error: Array, valid: Array, eta: float) -> Array:
    """Priority [B] of sequences with `error` [T, B], from their `valid` [T, B] rows; 0 where there are none.

    eta max |error| + (1 - eta) mean |error| over T (Kapturowski et al. 2019, R2D2, section 2.3, with eta = 0.9).
    """
    magnitude = np.where(valid, np.abs(error), 0)
    mean = magnitude.sum(0) / np.maximum(valid.sum(0), 1)
    priority: Array = eta * magnitude.max(0) + (1 - eta) * mean
    return priority
