"""The PPO that students read is the PPO that the package runs: the same data give the same losses and weights."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import opened
from toys import Clock

EXAMPLE = Path(__file__).parents[2] / "examples" / "single_file_ppo.py"
LAYERS = {"actor": ("actor.0", "actor.1", "policy_head"), "critic": ("critic.0", "critic.1", "value_head")}


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("single_file_ppo", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["single_file_ppo"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["single_file_ppo"]


def weight_pairs(agent, policy):
    """The example's parameters beside the package's."""
    theirs = dict(policy.named_parameters())
    for trunk, names in LAYERS.items():
        for layer, name in zip((0, 2, 4), names, strict=True):
            for part in ("weight", "bias"):
                yield getattr(getattr(agent, trunk)[layer], part), theirs[f"network.{name}.{part}"]


def as_example_rollout(example, rollout):
    def tensor(array, dtype=None):
        return torch.from_numpy(array.copy()).to(dtype)

    return example.Rollout(
        observation=tensor(rollout.observation["obs"]),
        action=tensor(rollout.action[:, :, 0], torch.int64),
        log_prob=tensor(rollout.log_prob),
        value=tensor(rollout.value),
        reward=tensor(rollout.reward),
        terminated=tensor(rollout.terminated),
        truncated=tensor(rollout.truncated),
        valid=tensor(rollout.valid, torch.float32),
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("env", ["CartPole-v1", Clock])
def test_the_single_file_gives_the_same_losses_and_weights_as_the_package(example, env, threads, run_dir):
    """Over ten updates, on experience with terminations and truncations; both learners of the package."""
    settings = example.Settings(num_envs=4, rollout_steps=32, epochs=3, minibatch_size=32, entropy_coef=0.01)
    names = (
        "epochs",
        "minibatch_size",
        "learning_rate",
        "gamma",
        "gae_lambda",
        "clip",
        "value_coef",
        "entropy_coef",
        "max_grad_norm",
    )
    with opened(
        env, run_dir, **{f"ppo.{name}": getattr(settings, name) for name in names},
        **{"collect.workers": 1, "collect.rollout_steps": 32, "net.hidden": [64, 64], "seed": 3, "ppo.threads": threads,
           "env.max_episode_steps": 15 if env == "CartPole-v1" else 0},
    ) as run:  # fmt: skip
        policy = run.learner.policy
        num_inputs, num_actions = policy.spec.observation["obs"].num_inputs, policy.spec.action.nvec[0]
        agent = example.Agent(num_inputs, num_actions)
        with torch.no_grad():
            for mine, theirs in weight_pairs(agent, policy):
                mine.copy_(theirs)
        optimizer = torch.optim.Adam(agent.parameters(), settings.learning_rate, eps=1e-5)
        generator = torch.Generator().manual_seed(3)
        ends = 0
        for _ in range(10):
            batch = run.source.next_batch()
            ends += (batch.rollout.terminated | batch.rollout.truncated).sum()
            expected = run.learner.update(batch, 0)
            figures = example.update(agent, optimizer, as_example_rollout(example, batch.rollout), settings, generator)
            run.publish()
            for name, value in figures.items():
                assert value == pytest.approx(expected[name], rel=2e-3, abs=2e-5), name
        assert ends > 20
        for mine, theirs in weight_pairs(agent, policy):
            np.testing.assert_allclose(mine.detach(), theirs.detach(), atol=2e-3)


def test_both_begin_with_the_same_kind_of_weights(example, run_dir):
    with opened("CartPole-v1", run_dir, **{"net.hidden": [64, 64]}) as run:
        torch.manual_seed(1)
        for mine, theirs in weight_pairs(example.Agent(4, 2), run.learner.policy):
            assert mine.shape == theirs.shape
            torch.testing.assert_close(
                torch.linalg.matrix_norm(mine, 2) if mine.ndim == 2 else mine,
                torch.linalg.matrix_norm(theirs, 2) if mine.ndim == 2 else theirs,
            )


def test_the_single_file_learns_cartpole(example, capsys):
    _, returns = example.train("CartPole-v1", total_steps=20_000, seed=1)
    assert np.mean(returns[-20:]) > 100
    assert "return" in capsys.readouterr().out


def test_the_single_file_needs_nothing_but_torch_gymnasium_and_numpy():
    text = EXAMPLE.read_text()
    imported = {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imported <= {"__future__", "argparse", "dataclasses", "gymnasium", "numpy", "torch"}
    assert len(text.splitlines()) <= 210
