"""The sum tree against running sums over a plain list."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.buffer.sum_tree import CHILDREN, SumTree

CHI_SQUARE_999 = {9: 27.877}  # quantile 0.999 by degrees of freedom, from printed tables


def literal_find(values, mass):
    """The first leaf up to which the values sum to more than the mass."""
    running = 0.0
    for leaf, value in enumerate(values):
        running += value
        if mass < running:
            return leaf
    raise AssertionError("the mass is beyond the total")


def tree_of(values):
    tree = SumTree(len(values))
    tree.update(np.arange(len(values)), values)
    return tree


# Eighths sum without rounding, so that tree and running sum agree to the bit at every border.
eighths = st.integers(0, 40).map(lambda number: number / 8)


@given(st.integers(1, 700), st.floats(0.0, 0.95), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_mass_finds_the_leaf_that_running_sums_find(num_leaves, share_of_zeros, seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 41, num_leaves) / 8 * (rng.random(num_leaves) >= share_of_zeros)
    values[rng.integers(num_leaves)] = 0.125
    tree = tree_of(values)
    assert tree.total == values.sum()
    border = rng.choice(np.cumsum(values), 20)
    mass = np.concatenate([[0.0], border[border < tree.total], np.nextafter(border[border > 0], 0.0)])
    mass = np.concatenate([mass, rng.random(10) * tree.total])
    assert tree.find(mass).tolist() == [literal_find(values, one) for one in mass]


@given(st.integers(1, 300), st.lists(st.tuples(st.integers(0, 299), eighths), max_size=60))
@settings(max_examples=60, deadline=None)
def test_updates_in_lumps_leave_what_single_writes_leave(num_leaves, writes):
    writes = [(leaf % num_leaves, value) for leaf, value in writes]
    expected = np.zeros(num_leaves)
    for leaf, value in writes:
        expected[leaf] = value
    tree = SumTree(num_leaves)
    for first in range(0, len(writes), 7):
        leaves, values = zip(*writes[first : first + 7], strict=True)
        tree.update(np.array(leaves), np.array(values, np.float32))
    assert tree.values(np.arange(num_leaves)).tolist() == expected.tolist()
    assert tree.total == expected.sum()


def test_of_a_repeated_leaf_the_last_value_stays():
    tree = SumTree(100)
    tree.update(np.array([7, 3, 7, 7]), np.array([1.0, 2.0, 5.0, 4.0]))
    assert tree.values(np.array([3, 7])).tolist() == [2.0, 4.0]
    assert tree.total == 6.0


@pytest.mark.parametrize("num_leaves", [1, CHILDREN - 1, CHILDREN, CHILDREN + 1, CHILDREN**2, CHILDREN**3 + 1])
def test_the_first_and_the_last_leaf_are_found_in_a_tree_of_any_size(num_leaves):
    tree = tree_of(np.ones(num_leaves))
    assert tree.total == num_leaves
    assert tree.find(np.arange(num_leaves) + 0.5).tolist() == list(range(num_leaves))


def test_a_leaf_of_zero_is_never_found_even_where_rounding_decides():
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.random(700) * 10.0 ** rng.integers(-12, 12, 700) * (rng.random(700) < 0.3)
        tree = tree_of(values)
        borders = np.cumsum(values)
        mass = np.concatenate([borders, np.nextafter(borders, 0), np.nextafter(borders, np.inf), [0.0, tree.total]])
        assert (values[tree.find(mass)] > 0).all()


def test_the_total_does_not_drift_over_many_updates():
    rng = np.random.default_rng(1)
    values = np.zeros(5000)
    tree = SumTree(len(values))
    for _ in range(1000):  # 10^5 values, large ones overwritten by small ones
        leaves = rng.integers(0, len(values), 100)
        new = rng.random(100) * 10.0 ** rng.integers(-6, 9, 100)
        values[leaves] = new
        new = values[leaves]
        tree.update(leaves, new)
    assert tree.total == pytest.approx(values.sum(), rel=1e-9)
    assert tree.total == tree_of(values).total, "the nodes depend on how the leaves came about"


def test_single_draws_come_in_proportion_to_the_values():
    values = np.arange(1, 11, dtype=np.float64)
    tree, rng, draws = tree_of(values), np.random.default_rng(2), 20_000
    leaves = np.concatenate([tree.sample(1, rng)[0] for _ in range(draws)])
    expected = draws * values / values.sum()
    statistic = ((np.bincount(leaves, minlength=10) - expected) ** 2 / expected).sum()
    assert statistic < CHI_SQUARE_999[9]


def test_stratified_draws_are_as_frequent_and_vary_less():
    """Strata bound each leaf's count within one draw, so that the statistic lies far below its usual distribution.

    A leaf of probability p covers n p strata: floor(n p) - 1 of them at least whole, ceil(n p) + 1 at most touched. The
    upper quantile of chi-square is then a bound that holds more than amply; the bound per draw is the sharp one.
    """
    values = np.arange(1, 11, dtype=np.float64)
    tree, rng, num, draws = tree_of(values), np.random.default_rng(3), 32, 600
    expected = num * values / values.sum()
    counts = np.array([np.bincount(tree.sample(num, rng)[0], minlength=10) for _ in range(draws)])
    assert (counts >= np.floor(expected) - 1).all()
    assert (counts <= np.ceil(expected) + 1).all()
    statistic = ((counts.sum(0) - draws * expected) ** 2 / (draws * expected)).sum()
    assert statistic < CHI_SQUARE_999[9]
    spread = counts.std(0) / np.sqrt(expected * (1 - values / values.sum()))  # beside independent draws
    assert (spread < 0.9).all()


def test_a_draw_tells_the_probability_of_each_leaf():
    tree = tree_of([1.0, 0.0, 3.0, 4.0])
    leaves, probability = tree.sample(64, np.random.default_rng(4))
    assert set(leaves.tolist()) == {0, 2, 3}
    assert probability.tolist() == [{0: 0.125, 2: 0.375, 3: 0.5}[leaf] for leaf in leaves.tolist()]


@pytest.mark.parametrize(("leaf", "value"), [(-1, 1.0), (9, 1.0), (2, -0.5), (2, np.nan), (2, np.inf)])
def test_what_a_tree_cannot_hold_is_refused_and_changes_nothing(leaf, value):
    tree = tree_of(np.ones(9))
    with pytest.raises(ValueError, match=f"leaf {leaf} cannot get the value"):
        tree.update(np.array([1, leaf]), np.array([5.0, value]))
    assert tree.values(np.arange(9)).tolist() == [1.0] * 9


def test_an_empty_tree_says_that_there_is_nothing_to_find():
    with pytest.raises(ValueError, match="every leaf of the sum tree is 0"):
        SumTree(3).sample(1, np.random.default_rng(0))
