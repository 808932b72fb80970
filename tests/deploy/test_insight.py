"""What a policy thinks is what learning computes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import millrace
from helpers import quick_train
from millrace.deploy.detail import steps_of
from millrace.deploy.evaluate import maker_for
from millrace.deploy.insight import decide, insight
from millrace.errors import EnvError
from millrace.ops.distributions import log_prob_and_entropy
from millrace.ops.sampling import sample_actions
from millrace.types import ActionSpec
from toys import Everything, ForgetfulClock, Masked, Recall

SPECS = [
    ActionSpec((4,)),
    ActionSpec((2, 3, 5)),
    ActionSpec((), (-1.0, -2.0), (1.0, 2.0)),
    ActionSpec((3,), (-1.0,), (1.0,)),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("is_masked", [False, True])
def test_probability_and_entropy_are_those_of_the_learner(spec: ActionSpec, is_masked: bool):
    rng = np.random.default_rng(0)
    params = rng.normal(size=(20, spec.num_params)).astype(np.float32)
    mask = rng.random((20, spec.num_logits)) < 0.6 if is_masked else None
    if mask is not None:
        mask[:, np.cumsum((0, *spec.nvec))[:-1]] = True  # the first of each column, so that none is without
    action = np.empty((20, spec.num_columns), spec.dtype)
    sample_actions(spec, params, mask, rng, action, np.empty(20, np.float32))
    log_prob, entropy = log_prob_and_entropy(
        spec, torch.tensor(params), torch.tensor(action), None if mask is None else torch.tensor(mask)
    )
    for row in range(20):
        found = insight(spec, params[row], 1.5, action[row], None if mask is None else mask[row])
        assert np.log(found.probability) == pytest.approx(float(log_prob[row]), abs=1e-5)
        assert found.entropy == pytest.approx(float(entropy[row]), abs=1e-5)
        assert all(column.sum() == pytest.approx(1.0) for column in found.probabilities)
        assert sum(option.is_chosen for option in found.options) == len(spec.nvec)
        assert all(option.is_allowed or option.probability == 0 for option in found.options)


def test_masked_actions_are_marked_and_have_no_probability():
    found = insight(ActionSpec((3,)), np.array([0.0, 9.0, 0.0]), 0.0, np.array([2]), np.array([True, False, True]))
    assert [option.is_allowed for option in found.options] == [True, False, True]
    assert [option.probability for option in found.options] == [0.5, 0.0, 0.5]
    assert [option.is_chosen for option in found.options] == [False, False, True]


def test_deciding_is_acting(run_dir):
    """Also with memory, and with a mask."""
    quick_train(Masked, run_dir, {"stop.updates": 1, "net.memory": "gru", "net.memory_size": 8}, backend="serial")
    policy = millrace.load_policy(run_dir)
    env = Masked()
    observation, info = env.reset(seed=1)
    states = policy.new_state(), policy.new_state()
    for _ in range(3):
        action, found = decide(policy, observation, states[0], action_mask=info.get("action_mask"))
        assert action == policy.act(observation, states[1], action_mask=info.get("action_mask"))
        assert found.probability == pytest.approx(max(option.probability for option in found.options))
        observation, _, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            return


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        (lambda: Recall(3), {"net.memory": "gru", "net.memory_size": 8}),
        (lambda: Recall(3), {"env.frame_stack": 3}),
        (Masked, {}),
        (Everything, {}),
    ],
    ids=["recurrent", "stacked", "masked", "everything"],
)
@pytest.mark.parametrize("deterministic", [True, False])
def test_an_episode_step_by_step_is_the_one_that_was_played(env, settings, deterministic, run_dir):
    quick_train(env, run_dir, {"stop.updates": 1, **settings}, backend="serial")
    policy = millrace.load_policy(run_dir)
    played = millrace.evaluate(policy, env, episodes=4, keep_games=True, deterministic=deterministic)
    for record, game in zip(played.episodes, played.games, strict=True):
        steps = list(steps_of(policy, maker_for(policy, env), game))
        assert len(steps) == record.length_steps
        assert steps[-1].return_so_far == pytest.approx(record.episode_return)
        assert sum(step.reward for step in steps) == pytest.approx(record.episode_return)
        np.testing.assert_allclose([step.insight.action for step in steps], game.actions, rtol=1e-6)
        if deterministic:
            for step in steps:
                columns = [int(column.argmax()) for column in step.insight.probabilities]
                assert step.insight.action[: len(columns)].tolist() == columns


def test_an_environment_that_is_no_function_of_its_seed_is_found_out(run_dir):
    class Drifting(ForgetfulClock):
        resets = 0

        def reset(self, *, seed=None, options=None):
            Drifting.resets += 1
            return super().reset(seed=seed + 10 * Drifting.resets, options=options)

    quick_train(Drifting, run_dir, {"stop.updates": 1}, backend="serial")
    policy = millrace.load_policy(run_dir)
    played = millrace.evaluate(policy, Drifting, episodes=20, keep_games=True)
    again = itertools.chain.from_iterable(steps_of(policy, maker_for(policy, Drifting), game) for game in played.games)
    with pytest.raises(EnvError, match="went another way"):
        list(again)
