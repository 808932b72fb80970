"""The objectives against literal loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.ops import losses

SEEDS = st.integers(0, 2**32 - 1)


def draw(seed, size=23):
    rng = np.random.default_rng(seed)
    weight = (rng.random(size) < 0.7).astype(float)
    weight[0] = 1.0
    return rng.normal(scale=0.4, size=size), rng.normal(size=size), weight


def tensors(*arrays):
    return [torch.from_numpy(np.asarray(array, float)) for array in arrays]


@given(SEEDS, st.floats(0.01, 0.5))
@settings(max_examples=50, deadline=None)
def test_the_policy_loss_is_the_mean_of_the_pessimistic_surrogates(seed, clip):
    log_ratio, advantage, weight = draw(seed)
    total = 0.0
    for x, a, w in zip(log_ratio, advantage, weight, strict=True):
        ratio = math.exp(x)
        clipped = max(1 - clip, min(1 + clip, ratio))
        total += w * min(ratio * a, clipped * a)
    loss = losses.clipped_policy_loss(*tensors(log_ratio, advantage, weight), clip)
    assert loss.item() == pytest.approx(-total / weight.sum(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.5, 1.0, -1.2),
        (0.5, 1.0, -0.5),
        (1.5, -1.0, 1.5),
        (0.5, -1.0, 0.8),
        (1.0, 3.0, -3.0),
    ],
)
def test_the_policy_loss_of_one_row_by_hand(ratio, advantage, expected):
    loss = losses.clipped_policy_loss(*tensors([math.log(ratio)], [advantage], [1.0]), 0.2)
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize(("ratio", "advantage"), [(1.5, 1.0), (0.5, -1.0)])
def test_a_row_beyond_the_clip_has_no_gradient(ratio, advantage):
    log_ratio = torch.tensor([math.log(ratio)], requires_grad=True)
    losses.clipped_policy_loss(log_ratio, torch.tensor([advantage]), torch.ones(1), 0.2).backward()
    assert log_ratio.grad.item() == 0.0


@given(SEEDS, st.sampled_from([0.0, 0.1, 0.5]))
@settings(max_examples=50, deadline=None)
def test_the_value_loss_is_half_the_mean_of_the_larger_squares(seed, clip):
    value, target, weight = draw(seed)
    old_value = value + np.random.default_rng(seed + 1).normal(scale=0.4, size=len(value))
    total = 0.0
    for v, o, y, w in zip(value, old_value, target, weight, strict=True):
        error = (v - y) ** 2
        if clip:
            error = max(error, (o + max(-clip, min(clip, v - o)) - y) ** 2)
        total += w * error
    loss = losses.value_loss(*tensors(value, old_value, target, weight), clip)
    assert loss.item() == pytest.approx(0.5 * total / weight.sum(), rel=1e-9)


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_rows_without_weight_count_for_nothing(seed):
    x, advantage, weight = draw(seed)
    kept = weight > 0
    spoiled = np.where(kept, advantage, 1e9)
    ones = np.ones(int(kept.sum()))
    for whole, part in (
        (losses.weighted_mean(*tensors(spoiled, weight)), advantage[kept].mean()),
        (
            losses.clipped_policy_loss(*tensors(x, spoiled, weight), 0.2),
            losses.clipped_policy_loss(*tensors(x[kept], advantage[kept], ones), 0.2).item(),
        ),
        (
            losses.explained_variance(*tensors(x, spoiled, weight)),
            losses.explained_variance(*tensors(x[kept], advantage[kept], ones)).item(),
        ),
    ):
        assert whole.item() == pytest.approx(part, rel=1e-9, abs=1e-12)


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_normalized_advantages_have_mean_zero_and_deviation_one_over_the_valid_rows(seed):
    _, advantage, weight = draw(seed)
    normalized = losses.normalize_advantages(*tensors(3 + 7 * advantage, weight)).numpy()[weight > 0]
    if len(normalized) > 1:
        assert normalized.mean() == pytest.approx(0.0, abs=1e-9)
        assert normalized.std() == pytest.approx(1.0, rel=1e-5)


def test_equal_advantages_normalize_to_zero_and_not_to_a_division_by_zero():
    assert losses.normalize_advantages(torch.full((4,), 5.0), torch.ones(4)).tolist() == [0.0] * 4


def test_no_valid_row_gives_a_loss_of_zero():
    nothing = torch.zeros(3)
    assert losses.clipped_policy_loss(torch.ones(3), torch.ones(3), nothing, 0.2).item() == 0.0
    assert losses.value_loss(torch.ones(3), torch.zeros(3), torch.zeros(3), nothing, 0.0).item() == 0.0


def test_the_approximate_kl_estimates_the_divergence_of_two_distributions():
    torch.manual_seed(0)
    old = torch.distributions.Categorical(logits=torch.tensor([0.3, -0.2, 0.5]))
    new = torch.distributions.Categorical(logits=torch.tensor([0.1, 0.2, 0.3]))
    action = old.sample((200_000,))
    estimate = losses.approximate_kl(new.log_prob(action) - old.log_prob(action), torch.ones(len(action)))
    assert estimate.item() == pytest.approx(torch.distributions.kl_divergence(old, new).item(), rel=0.05)


def test_the_effective_sample_share_is_one_on_policy_and_one_over_n_when_a_single_row_rules():
    assert losses.effective_sample_share(torch.zeros(8), torch.ones(8)).item() == pytest.approx(1.0)
    one_rules = torch.tensor([20.0] + [-20.0] * 7)
    assert losses.effective_sample_share(one_rules, torch.ones(8)).item() == pytest.approx(1 / 8)


def test_explained_variance_is_one_for_perfect_values_and_zero_for_a_constant():
    target = torch.arange(5.0)
    assert losses.explained_variance(target, target, torch.ones(5)).item() == pytest.approx(1.0)
    assert losses.explained_variance(torch.full((5,), 9.0), target, torch.ones(5)).item() == pytest.approx(0.0)


@given(SEEDS, st.sampled_from([1.5, 100.0]))
@settings(max_examples=50, deadline=None)
def test_the_decoupled_loss_clips_around_the_proximal_policy_and_weighs_by_the_acting_one(seed, cap):
    log_ratio, advantage, weight = draw(seed)
    log_importance = np.random.default_rng(seed + 1).normal(scale=0.5, size=len(weight))
    total = 0.0
    for x, i, a, w in zip(log_ratio, log_importance, advantage, weight, strict=True):
        clipped = max(0.8, min(1.2, math.exp(x))) * math.exp(i)
        total += w * min(min(cap, math.exp(x + i)) * a, min(cap, clipped) * a)
    found = losses.clipped_policy_loss(
        *tensors(log_ratio, advantage, weight), 0.2, 0.0, *tensors(log_importance), ratio_cap=cap
    )
    assert found.item() == pytest.approx(-total / weight.sum(), rel=1e-9, abs=1e-12)


def test_beyond_the_cap_a_ratio_has_no_gradient():
    log_ratio = torch.tensor([math.log(3.0), math.log(1.1)], requires_grad=True)
    advantage = torch.tensor([-1.0, -1.0])
    losses.clipped_policy_loss(log_ratio, advantage, torch.ones(2), 0.2, ratio_cap=2.0).backward()
    assert log_ratio.grad[0].item() == 0.0
    assert log_ratio.grad[1].item() != 0.0


def test_the_tail_share_counts_ratios_that_more_than_double_or_halve():
    log_ratio = torch.tensor([math.log(2.1), math.log(0.4), 0.0, math.log(1.9), math.log(9.0)])
    weight = torch.tensor([1.0, 0.5, 1.0, 1.0, 0.0])
    assert losses.ratio_tail_share(log_ratio, weight).item() == pytest.approx(2 / 4)
