"""V-trace and clipped advantages against the papers' sums, term by term."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.ops.gae import generalized_advantages, temporal_differences
from millrace.ops.vtrace import clipped_gae, vtrace

SEEDS = st.integers(0, 2**32 - 1)
GAMMA = 0.9


def random_rollout(seed, steps=9, slots=3):
    rng = np.random.default_rng(seed)
    reward, value, next_value = (rng.normal(size=(steps, slots)) for _ in range(3))
    terminated, truncated = (rng.random((steps, slots)) < 0.15 for _ in range(2))
    next_value[:-1] = np.where((terminated | truncated)[:-1], next_value[:-1], value[1:])
    ratio = np.exp(rng.normal(scale=0.8, size=(steps, slots)))
    return reward, value, next_value, terminated, terminated | truncated, ratio


def delta_of(reward, value, next_value, terminated):
    return reward + GAMMA * next_value * (1 - terminated) - value


def vtrace_by_the_sum(reward, value, next_value, terminated, done, ratio, decay, rho_bar, c_bar):
    """v_s = V(s) + sum over t of gamma^(t - s) (product of c_i, s <= i < t) rho_t delta_t, and the advantages."""
    delta = delta_of(reward, value, next_value, terminated)
    rho, c = np.minimum(rho_bar, ratio), decay * np.minimum(c_bar, ratio)
    steps, slots = reward.shape
    target, advantage = value.copy(), np.zeros_like(value)
    for b in range(slots):
        for s in range(steps):
            weight = 1.0
            for t in range(s, steps):
                target[s, b] += weight * rho[t, b] * delta[t, b]
                if done[t, b]:
                    break
                weight *= GAMMA * c[t, b]
    for b in range(slots):
        for s in range(steps):
            inside = s + 1 < steps and not done[s, b]
            following = target[s + 1, b] if inside else next_value[s, b] * (1 - terminated[s, b])
            advantage[s, b] = reward[s, b] + GAMMA * following - value[s, b]
    return target, advantage


def tensors(*arrays):
    return [torch.from_numpy(np.asarray(array)) for array in arrays]


@given(SEEDS, st.sampled_from([1.0, 0.95]), st.sampled_from([(1.0, 1.0), (2.0, 1.0), (3.0, 0.5)]))
@settings(max_examples=40, deadline=None)
def test_vtrace_is_the_papers_sum(seed, decay, bars):
    reward, value, next_value, terminated, done, ratio = random_rollout(seed)
    target, advantage = vtrace_by_the_sum(reward, value, next_value, terminated, done, ratio, decay, *bars)
    delta = temporal_differences(*tensors(reward, value, next_value, terminated), GAMMA)
    returns = vtrace(delta, *tensors(done, ratio), GAMMA, decay, *bars)
    np.testing.assert_allclose(returns.error.numpy() + value, target, atol=1e-9)
    np.testing.assert_allclose(returns.advantage.numpy(), advantage, atol=1e-9)


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_on_policy_vtrace_targets_are_those_of_gae(seed):
    reward, value, next_value, terminated, done, ratio = random_rollout(seed)
    delta = temporal_differences(*tensors(reward, value, next_value, terminated), GAMMA)
    done, ones = tensors(done, np.ones_like(ratio))
    advantage = generalized_advantages(delta, done, GAMMA, 0.95)
    np.testing.assert_allclose(vtrace(delta, done, ones, GAMMA, 0.95).error, advantage, atol=1e-9)
    np.testing.assert_allclose(clipped_gae(delta, done, ones, GAMMA, 0.95).advantage, advantage, atol=1e-9)


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_clipped_gae_scales_differences_by_rho_and_carries_by_c(seed):
    reward, value, next_value, terminated, done, ratio = random_rollout(seed)
    delta = delta_of(reward, value, next_value, terminated)
    expected, running = np.zeros_like(delta), np.zeros(delta.shape[1])
    for t in reversed(range(len(delta))):
        carried = GAMMA * 0.8 * (1 - done[t]) * np.minimum(1.1, ratio[t])
        running = np.minimum(1.5, ratio[t]) * delta[t] + carried * running
        expected[t] = running
    found = clipped_gae(*tensors(delta, done, ratio), GAMMA, 0.8, 1.5, 1.1)
    np.testing.assert_allclose(found.advantage, expected, atol=1e-9)


@pytest.mark.parametrize("method", [vtrace, clipped_gae])
@given(seed=SEEDS, cut=st.integers(1, 8))
@settings(max_examples=20, deadline=None)
def test_a_sequence_is_its_first_part_with_the_error_behind_it(method, seed, cut):
    reward, value, next_value, terminated, done, ratio = random_rollout(seed)
    delta, done, ratio = tensors(delta_of(reward, value, next_value, terminated), done, ratio)
    whole = method(delta, done, ratio, GAMMA, 0.9)
    part = method(delta[:cut], done[:cut], ratio[:cut], GAMMA, 0.9, after=whole.error[cut])
    for found, expected in zip(part, whole, strict=True):
        torch.testing.assert_close(found, expected[:cut])


@pytest.mark.parametrize("method", [vtrace, clipped_gae])
def test_two_episodes_in_a_rollout_equal_the_two_apart(method):
    reward, value, next_value, terminated, done, ratio = random_rollout(3)
    terminated[:], done[:] = False, False
    terminated[4], done[4] = True, True
    delta, done, ratio = tensors(delta_of(reward, value, next_value, terminated), done, ratio)
    whole = method(delta, done, ratio, GAMMA, 0.9)
    first, second = (method(delta[part], done[part], ratio[part], GAMMA, 0.9) for part in (slice(5), slice(5, None)))
    for name in ("error", "advantage"):
        torch.testing.assert_close(torch.cat([getattr(first, name), getattr(second, name)]), getattr(whole, name))
