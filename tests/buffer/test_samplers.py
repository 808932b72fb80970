"""Samplers: one contract for all, then what each promises; and what draws weigh."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.buffer.samplers import (
    LEAST_PRIORITY,
    Fifo,
    Prioritized,
    Uniform,
    importance_weights,
    make_sampler,
    sequence_priority,
)
from millrace.errors import ConfigError

NAMES = ["fifo", "uniform", "prioritized"]
NUM_KEYS = 40
CHI_SQUARE_999 = {9: 27.877, 49: 85.351}  # quantile 0.999 by degrees of freedom, from printed tables


def keys_of(*numbers):
    return np.array(numbers, dtype=np.int64)


def chi_square(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


def drawn(sampler, num, seed=0):
    return sampler.draw(num, np.random.default_rng(seed))[0].tolist()


@pytest.fixture(params=NAMES)
def sampler(request):
    return make_sampler(request.param, NUM_KEYS, alpha=0.6)


# What all of them promise.

some_keys = st.lists(st.integers(0, NUM_KEYS - 1), unique=True, max_size=12).map(lambda keys: keys_of(*keys))
calls = st.lists(st.tuples(st.sampled_from(["insert", "remove", "update", "draw"]), some_keys), max_size=30)


@pytest.mark.parametrize("name", NAMES)
@given(calls)
@settings(max_examples=80, deadline=None)
def test_only_what_is_held_is_drawn_whatever_came_before(name, calls):
    sampler, held, rng = make_sampler(name, NUM_KEYS, 0.6), set(), np.random.default_rng(0)
    for call, keys in calls:
        if call == "insert":
            sampler.insert(keys)
            held |= set(keys.tolist())
        elif call == "remove":
            sampler.remove(keys)
            held -= set(keys.tolist())
        elif call == "update":
            sampler.update(keys, rng.random(len(keys), np.float32))
        assert len(sampler) == len(held)
        if held:
            num = min(len(held), 1 + len(keys))
            found, probability = sampler.draw(num, rng)
            assert found.shape == probability.shape == (num,)
            assert (found.dtype, probability.dtype) == (np.int64, np.float64)
            assert set(found.tolist()) <= held
            assert len(set(found.tolist())) == num or name == "prioritized"


def test_a_draw_depends_on_the_random_stream_alone(sampler):
    sampler.insert(np.arange(NUM_KEYS))
    twin = make_sampler({Fifo: "fifo", Uniform: "uniform", Prioritized: "prioritized"}[type(sampler)], NUM_KEYS, 0.6)
    twin.insert(np.arange(NUM_KEYS))
    assert drawn(sampler, 8, seed=5) == drawn(twin, 8, seed=5)


def test_drawing_from_too_few_says_how_many_there_are(sampler):
    with pytest.raises(ValueError, match="of which only 0 are held"):
        sampler.draw(1, np.random.default_rng(0))


def test_probabilities_are_those_of_one_draw(sampler):
    sampler.insert(np.arange(8))
    _, probability = sampler.draw(4, np.random.default_rng(0))
    assert probability == pytest.approx(1 / 8)


def test_an_unknown_sampler_is_told_with_the_known_ones():
    with pytest.raises(ConfigError, match="'lifo' is unknown; use 'fifo', 'uniform' or 'prioritized'"):
        make_sampler("lifo", 8, 0.6)


# First in, first out.


def test_the_first_in_is_the_first_out():
    sampler = Fifo(NUM_KEYS)
    sampler.insert(keys_of(9, 3))
    sampler.insert(keys_of(30, 1))
    assert [drawn(sampler, 2), drawn(sampler, 2), drawn(sampler, 4)] == [[9, 3], [30, 1], [9, 3, 30, 1]]


def test_many_places_filled_in_any_order_come_out_in_that_order():
    sampler, keys = Fifo(3000), np.random.default_rng(0).permutation(3000)
    sampler.insert(keys)
    assert [key for _ in range(5) for key in drawn(sampler, 600)] == keys.tolist()


def test_what_was_drawn_least_often_goes_before_what_is_oldest():
    sampler = Fifo(NUM_KEYS)
    sampler.insert(keys_of(0, 1, 2))
    assert drawn(sampler, 2) == [0, 1]
    sampler.insert(keys_of(7))
    assert drawn(sampler, 3) == [2, 7, 0]
    assert drawn(sampler, 3) == [1, 2, 7]


def test_a_place_that_is_filled_anew_queues_at_the_end():
    sampler = Fifo(NUM_KEYS)
    sampler.insert(keys_of(0, 1, 2))
    sampler.remove(keys_of(1))
    sampler.insert(keys_of(0))
    assert drawn(sampler, 2) == [2, 0]


# Uniform.


def test_uniform_draws_are_uniform():
    """Without repetition counts vary less: by (N - n) / (N - 1), which the statistic is divided by."""
    held, num, draws, rng = 50, 16, 4000, np.random.default_rng(0)
    sampler = Uniform(200)
    sampler.insert(np.arange(200))
    sampler.remove(np.setdiff1d(np.arange(200), np.arange(0, 200, 4)))
    keys = np.concatenate([sampler.draw(num, rng)[0] for _ in range(draws)])
    counts = np.bincount(keys, minlength=200)[::4]
    statistic = chi_square(counts, num * draws / held) * (held - 1) / (held - num)
    assert counts.sum() == num * draws
    assert statistic < CHI_SQUARE_999[49]


# Prioritized.


def with_priorities(priority, alpha):
    sampler = Prioritized(len(priority), alpha)
    sampler.insert(np.arange(len(priority)))
    sampler.update(np.arange(len(priority)), np.array(priority))
    return sampler


def test_prioritized_draws_follow_the_priorities():
    """Draws of one are independent; larger ones are stratified, which the tests of the sum tree look at."""
    priority, draws, rng = np.arange(1.0, 11.0), 20_000, np.random.default_rng(1)
    sampler = with_priorities(priority, alpha=0.7)
    counts = np.bincount([sampler.draw(1, rng)[0][0] for _ in range(draws)], minlength=10)
    share = priority**0.7 / (priority**0.7).sum()
    assert chi_square(counts, draws * share) < CHI_SQUARE_999[9]


def test_probabilities_are_those_of_the_literal_formula():
    priority = np.array([0.0, 0.5, 2.0, 4.0])
    keys, probability = with_priorities(priority, alpha=0.6).draw(64, np.random.default_rng(2))
    powers = [(one + LEAST_PRIORITY) ** 0.6 for one in priority]
    assert probability == pytest.approx([powers[key] / sum(powers) for key in keys])


def test_a_new_item_gets_the_largest_priority_seen_so_far():
    sampler = Prioritized(3, alpha=1.0)
    sampler.insert(keys_of(0, 1))
    sampler.update(keys_of(0, 1), np.array([8.0, 2.0]))
    sampler.update(keys_of(0), np.array([2.0]))
    sampler.insert(keys_of(2))
    keys, probability = sampler.draw(60, np.random.default_rng(0))
    assert probability[keys == 2] == pytest.approx(8 / 12)


def test_items_that_are_all_new_are_equally_probable():
    sampler = Prioritized(5, alpha=0.6)
    sampler.insert(np.arange(5))
    assert sorted(drawn(sampler, 5)) == [0, 1, 2, 3, 4]


def test_the_priority_of_an_item_that_is_gone_is_ignored():
    sampler = with_priorities([1.0, 1.0, 1.0], alpha=1.0)
    sampler.remove(keys_of(1))
    sampler.update(keys_of(1, 0), np.array([100.0, 1.0]))
    keys, probability = sampler.draw(50, np.random.default_rng(0))
    assert set(keys.tolist()) == {0, 2}
    sampler.insert(keys_of(1))
    assert sampler.draw(1, np.random.default_rng(0))[1] == pytest.approx(1 / 3), "nor is it the largest seen"
    assert probability == pytest.approx(0.5)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_priority_that_is_not_finite_counts_as_the_largest_seen(broken):
    sampler = with_priorities([1.0, 3.0], alpha=1.0)
    sampler.update(keys_of(0), np.array([broken], np.float32))
    assert sampler.draw(2, np.random.default_rng(0))[1] == pytest.approx(0.5)


def test_of_a_key_that_repeats_the_last_priority_stays():
    sampler = with_priorities([1.0, 1.0], alpha=1.0)
    sampler.update(keys_of(0, 0, 0), np.array([5.0, 7.0, 3.0]))
    keys, probability = sampler.draw(40, np.random.default_rng(0))
    assert probability[keys == 0] == pytest.approx(0.75)


# What draws weigh.


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=20), st.integers(1, 10**6), st.floats(0.0, 1.0))
def test_importance_weights_are_those_of_the_literal_formula(probability, num_items, beta):
    literal = [(1 / (num_items * one)) ** beta for one in probability]
    weights = importance_weights(np.array(probability), num_items, beta)
    assert weights.dtype == np.float32
    assert weights == pytest.approx([one / max(literal) for one in literal], rel=1e-5)


def test_importance_weights_undo_the_priorities():
    """With beta 1 the weighted mean over many draws is the plain mean over items."""
    value, priority = np.array([1.0, 5.0, 2.0, 8.0]), np.array([4.0, 1.0, 2.0, 1.0])
    keys, probability = with_priorities(priority, alpha=1.0).draw(4000, np.random.default_rng(3))
    weights = importance_weights(probability, 4, beta=1.0)
    assert (weights * value[keys]).sum() / weights.sum() == pytest.approx(value.mean(), rel=1e-2)


def test_the_priority_of_a_sequence_by_hand():
    error = np.array([[1.0, -4.0, np.nan], [-3.0, 9.0, np.nan], [2.0, 2.0, np.nan]])
    valid = np.array([[True, True, False], [True, False, False], [True, True, False]])
    assert sequence_priority(error, valid, eta=0.9).tolist() == pytest.approx([2.7 + 0.2, 3.6 + 0.3, 0.0])


@pytest.mark.parametrize(("eta", "expected"), [(1.0, 3.0), (0.0, 2.0)])
def test_eta_goes_from_the_mean_to_the_largest(eta, expected):
    error = np.array([[1.0], [-3.0]], np.float32)
    assert sequence_priority(error, np.ones((2, 1), np.bool_), eta) == pytest.approx(expected)
