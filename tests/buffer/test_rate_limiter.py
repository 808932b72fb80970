"""The rate limiter by hand, and in simulations of inserting and sampling in random order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.buffer.rate_limiter import RateLimiter, checked, smallest_error
from millrace.errors import ConfigError


def limiter_at(inserts, samples, **settings):
    limiter = RateLimiter(**{"samples_per_insert": 2.0, "min_size": 10, "error": 6.0, **settings})
    limiter.inserted(inserts)
    limiter.sampled(samples)
    return limiter


@pytest.mark.parametrize("inserts", [0, 9])
def test_before_the_smallest_size_one_inserts_and_does_not_sample(inserts):
    limiter = limiter_at(inserts, 0)
    assert limiter.can_insert(100)
    assert not limiter.can_sample(1)


@pytest.mark.parametrize(("samples", "expected"), [(9, False), (10, True), (11, True)])
def test_inserting_waits_until_enough_was_sampled(samples, expected):
    # (15 + 3 - 10) * 2 = 16 samples would be owed; 6 fewer are in order.
    assert limiter_at(15, samples).can_insert(3) is expected


@pytest.mark.parametrize(("samples", "expected"), [(12, True), (13, False)])
def test_sampling_waits_until_enough_was_inserted(samples, expected):
    # (15 - 10) * 2 = 10 samples are owed; 6 more are in order.
    assert limiter_at(15, samples).can_sample(4) is expected


def test_an_infinite_ratio_binds_nothing_but_the_start():
    assert not limiter_at(9, 0, samples_per_insert=math.inf).can_sample(1)
    for limiter in (
        limiter_at(10, 10**9, samples_per_insert=math.inf),
        limiter_at(10**9, 0, samples_per_insert=math.inf),
    ):
        assert limiter.can_sample(10**6)
        assert limiter.can_insert(10**6)


def test_rounding_does_not_decide():
    # 0.1 * 3 is above 0.3 in binary: exactly owed is not too much.
    assert limiter_at(10, 0, samples_per_insert=0.1, error=0.3).can_insert(3)


@st.composite
def valid_settings(draw):
    batch_size, insert_size = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    ratio = draw(st.floats(0.05, 20.0) | st.sampled_from([0.1, 0.3, 1.0, 3.0, 8.0, batch_size / insert_size]))
    min_size = draw(st.integers(batch_size, 200))
    error = smallest_error(ratio, batch_size, insert_size) * draw(st.sampled_from([1.0, 1.5, 4.0]))
    return {
        "samples_per_insert": ratio,
        "min_size": min_size,
        "error": error,
        "capacity": 200,
        "batch_size": batch_size,
        "insert_size": insert_size,
    }


@given(valid_settings(), st.integers(0, 2**32), st.floats(0.05, 0.95))
@settings(max_examples=150, deadline=None)
def test_inserting_and_sampling_never_wait_for_each_other_and_keep_the_ratio(sizes, seed, eagerness):
    """Each turn one of the two tries, inserting with the probability `eagerness`, and the other where it may not."""
    limiter, rng = checked(**sizes), np.random.default_rng(seed)
    for wants_to_insert in rng.random(600) < eagerness:
        can_insert, can_sample = limiter.can_insert(sizes["insert_size"]), limiter.can_sample(sizes["batch_size"])
        assert can_insert or can_sample, "standstill"
        if can_insert and (wants_to_insert or not can_sample):
            limiter.inserted(sizes["insert_size"])
        else:
            limiter.sampled(sizes["batch_size"])
        counted = limiter.inserts - sizes["min_size"]
        if counted > 0:
            assert limiter.samples / counted == pytest.approx(
                sizes["samples_per_insert"], abs=(sizes["error"] + 1e-5) / counted
            )
    assert limiter.inserts > sizes["min_size"]
    assert limiter.samples > 0


def test_the_simulation_above_can_come_to_a_standstill():
    """With half of the smallest error, so that the property is known to be able to fail."""
    limiter = RateLimiter(1.0, 8, error=smallest_error(1.0, 8, 8) / 2)
    limiter.inserted(8)
    assert not limiter.can_insert(8)
    assert not limiter.can_sample(8)


def test_the_smallest_error_has_room_for_a_batch_and_for_an_insert():
    assert smallest_error(0.5, batch_size=32, insert_size=4) == 32
    assert smallest_error(16.0, batch_size=32, insert_size=4) == 64
    assert smallest_error(math.inf, batch_size=32, insert_size=4) == 0


VALID = {
    "samples_per_insert": 4.0,
    "min_size": 64,
    "error": 64.0,
    "capacity": 1000,
    "batch_size": 32,
    "insert_size": 16,
}


def test_settings_in_order_give_a_limiter_that_counts_from_zero():
    assert checked(**VALID) == RateLimiter(4.0, 64, 64.0, inserts=0, samples=0)
    assert checked(**{**VALID, "samples_per_insert": math.inf, "error": 0.0}).can_insert(10**6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples_per_insert": 0.0}, "replay.samples_per_insert=0 must be above 0"),
        ({"samples_per_insert": math.nan}, "replay.samples_per_insert=nan must be above 0"),
        ({"min_size": 0}, "replay.min_size_items=0 must be 1 or more"),
        ({"min_size": 31}, "replay.min_size_items=31 must lie between replay.batch_size_items=32"),
        ({"min_size": 1001}, "replay.capacity_items=1000: else the first batch would never be there"),
        ({"insert_size": 1001}, "replay.capacity_items=1000 must hold the 1001 items that arrive together"),
        ({"error": 63.0}, "replay.error_items=63 is too small: .* use 64 or more"),
    ],
)
def test_settings_that_could_come_to_a_standstill_say_what_to_change(change, words):
    with pytest.raises(ConfigError, match=words):
        checked(**{**VALID, **change})
