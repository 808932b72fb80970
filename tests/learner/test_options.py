"""The options of PPO that are off by default: each does what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from learner.test_update import SLOTS, STEPS, make_batch, make_learner
from millrace.config import Config, PPOConfig
from millrace.errors import ConfigError
from millrace.learner.schedules import Schedules
from millrace.ops.losses import clipped_policy_loss
from millrace.resolve import Probe, resolve


def test_the_kl_schedule_slows_above_twice_and_quickens_below_half_of_the_desired_kl():
    schedules = Schedules(PPOConfig(learning_rate=1e-3, learning_rate_schedule="kl", desired_kl=0.01), 100)
    rates = []
    for kl in (0.021, 0.012, 0.004):
        schedules.observe_kl(kl)
        rates.append(schedules.at(50)[0])
    assert rates == pytest.approx([1e-3 / 1.5, 1e-3 / 1.5, 1e-3])


def test_the_kl_schedule_continues_from_a_saved_state():
    first = make_learner(learning_rate_schedule="kl", desired_kl=1e-9)
    first.update(make_batch(), 0)
    second = make_learner(learning_rate_schedule="kl", desired_kl=1e-9)
    second.load_state(first.save_state())
    rate = second.update(make_batch(1), 0)["learning_rate"]
    assert rate == first.update(make_batch(1), 0)["learning_rate"] < first.config.learning_rate


def test_the_dual_clip_bounds_the_objective_only_where_the_advantage_is_negative():
    log_ratio, advantage = torch.tensor([2.0, 2.0, 0.0]), torch.tensor([-1.0, 1.0, -1.0])
    for row, expected in enumerate((3.0, -1.2, 1.0)):
        weight = torch.zeros(3)
        weight[row] = 1.0
        loss = clipped_policy_loss(log_ratio, advantage, weight, clip=0.2, dual_clip=3.0)
        assert float(loss) == pytest.approx(expected)


def test_reward_scale_and_clip_act_in_this_order():
    batch = make_batch()
    targets = make_learner(reward_scale=10.0, reward_clip=4.0, gae_lambda=0.0, gamma=0.0)._targets
    rows = targets.rows(batch)
    expected = np.clip(batch.rollout.reward * 10.0, -4.0, 4.0).ravel()
    valid = batch.rollout.valid.ravel()
    assert (np.abs(expected) == 4.0).any()
    np.testing.assert_allclose(rows.target.numpy()[valid], expected[valid], rtol=1e-6)


def test_recomputed_advantages_come_from_the_present_values():
    batch, learner = make_batch(), make_learner(gae_lambda=1.0, gamma=0.9)
    rows = learner._targets.rows(batch)
    observation = torch.from_numpy(batch.rollout.observation["obs"]).flatten(0, 1)
    with torch.no_grad():
        value = learner.policy({"obs": observation})[1]
    refreshed = learner._targets.refreshed(rows, batch)
    batch.rollout.value[:] = value.view(STEPS + 1, SLOTS).numpy()
    expected = learner._targets.rows(batch)
    torch.testing.assert_close(refreshed.advantage, expected.advantage)
    torch.testing.assert_close(refreshed.target, expected.target)
    assert torch.equal(refreshed.value, rows.value)


def test_recomputing_changes_what_later_epochs_learn():
    weights = {}
    for recompute in (False, True):
        learner = make_learner(epochs=3, recompute_advantage=recompute)
        learner.update(make_batch(), 0)
        weights[recompute] = learner.weights()
    assert (weights[True] != weights[False]).any()


def probe() -> Probe:
    policy = make_learner().policy
    return Probe(policy.spec, (None, None), False, True, "state")  # type: ignore[arg-type]


def test_a_number_of_minibatches_sets_their_size():
    settings = {"collect.workers": 1, "collect.envs_per_worker": 8, "collect.rollout_steps": 16, "ppo.minibatches": 8}
    assert resolve(Config().replace(settings), probe()).ppo.minibatch_size == 16
    with pytest.raises(ConfigError, match=r"ppo.minibatches=7 does not divide the batch of 128 rows"):
        resolve(Config().replace({**settings, "ppo.minibatches": 7}), probe())
    with pytest.raises(ConfigError, match="not both"):
        Config().replace({"ppo.minibatches": 2, "ppo.minibatch_size": 64})


def test_the_lag_of_a_batch_is_told_by_row_as_largest_mean_and_smallest():
    batch = make_batch(version=5)
    batch.rollout.policy_version[:] = 4
    batch.rollout.policy_version[:, 0] = 2
    stats = make_learner().update(batch, 0)
    lag = 5 - batch.rollout.policy_version[batch.rollout.valid]
    assert (stats["policy_lag"], stats["policy_lag_min"]) == (3.0, 1.0)
    assert stats["policy_lag_mean"] == pytest.approx(lag.mean())


def test_reward_statistics_can_be_taken_over_alone():
    old = make_learner(normalize_reward=True)
    old.update(make_batch(), 0)
    new = make_learner(normalize_reward=True)
    new.load_reward_statistics(old.save_state())
    reward = make_batch(3).rollout.reward
    assert (old._reward_scaler.scale(reward) != reward).all()
    np.testing.assert_array_equal(new._reward_scaler.scale(reward), old._reward_scaler.scale(reward))
    assert new.save_state()["reward_scaler"]["running"] == {}
    assert new.updates == 0
