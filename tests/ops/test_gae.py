"""Generalized advantages against their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.ops.gae import generalized_advantages, temporal_differences

GAMMA, LAMBDA = 0.97, 0.9


def by_definition(reward, value, next_value, terminated, done, gamma=GAMMA, gae_lambda=LAMBDA):
    """A_t = sum over l of (gamma lambda)^l delta_{t+l}, up to the end of the episode or of the rollout."""
    steps, slots = reward.shape
    advantage = np.zeros((steps, slots))
    for b in range(slots):
        for t in range(steps):
            for k in range(t, steps):
                bootstrap = 0.0 if terminated[k, b] else next_value[k, b]
                delta = reward[k, b] + gamma * bootstrap - value[k, b]
                advantage[t, b] += (gamma * gae_lambda) ** (k - t) * delta
                if done[k, b]:
                    break
    return advantage


def estimate(reward, value, next_value, terminated, done, gamma=GAMMA, gae_lambda=LAMBDA):
    tensors = [torch.from_numpy(np.asarray(x)) for x in (reward, value, next_value, terminated, done)]
    delta = temporal_differences(*tensors[:-1], gamma)
    return generalized_advantages(delta, tensors[-1], gamma, gae_lambda).numpy()


def random_rollout(rng, steps, slots):
    reward, value, next_value = (rng.normal(size=(steps, slots)) for _ in range(3))
    terminated = rng.random((steps, slots)) < 0.2
    truncated = rng.random((steps, slots)) < 0.2
    return reward, value, next_value, terminated, terminated | truncated


def test_one_step_by_hand():
    advantage = estimate([[1.0]], [[0.5]], [[2.0]], [[False]], [[False]], gamma=0.5)
    assert advantage == pytest.approx(1.0 + 0.5 * 2.0 - 0.5)


def test_three_steps_by_hand():
    # delta = 1 + 0.5 * 2 - 2 = 0 then 1 + 0.5 * 4 - 2 = 1 then, terminated, 1 - 4 = -3
    advantage = estimate(
        [[1.0], [1.0], [1.0]],
        [[2.0], [2.0], [4.0]],
        [[2.0], [4.0], [99.0]],
        [[False], [False], [True]],
        [[False], [False], [True]],
        gamma=0.5,
        gae_lambda=0.5,
    )
    assert advantage[:, 0] == pytest.approx([0.0 + 0.25 * (1 + 0.25 * -3), 1 + 0.25 * -3, -3.0])


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_sum_of_discounted_deltas_of_each_episode(seed):
    rollout = random_rollout(np.random.default_rng(seed), steps=17, slots=6)
    np.testing.assert_allclose(estimate(*rollout), by_definition(*rollout), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["terminated", "truncated"])
@pytest.mark.parametrize("ends", [[0], [8], [4], [3, 4], [0, 8], [7, 8], [0, 1, 2]])
def test_ends_at_the_first_row_the_last_row_and_running(kind, ends):
    rng = np.random.default_rng(0)
    reward, value, next_value = (rng.normal(size=(9, 1)) for _ in range(3))
    done = np.zeros((9, 1), bool)
    done[ends] = True
    terminated = done if kind == "terminated" else np.zeros_like(done)
    arguments = (reward, value, next_value, terminated, done)
    np.testing.assert_allclose(estimate(*arguments), by_definition(*arguments), rtol=1e-12, atol=1e-12)


def test_a_truncated_episode_is_bootstrapped_and_a_terminated_one_is_not():
    base = ([[1.0]], [[0.0]], [[10.0]])
    assert estimate(*base, [[False]], [[True]]) == pytest.approx(1.0 + GAMMA * 10.0)
    assert estimate(*base, [[True]], [[True]]) == pytest.approx(1.0)


def test_what_follows_an_end_never_flows_back():
    rng = np.random.default_rng(1)
    reward, value, next_value, terminated, done = random_rollout(rng, 12, 3)
    done[5], terminated[5] = True, False
    before = estimate(reward, value, next_value, terminated, done)[:6]
    reward[6:], value[6:], next_value[6:] = 1e6, -1e6, 1e6
    np.testing.assert_array_equal(estimate(reward, value, next_value, terminated, done)[:6], before)


def test_a_value_after_termination_may_be_anything_even_not_a_number():
    advantage = estimate([[1.0]], [[0.25]], [[np.nan]], [[True]], [[True]])
    assert advantage == pytest.approx(0.75)


@given(st.integers(1, 12), st.integers(1, 12), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_two_episodes_in_one_rollout_equal_the_two_apart(first_steps, second_steps, is_terminated, seed):
    rng = np.random.default_rng(seed)
    steps = first_steps + second_steps
    reward, value, next_value = (rng.normal(size=(steps, 2)) for _ in range(3))
    done = np.zeros((steps, 2), bool)
    done[first_steps - 1] = True
    terminated = done & is_terminated
    together = estimate(reward, value, next_value, terminated, done)
    parts = [
        estimate(*(x[rows] for x in (reward, value, next_value, terminated, done)))
        for rows in (slice(0, first_steps), slice(first_steps, steps))
    ]
    np.testing.assert_array_equal(together, np.concatenate(parts))


@given(st.integers(1, 10), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_the_definition_holds_for_every_discount(steps, gamma, gae_lambda, seed):
    rollout = random_rollout(np.random.default_rng(seed), steps, 3)
    np.testing.assert_allclose(
        estimate(*rollout, gamma, gae_lambda), by_definition(*rollout, gamma, gae_lambda), rtol=1e-9, atol=1e-9
    )


def test_lambda_one_is_the_discounted_return_minus_the_value():
    rng = np.random.default_rng(3)
    reward, value = rng.normal(size=(6, 1)), rng.normal(size=(7, 1))
    never = np.zeros((6, 1), bool)
    advantage = estimate(reward, value[:-1], value[1:], never, never, gamma=0.9, gae_lambda=1.0)
    discounted = sum(0.9**k * reward[k, 0] for k in range(6)) + 0.9**6 * value[6, 0]
    assert advantage[0, 0] == pytest.approx(discounted - value[0, 0])
