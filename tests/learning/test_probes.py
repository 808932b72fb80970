"""Environments whose answer is known: each isolates one link between reward and weights."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import millrace
from helpers import opened, quick_train
from toys import ForEver, Masked, OneStep, TwoStepCredit

SETTINGS = {"ppo.learning_rate": 0.003, "net.hidden": [32], "metrics.every_s": 10.0, "ppo.gamma": 0.9}
SIZES = {"backend": "serial", "workers": 1, "envs_per_worker": 8, "rollout_steps": 32}


def probe(env, run_dir, updates: int, **settings):
    return quick_train(env, run_dir, {**SETTINGS, "stop.updates": updates, **settings}, **SIZES).policy


@pytest.mark.parametrize("truncate_every", [1, 5, 100])
def test_reward_one_for_ever_under_truncation_is_worth_one_over_one_minus_gamma(truncate_every, run_dir):
    """Taken for a termination, a truncation every 5 steps would give 3 or so; from the wrong observation, anything."""
    policy = probe(functools.partial(ForEver, truncate_every), run_dir, updates=150, **{"ppo.gamma": 0.8})
    assert float(policy.value(np.zeros(1, np.float32))[0]) == pytest.approx(1 / (1 - 0.8), rel=0.1)


@pytest.mark.parametrize("mode", ["SAME_STEP", "DISABLED"])
def test_the_same_holds_where_environments_reset_in_the_same_step(mode, run_dir):
    def make(num_envs=8):
        from gymnasium.vector import AutoresetMode, SyncVectorEnv

        return SyncVectorEnv([functools.partial(ForEver, 5)] * num_envs, autoreset_mode=AutoresetMode[mode])

    policy = probe(make, run_dir, updates=150, **{"ppo.gamma": 0.8})
    assert float(policy.value(np.zeros(1, np.float32))[0]) == pytest.approx(5.0, rel=0.1)


def test_the_same_holds_in_units_of_a_normalised_reward(run_dir):
    with opened(
        functools.partial(ForEver, 5),
        run_dir,
        **{
            **SETTINGS,
            "ppo.gamma": 0.8,
            "ppo.normalize_reward": True,
            "collect.workers": 1,
            "collect.envs_per_worker": 8,
        },
    ) as run:
        for _ in range(300):
            batch = run.source.next_batch()
            run.learner.update(batch, 0)
            run.publish()
        # Discounted sums of the rewards since each episode's start: 1, 1.8, ...; their deviation is the unit.
        sums = [sum(0.8**k for k in range(t + 1)) for t in range(5)]
        assert batch.rollout.value.mean() == pytest.approx(5.0 / np.std(sums), rel=0.15)


def test_a_value_follows_the_observation_that_its_reward_depends_on(run_dir):
    policy = probe(functools.partial(OneStep, "observation"), run_dir, updates=120)
    values = policy.value(np.array([[-1.0], [1.0]], np.float32))
    np.testing.assert_allclose(values, [-1.0, 1.0], atol=0.1)


def test_an_action_follows_the_observation_that_its_reward_depends_on(run_dir):
    policy = probe(functools.partial(OneStep, "action"), run_dir, updates=60)
    assert policy.act(np.array([[-1.0], [1.0]], np.float32)) == [0, 1]
    assert millrace.evaluate(policy, functools.partial(OneStep, "action"), episodes=50).mean_return == 1.0


def test_credit_reaches_an_action_whose_reward_comes_a_step_later(run_dir):
    policy = probe(TwoStepCredit, run_dir, updates=80)
    first = np.array([[-1.0, 0.0], [1.0, 0.0]], np.float32)
    assert policy.act(first) == [0, 1]
    np.testing.assert_allclose(policy.value(first), [0.9, 0.9], atol=0.15)


@pytest.mark.parametrize("where", ["observation", "info"])
def test_masks_are_not_violated_once_in_a_hundred_thousand_steps(where, run_dir):
    """The environment itself refuses a forbidden action, which would be a restart; the policy learns meanwhile."""
    env = functools.partial(Masked, where)
    result = quick_train(
        env, run_dir, {"ppo.learning_rate": 0.01, "ppo.entropy_coef": 0.01, "ppo.epochs": 1, "metrics.every_s": 10.0},
        backend="serial", workers=1, envs_per_worker=16, rollout_steps=128, total_env_steps=100_000,
    )  # fmt: skip
    from helpers import rows_of

    assert result.env_steps >= 100_000
    assert rows_of(run_dir)[-1]["restarts"] == 0


def test_an_all_false_mask_is_refused_with_worker_slot_seed_and_step(run_dir):
    env = functools.partial(Masked, "observation", all_false_at=2)
    with pytest.raises(
        millrace.MillraceError, match=r"worker \d, step \d+.*slot \d, episode seed \d+.*allows no action"
    ):
        quick_train(env, run_dir, {"collect.max_restarts": 0}, backend="serial")
