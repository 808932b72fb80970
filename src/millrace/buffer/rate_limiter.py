"""How often items are learned from: inserting and sampling wait for each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

from millrace.types import require

ROUNDING = 1e-6  # samples: counts are exact, their product with a ratio is not


@dataclass
class RateLimiter:
    """Holds samples = samples_per_insert * (inserts - min_size), within `error` samples either way.

    After Reverb (Cassirer et al. 2021, arXiv 2102.04736). An infinite ratio binds nothing: inserting is
    always allowed, and sampling from `min_size` inserts on.

    Attributes:
        samples_per_insert: how often an item is sampled on average.
        min_size: items inserted before the first is sampled; inserting is always allowed until then.
        error: samples by which the two may be apart.
        inserts: items inserted so far.
        samples: items sampled so far.
    """

    samples_per_insert: float
    min_size: int
    error: float
    inserts: int = 0
    samples: int = 0

    def can_insert(self, num_inserts: int = 1) -> bool:
        """Whether so many more would not run ahead of sampling."""
        if self.inserts < self.min_size or math.isinf(self.samples_per_insert):
            return True
        return self._ahead(self.inserts + num_inserts, self.samples) <= self.error + ROUNDING

    def can_sample(self, num_samples: int) -> bool:
        """Whether so many more would not run ahead of inserting."""
        if self.inserts < self.min_size or math.isinf(self.samples_per_insert):
            return self.inserts >= self.min_size
        return self._ahead(self.inserts, self.samples + num_samples) >= -self.error - ROUNDING

    def inserted(self, num_inserts: int) -> None:
        self.inserts += num_inserts

    def sampled(self, num_samples: int) -> None:
        self.samples += num_samples

    def _ahead(self, inserts: int, samples: int) -> float:
        """Samples that are owed; below 0 where there were too many."""
        return (inserts - self.min_size) * self.samples_per_insert - samples


def smallest_error(samples_per_insert: float, batch_size: int, insert_size: int) -> float:
    """The least `error` with which inserting and sampling can never wait for each other for ever.

    Reverb's rule, with batches in the place of single items: room for one batch of samples, and for the samples that
    one insert of `insert_size` items makes owed.
    """
    return 0.0 if math.isinf(samples_per_insert) else max(batch_size, samples_per_insert * insert_size)


def checked(
    samples_per_insert: float, min_size: int, error: float, *, capacity: int, batch_size: int, insert_size: int
) -> RateLimiter:
    """A rate limiter that cannot come to a standstill, or `ConfigError` saying which setting to change.

    `capacity` items are held at most, `batch_size` sampled and `insert_size` inserted at a time.
    """
    require(samples_per_insert > 0, f"replay.samples_per_insert={samples_per_insert:g} must be above 0")
    require(min_size >= 1, f"replay.min_size_items={min_size} must be 1 or more")
    require(
        batch_size <= min_size <= capacity,
        f"replay.min_size_items={min_size} must lie between replay.batch_size_items={batch_size} and "
        f"replay.capacity_items={capacity}: else the first batch would never be there to sample",
    )
    require(
        insert_size <= capacity,
        f"replay.capacity_items={capacity} must hold the {insert_size} items that arrive together",
    )
    bound = smallest_error(samples_per_insert, batch_size, insert_size)
    require(
        error >= bound,
        f"replay.error_items={error:g} is too small: with replay.samples_per_insert={samples_per_insert:g}, "
        f"replay.batch_size_items={batch_size} and {insert_size} items that arrive together, inserting and sampling "
        f"could wait for each other for ever; use {bound:g} or more",
    )
    return RateLimiter(samples_per_insert, min_size, error)
