"""How sure one may be of a mean, and of a difference between two: plain resampling, which assumes no distribution.

Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 13 (percentile intervals) and 15 (permutation
tests).
"""

from __future__ import annotations

import numpy as np

from millrace.types import Array

RESAMPLES = 10_000
CHUNK_NUMBERS = 1_000_000
CONFIDENCE = 0.95


def deviation(values: Array) -> float:
    """The sample standard deviation of [N] numbers (divisor N - 1); NaN for one alone."""
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def mean_interval(values: Array, confidence: float = CONFIDENCE, seed: int = 0) -> tuple[float, float]:
    """Where the mean of [N] numbers lies, by the percentile bootstrap; NaN for one number alone."""
    if len(values) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [values[rng.integers(len(values), size=(rows, len(values)))].mean(1) for rows in _chunks(len(values))]
    )
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def sign_flip_p(differences: Array, seed: int = 0) -> float:
    """How often a mean at least as far from 0 comes about where the sign of each of [N] differences is a coin toss.

    Every one of the 2^N tosses where these are few; else 10,000 of them and the one that was seen.
    """
    seen = abs(differences.mean())
    at_least = seen - 1e-12 * np.abs(differences).sum()  # sums in another order may differ in their last bits
    if 2 ** min(len(differences), 60) <= RESAMPLES:
        tosses = np.arange(2 ** len(differences))[:, None] >> np.arange(len(differences)) & 1
        return float((_flipped_means(differences, tosses) >= at_least).mean())
    rng = np.random.default_rng(seed)
    extreme = 1
    for rows in _chunks(len(differences)):
        tosses = rng.integers(2, size=(rows, len(differences)))
        extreme += int((_flipped_means(differences, tosses) >= at_least).sum())
    return extreme / (RESAMPLES + 1)


def _flipped_means(differences: Array, tosses: Array) -> Array:
    means: Array = np.abs((2 * tosses - 1) @ differences) / len(differences)
    return means


def _chunks(width: int) -> list[int]:
    """Rows of so many numbers that make up all resamples, few enough at a time for the memory."""
    rows = max(1, CHUNK_NUMBERS // width)
    return [min(rows, RESAMPLES - first) for first in range(0, RESAMPLES, rows)]
