"""Intervals and tests by resampling."""

from __future__ import annotations

import numpy as np
import pytest

from millrace.deploy.compare import Comparison, compare
from millrace.deploy.evaluate import Evaluation
from millrace.deploy.statistics import deviation, mean_interval, sign_flip_p
from millrace.errors import EnvError
from millrace.types import EpisodeRecord


def played(returns, first_seed: int = 0) -> Evaluation:
    return Evaluation([EpisodeRecord(float(r), 1, first_seed + i) for i, r in enumerate(returns)], [])


def test_of_many_numbers_the_interval_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    low, high = mean_interval(values)
    half = 1.96 * deviation(values) / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert mean_interval(values) == (low, high)
    wider = mean_interval(values, 0.99)
    assert wider[0] < low < high < wider[1]


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    intervals = [mean_interval(rng.exponential(1.0, 50), seed=trial) for trial in range(200)]
    assert 0.85 < np.mean([low < 1.0 < high for low, high in intervals]) < 0.99


def test_of_one_number_nothing_is_said_and_of_equal_ones_the_interval_is_a_point():
    assert np.isnan([*mean_interval(np.array([3.0])), deviation(np.array([3.0]))]).all()
    assert mean_interval(np.full(9, 3.0)) == (3.0, 3.0)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0, 2.0, 3.0], 2 / 8),  # only all plus and all minus are as far from 0
        ([1.0, -1.0], 1.0),
        ([1.0, 2.0, -0.5], 4 / 8),  # sums 2.5 and 3.5, and their negatives
        ([0.0, 0.0], 1.0),
        ([0.1] * 10, 2 / 1024),
    ],
)
def test_of_few_differences_every_toss_of_signs_is_counted(differences, p):
    assert sign_flip_p(np.array(differences)) == p


def test_of_many_differences_tosses_are_drawn():
    rng = np.random.default_rng(3)
    assert sign_flip_p(rng.normal(1.0, 1.0, 100)) < 0.001
    p_values = [sign_flip_p(rng.normal(0.0, 1.0, 30), seed=trial) for trial in range(100)]
    assert 0 < np.mean(np.array(p_values) < 0.1) < 0.25
    assert 0.35 < np.mean(p_values) < 0.65


def test_a_difference_is_called_only_where_chance_hardly_makes_it():
    rng = np.random.default_rng(4)
    luck = rng.normal(100.0, 50.0, 60)  # of the episodes, which both policies share
    first, better = played(luck), played(luck + rng.normal(5.0, 2.0, 60))
    comparison = compare(better, first)
    assert comparison.is_distinguishable
    assert comparison.interval[0] > 0
    assert "b is better than a (+" in comparison.sentence("b", "a")
    assert "a is worse than b (-" in compare(first, better).sentence("a", "b")
    alike = compare(played(luck + rng.normal(0.0, 2.0, 60)), first)
    assert not alike.is_distinguishable
    assert "cannot be told apart" in alike.sentence("b", "a")
    assert "the same return in every episode" in compare(first, first).sentence("b", "a")


def test_several_comparisons_at_once_each_need_stronger_evidence():
    returns = np.random.default_rng(5).normal(0.0, 1.0, 40)
    one, of_four = (compare(played(returns + 0.1), played(np.zeros(40)), number) for number in (1, 4))
    assert of_four.p == min(1.0, 4 * one.p)
    assert of_four.interval[0] < one.interval[0] < one.interval[1] < of_four.interval[1]


def test_test_and_interval_must_both_say_so():
    assert not Comparison(1.0, (0.1, 2.0), 0.06, 3, 0).is_distinguishable
    assert not Comparison(1.0, (-0.1, 2.0), 0.01, 3, 0).is_distinguishable
    assert Comparison(1.0, (0.1, 2.0), 0.01, 3, 0).is_distinguishable


@pytest.mark.parametrize(("first", "second"), [(0, 1), (-9, -9)])
def test_other_episodes_are_not_compared(first, second):
    with pytest.raises(EnvError, match="did not play the same episodes"):
        compare(played([1, 2], first), played([1, 2], second))
