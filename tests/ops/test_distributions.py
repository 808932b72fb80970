"""The NumPy and the torch form of the action distribution, held against torch.distributions and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Normal

from millrace.ops.distributions import log_prob_and_entropy
from millrace.ops.sampling import best_actions, sample_actions
from millrace.types import ActionSpec

SPECS = {
    "two-way": ActionSpec(nvec=(2,)),
    "categorical": ActionSpec(nvec=(5,)),
    "several categoricals": ActionSpec(nvec=(3, 2, 4)),
    "bits": ActionSpec(nvec=(2, 2, 2)),
    "box": ActionSpec(low=(-1.0, -2.0), high=(1.0, 2.0)),
    "categoricals and box": ActionSpec(nvec=(3, 2), low=(-1.0, 0.0), high=(1.0, 1.0)),
}
MASKABLE = [name for name, spec in SPECS.items() if spec.nvec]


def random_params(spec, num_rows, seed=0, scale=2.0):
    return np.random.default_rng(seed).normal(scale=scale, size=(num_rows, spec.num_params)).astype(np.float32)


def random_mask(spec, num_rows, seed=0):
    """At least one action of every category column stays allowed."""
    rng = np.random.default_rng(seed)
    mask = rng.random((num_rows, spec.num_logits)) < 0.5
    first = 0
    for size in spec.nvec:
        mask[np.arange(num_rows), first + rng.integers(size, size=num_rows)] = True
        first += size
    return mask


def draw(spec, params, mask=None, seed=0):
    action = np.empty((len(params), spec.num_columns), spec.dtype)
    log_prob = np.empty(len(params), np.float32)
    sample_actions(spec, params, mask, np.random.default_rng(seed), action, log_prob)
    return action, log_prob


def by_torch(spec, params, action, mask=None):
    """Log-probability and entropy in float64, one torch distribution a column."""
    params, action = torch.from_numpy(params).double(), torch.from_numpy(action).double()
    log_prob, entropy = torch.zeros(len(params)).double(), torch.zeros(len(params)).double()
    first = 0
    for column, size in enumerate(spec.nvec):
        logits = params[:, first : first + size]
        if mask is not None:
            logits = logits.masked_fill(torch.from_numpy(~mask[:, first : first + size]), -math.inf)
        distribution = Categorical(logits=logits)
        log_prob += distribution.log_prob(action[:, column])
        p = distribution.probs
        entropy += -torch.where(p > 0, p * p.clamp_min(1e-300).log(), 0.0).sum(-1)
        first += size
    if spec.num_box:
        mean, log_std = params[:, first : first + spec.num_box], params[:, first + spec.num_box :]
        distribution = Normal(mean, log_std.exp())
        log_prob += distribution.log_prob(action[:, len(spec.nvec) :]).sum(-1)
        entropy += distribution.entropy().sum(-1)
    return log_prob.numpy(), entropy.numpy()


def tensors(*arrays):
    return [None if array is None else torch.from_numpy(array) for array in arrays]


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_sampled_log_probs_equal_those_of_torch(name, is_masked):
    spec = SPECS[name]
    params = random_params(spec, 400)
    mask = random_mask(spec, 400) if is_masked else None
    action, log_prob = draw(spec, params, mask)
    expected, _ = by_torch(spec, params, action, mask)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-6, atol=1e-6 * spec.num_columns)


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_the_learners_log_probs_and_entropies_equal_those_of_torch(name, is_masked):
    spec = SPECS[name]
    params = random_params(spec, 400, seed=1)
    mask = random_mask(spec, 400, seed=1) if is_masked else None
    action, _ = draw(spec, params, mask)
    log_prob, entropy = log_prob_and_entropy(spec, *tensors(params, action, mask))
    expected_log_prob, expected_entropy = by_torch(spec, params, action, mask)
    # Squares of far-off Gaussian draws lose a few bits of float32.
    np.testing.assert_allclose(log_prob, expected_log_prob, rtol=3e-6, atol=3e-6)
    np.testing.assert_allclose(entropy, expected_entropy, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MASKABLE)
def test_masked_actions_are_never_drawn(name):
    spec = SPECS[name]
    for seed in range(5):
        params, mask = random_params(spec, 20_000, seed, scale=5.0), random_mask(spec, 20_000, seed)
        action, _ = draw(spec, params, mask, seed)
        first = 0
        for column, size in enumerate(spec.nvec):
            allowed = mask[:, first : first + size]
            assert allowed[np.arange(20_000), action[:, column].astype(int)].all()
            first += size


def test_a_masked_action_is_not_drawn_even_where_its_logit_is_the_largest():
    spec = ActionSpec(nvec=(3,))
    params = np.tile(np.array([[100.0, 0.0, 0.0]], np.float32), (10_000, 1))
    action, log_prob = draw(spec, params, np.tile([[False, True, True]], (10_000, 1)))
    assert set(action[:, 0]) == {1, 2}
    np.testing.assert_allclose(log_prob, math.log(0.5), rtol=1e-6)


@pytest.mark.parametrize("rng_value", [0.0, np.float32(1 - 2**-24)])
def test_the_smallest_and_largest_random_numbers_draw_allowed_actions(rng_value):
    class Fixed:
        def random(self, size, dtype):
            return np.full(size, rng_value, dtype)

    spec = ActionSpec(nvec=(4,))
    action, log_prob = np.empty((500, 1), np.int32), np.empty(500, np.float32)
    mask = np.tile([[False, True, True, False]], (500, 1))
    sample_actions(spec, random_params(spec, 500, scale=8.0), mask, Fixed(), action, log_prob)
    assert set(action[:, 0]) <= {1, 2}
    assert np.isfinite(log_prob).all()


@pytest.mark.parametrize("name", ["two-way", "categorical", "several categoricals"])
def test_frequencies_pass_a_chi_square_test(name):
    spec = SPECS[name]
    num_draws = 100_000
    params = np.tile(random_params(spec, 1, seed=4, scale=1.0), (num_draws, 1))
    action, _ = draw(spec, params, seed=2)
    first = 0
    for column, size in enumerate(spec.nvec):
        expected = num_draws * torch.softmax(torch.from_numpy(params[0, first : first + size]).double(), 0).numpy()
        counts = np.bincount(action[:, column], minlength=size)
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        # 99.99 % quantiles for 1..4 degrees of freedom.
        assert chi_square < {1: 15.1, 2: 18.4, 3: 21.1, 4: 23.5}[size - 1]
        first += size


def test_columns_are_drawn_independently():
    spec = ActionSpec(nvec=(2, 2))
    action, _ = draw(spec, np.zeros((100_000, 4), np.float32))
    assert abs(np.corrcoef(action[:, 0], action[:, 1])[0, 1]) < 0.02


def test_box_draws_have_the_mean_and_deviation_of_their_parameters():
    spec = SPECS["box"]
    params = np.tile(np.array([[1.0, -3.0, math.log(0.5), math.log(2.0)]], np.float32), (100_000, 1))
    action, _ = draw(spec, params)
    np.testing.assert_allclose(action.mean(0), [1.0, -3.0], atol=0.03)
    np.testing.assert_allclose(action.std(0), [0.5, 2.0], rtol=0.02)


@pytest.mark.parametrize("name", SPECS)
def test_the_best_action_has_the_highest_probability(name):
    spec = SPECS[name]
    params = random_params(spec, 200, seed=7)
    mask = random_mask(spec, 200, seed=7) if spec.nvec else None
    best, _ = by_torch(spec, params, best_actions(spec, params, mask), mask)
    for seed in range(20):
        drawn, _ = by_torch(spec, params, draw(spec, params, mask, seed)[0], mask)
        assert (best >= drawn - 1e-9).all()


def test_the_same_seed_draws_the_same_actions():
    spec = SPECS["categoricals and box"]
    params = random_params(spec, 50)
    np.testing.assert_array_equal(draw(spec, params, seed=5)[0], draw(spec, params, seed=5)[0])
    assert (draw(spec, params, seed=5)[0] != draw(spec, params, seed=6)[0]).any()


@pytest.mark.parametrize("name", SPECS)
def test_gradients_of_log_prob_and_entropy_are_finite_under_masks_and_extreme_logits(name):
    spec = SPECS[name]
    mask = random_mask(spec, 50) if spec.nvec else None
    action, _ = draw(spec, random_params(spec, 50), mask)
    params = torch.from_numpy(random_params(spec, 50, scale=1.0))
    params[:, : spec.num_logits] *= 60
    params.requires_grad_()
    log_prob, entropy = log_prob_and_entropy(spec, params, *tensors(action, mask))
    (log_prob.sum() + entropy.sum()).backward()
    assert torch.isfinite(params.grad).all()
