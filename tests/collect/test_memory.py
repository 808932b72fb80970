"""Policies that remember: what the learner makes of a rollout is what the collector acted on."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import millrace
from helpers import evaluated, opened, quick_train
from millrace.deploy.policy import load_policy
from millrace.learner.targets import stack_index
from millrace.nets.memory import Memory
from millrace.ops.distributions import log_prob_and_entropy
from millrace.types import ActionSpec, ArraySpec, SlotSpec
from toys import Clock, Recall


def in_step(mode: str):
    def make(num_envs=8):
        return SyncVectorEnv([Clock] * num_envs, autoreset_mode=AutoresetMode[mode])

    return make


ENVS = {"next step": Clock, "same step": in_step("SAME_STEP"), "vector, next step": in_step("NEXT_STEP")}
POLICIES = {
    "gru": {"net.memory": "gru", "net.memory_size": 6},
    "lstm": {"net.memory": "lstm", "net.memory_size": 6},
    "shared lstm": {"net.memory": "lstm", "net.memory_size": 6, "net.shared": True},
    "stack": {"env.frame_stack": 3},
    "stack and gru": {"env.frame_stack": 3, "net.memory": "gru", "net.memory_size": 6},
}
NORMALIZED = {"ppo.normalize_observation": True}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("env", ENVS)
def test_the_learner_sees_probabilities_and_values_as_the_collector_did(env, policy, run_dir):
    with opened(ENVS[env], run_dir, **POLICIES[policy], **NORMALIZED, **{"ppo.learning_rate": 0.01}) as run:
        for _ in range(4):
            batch = run.source.next_batch()
            rollout = batch.rollout
            params, value = evaluated(run, rollout)
            action = torch.from_numpy(rollout.action).flatten(0, 1)
            log_prob, _ = log_prob_and_entropy(run.probe.spec.action, params[: len(action)], action)
            valid = rollout.valid.ravel()
            np.testing.assert_allclose(log_prob.numpy()[valid], rollout.log_prob.ravel()[valid], atol=2e-6)
            np.testing.assert_allclose(value.numpy(), rollout.value.ravel(), atol=2e-6)
            run.learner.update(batch, run.env_steps)
            run.publish()


@pytest.mark.parametrize("env", ENVS)
def test_a_stack_never_reaches_into_the_episode_before(env, run_dir):
    """A clock's observation has the episode's tag and the steps so far."""
    with opened(ENVS[env], run_dir, **{"env.frame_stack": 4, "collect.rollout_steps": 5}) as run:
        for _ in range(5):
            rollout = run.source.next_batch().rollout
            index = stack_index(rollout, 4, 6)
            frames = rollout.observation["obs"].reshape(-1, 3)[index]  # [6 * B, 4, 3]
            tags, ticks = frames[..., 0], frames[..., 1]
            assert (tags == tags[:, -1:]).all()
            newest = ticks[:, -1:]
            np.testing.assert_array_equal(ticks, np.maximum(newest - np.arange(3, -1, -1), 0))
            np.testing.assert_array_equal(rollout.age.reshape(-1), ticks[:, -1])
            run.publish()


def test_every_frame_is_stored_once(run_dir):
    with opened(Clock, run_dir, **{"env.frame_stack": 4, "collect.rollout_steps": 16}) as run:
        rollout = run.source.next_batch().rollout
        assert rollout.observation["obs"].shape == (3 + 17, 8, 3)


def test_a_memory_forgets_the_slots_that_begin_and_no_others():
    spec = SlotSpec({"obs": ArraySpec((1,), "float32", stack=3)}, ActionSpec(nvec=(2,)))
    memory = Memory(spec, 2, 2)
    for tick in range(1, 5):
        memory.see({"obs": np.full((2, 1), tick, np.float32)})
        memory.state[:] = tick
    memory.begin(np.array([True, False]))
    seen_now = memory.see({"obs": np.full((2, 1), 9, np.float32)})["obs"]
    np.testing.assert_array_equal(seen_now[..., 0], [[9, 9, 9], [3, 4, 9]])
    np.testing.assert_array_equal(memory.state, [[0, 0], [4, 4]])
    np.testing.assert_array_equal(memory.age, [0, 4])


def test_gradients_of_minibatches_of_slots_add_up_to_those_of_all(run_dir):
    """Two minibatches of half the slots each, without steps in between, give the mean of the whole."""
    settings = {**POLICIES["gru"], "ppo.normalize_advantage": False, "collect.workers": 1, "env.id": "CartPole-v1"}
    with opened("CartPole-v1", run_dir, **settings, **{"ppo.minibatch_size": 32}) as run:
        batch = run.source.next_batch()
        learner = run.learner
        rows, state = learner._targets.rows(batch), learner._targets.state(batch.rollout)
        rows.weight[:] = 1.0  # else halves weigh differently
        gradients, parameters = learner._steps._gradients, learner._steps._parameters
        gradients.prepare(rows, state)
        gradients.shuffle(torch.Generator().manual_seed(3))
        halves = []
        for first in (0, 32):
            gradients.compute(first, first + 32, 0.2, False)
            halves.append(parameters.grad.clone())
        params, value, _ = learner.policy.unroll(rows.seen(), state, rows.begins.view(16, 4))
        log_prob, _ = log_prob_and_entropy(run.probe.spec.action, params, rows.action)
        ratio = (log_prob - rows.log_prob).exp()
        clipped = torch.minimum(ratio * rows.advantage, ratio.clamp(0.8, 1.2) * rows.advantage)
        loss = -clipped.mean() + 0.5 * 0.5 * ((value - rows.target) ** 2).mean()
        parameters.grad.zero_()
        loss.backward()
        torch.testing.assert_close((halves[0] + halves[1]) / 2, parameters.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_loaded_policy_with_its_state_acts_as_in_evaluation(policy, run_dir):
    result = quick_train(Clock, run_dir, {"stop.updates": 3, **POLICIES[policy]}, backend="serial")
    policy, env = load_policy(result.run_dir), Clock()
    evaluated_returns = millrace.evaluate(policy, Clock, episodes=6, seed=0).returns
    for seed in range(6):
        observation, _ = env.reset(seed=seed)
        state, total, done = policy.new_state(), 0.0, False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(policy.act(observation, state))
            total, done = total + reward, terminated or truncated
        assert total == pytest.approx(evaluated_returns[seed])


def test_a_policy_with_memory_asks_for_its_state(run_dir):
    result = quick_train(Clock, run_dir, {"stop.updates": 1, **POLICIES["gru"]}, backend="serial")
    assert result.policy.has_memory
    with pytest.raises(ValueError, match="new_state"):
        result.policy.act(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="2 slots"):
        result.policy.act(np.zeros(3, np.float32), result.policy.new_state(2))


@pytest.mark.parametrize(
    ("settings", "is_solved"),
    [
        ({}, False),
        ({"net.memory": "gru"}, True),
        ({"net.memory": "lstm"}, True),
        ({"env.frame_stack": 4}, True),
    ],
)
def test_what_was_seen_three_steps_ago_is_recalled_only_with_memory(settings, is_solved, run_dir):
    training = {"stop.updates": 120, "ppo.learning_rate": 0.005, "net.memory_size": 16, "ppo.gamma": 0.9, **settings}
    sizes = {"backend": "serial", "workers": 1, "envs_per_worker": 16, "rollout_steps": 16}
    result = quick_train(functools.partial(Recall, 3), run_dir, training, **sizes)
    mean = millrace.evaluate(result.run_dir, functools.partial(Recall, 3), episodes=64).mean_return
    assert mean == 1.0 if is_solved else mean < 0.8
