"""At lag 0 the learner sees the data with the eyes of the collector."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers import opened
from millrace.ops.distributions import log_prob_and_entropy
from millrace.run import Run
from toys import Everything, Masked

NORMALIZED = {"ppo.normalize_observation": True, "ppo.normalize_reward": True}


def ratios(run: Run, batch) -> np.ndarray:
    """Of the acting policy's probabilities to the learner's, on valid rows."""
    rollout, spec = batch.rollout, run.probe.spec
    rows = {key: torch.from_numpy(array[:-1]).flatten(0, 1) for key, array in rollout.observation.items()}
    mask = None
    if rollout.action_mask is not None:
        bits = np.unpackbits(rollout.action_mask[:-1], axis=-1, count=spec.num_mask_bits, bitorder="little")
        mask = torch.from_numpy(bits.astype(bool)).flatten(0, 1)
    with torch.no_grad():
        params, _ = run.learner.policy(rows)
        log_prob, _ = log_prob_and_entropy(spec.action, params, torch.from_numpy(rollout.action).flatten(0, 1), mask)
    return np.exp(log_prob.numpy() - rollout.log_prob.ravel())[rollout.valid.ravel()]


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(
    "env", ["CartPole-v1", "Acrobot-v1", "Pendulum-v1", Masked, Everything, "millrace/RealmMini-v0"]
)
def test_the_first_minibatch_has_ratio_one(env, normalized, run_dir):
    settings = {"ppo.learning_rate": 0.01, **(NORMALIZED if normalized else {})}
    # A sum over seven columns has a few more bits of rounding.
    tolerance = 4e-6 if env is Everything else 1e-6
    with opened(env, run_dir, **settings) as run:
        for _ in range(6):
            batch = run.source.next_batch()
            np.testing.assert_allclose(ratios(run, batch), 1.0, rtol=0, atol=tolerance)
            before = run.learner.weights()
            run.learner.update(batch, run.env_steps)
            assert (run.learner.weights() != before).any()
            run.publish()
            # The data are another policy's by now.
            assert np.abs(ratios(run, batch) - 1).max() > 1e-3


@pytest.mark.parametrize("env", ["CartPole-v1", Everything])
def test_values_at_collection_are_the_learners_values_also_of_the_last_row(env, run_dir):
    with opened(env, run_dir, **NORMALIZED) as run:
        for _ in range(3):
            batch = run.source.next_batch()
            rows = {key: torch.from_numpy(array).flatten(0, 1) for key, array in batch.rollout.observation.items()}
            with torch.no_grad():
                _, value = run.learner.policy(rows)
            np.testing.assert_allclose(batch.rollout.value.ravel(), value.numpy(), atol=2e-6, rtol=2e-6)
            run.learner.update(batch, run.env_steps)
            run.publish()


def test_the_normaliser_holds_the_moments_of_every_valid_observation_once(run_dir):
    with opened("CartPole-v1", run_dir, **NORMALIZED) as run:
        seen = []
        for _ in range(5):
            batch = run.source.next_batch()
            seen.append(batch.rollout.observation["obs"][:-1][batch.rollout.valid].astype(np.float64))
            run.learner.update(batch, run.env_steps)
            run.publish()
        rows = np.concatenate(seen)
        normalizer = run.learner.policy.normalizer["obs"]
        assert float(normalizer.row_count) == len(rows)
        np.testing.assert_allclose(normalizer.offset.numpy(), rows.mean(0), rtol=1e-5)
        np.testing.assert_allclose(1 / normalizer.factor.numpy(), rows.std(0), rtol=1e-4)


def test_a_rollout_continues_where_the_one_before_ended(run_dir):
    with opened("CartPole-v1", run_dir) as run:
        last = None
        for _ in range(4):
            batch = run.source.next_batch()
            if last is not None:
                np.testing.assert_array_equal(batch.rollout.observation["obs"][0], last)
            last = batch.rollout.observation["obs"][-1].copy()
            run.learner.update(batch, 0)
            run.publish()
