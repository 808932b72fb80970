"""Losses beside PPO's."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import millrace
from helpers import differences, learned, quick_train, rows_of
from learner.test_update import SLOTS, SPEC, STEPS, make_batch
from millrace.config import NetConfig, PPOConfig
from millrace.errors import ConfigError
from millrace.learner.autograd import AutogradGradients
from millrace.learner.ppo import Learner
from millrace.learner.sequences import SequenceGradients
from millrace.nets.policy import Policy
from toys import Clock, OneStep

sys.path.insert(0, str(Path(__file__).parents[2]))
from examples.reward_prediction import RewardPrediction


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_learner(make_auxiliary: Any, net: NetConfig, **settings: Any) -> Learner:
    torch.manual_seed(0)
    policy = Policy(SPEC, net)
    config = PPOConfig(
        **{"minibatch_size": STEPS * SLOTS, "threads": 1, "learning_rate_schedule": "constant", **settings}
    )
    return Learner(policy, config, 10_000, 0, auxiliary=make_auxiliary and make_auxiliary(policy))


@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared"])
def test_its_gradient_reaches_its_own_parameters_and_the_policy_s_body(shared):
    moved = {}
    for coef in (None, 0.0, 10.0):
        make = None if coef is None else functools.partial(RewardPrediction, coef=coef)
        learner = make_learner(make, NetConfig((8,), shared=shared), threads=2, epochs=1, max_grad_norm=1e9)
        body = learner.policy.network.trunk if shared else learner.policy.network.actor
        head = [p.detach().clone() for p in learner._auxiliary.parameters()] if make else []
        learner.update(make_batch(), 0)
        moved[coef] = body[0].weight.detach().clone()
        if coef:
            assert isinstance(learner._steps._gradients, AutogradGradients)
            assert all((old != new).all() for old, new in zip(head, learner._auxiliary.parameters(), strict=True))
    assert torch.equal(moved[None], moved[0.0])
    assert (moved[None] - moved[10.0]).abs().max() > 1e-4


@pytest.mark.parametrize("memory", ["none", "gru"])
def test_its_loss_falls_and_is_told(memory, tmp_path: Path):
    settings = {"net.memory": memory, "net.memory_size": 8, "stop.updates": 30, "ppo.learning_rate": 0.01}
    quick_train(OneStep, tmp_path, settings, backend="serial", auxiliary=RewardPrediction)
    losses = [row["auxiliary_loss"] for row in rows_of(tmp_path)]
    assert sum(losses[-10:]) < 0.2 * sum(losses[:10])


def test_with_recurrence_it_is_given_whole_sequences():
    shapes = []

    class Watching(RewardPrediction):
        def forward(self, policy, rows):
            shapes.append((rows.weight.shape, rows.begins.shape))
            return super().forward(policy, rows)

    net = NetConfig((8,), memory="gru", memory_size=4)
    learner = make_learner(Watching, net, minibatch_size=2 * STEPS, epochs=1)
    assert isinstance(learner._steps._gradients, SequenceGradients)
    batch = make_batch()
    batch.rollout.age = torch.zeros(STEPS + 1, SLOTS, dtype=torch.uint8).numpy()
    batch.rollout.state = torch.zeros(1, SLOTS, 8).numpy()
    learner.update(batch, 0)
    assert shapes == [((2 * STEPS,), (2 * STEPS,))] * 2


def test_a_module_that_keeps_the_policy_trains_it_no_differently():
    class Keeping(RewardPrediction):
        def __init__(self, policy):
            super().__init__(policy)
            self.policy = policy

    learners = [make_learner(make, NetConfig((8,))) for make in (RewardPrediction, Keeping)]
    for learner in learners:
        learner.update(make_batch(), 0)
    assert (learners[0].weights() == learners[1].weights()).all()


def test_a_resumed_run_goes_on_bit_for_bit_and_wants_the_loss_it_had(tmp_path: Path):
    short = {"backend": "serial", "auxiliary": RewardPrediction}
    quick_train(Clock, tmp_path / "whole", {"stop.updates": 4}, **short)
    quick_train(Clock, tmp_path / "parts", {"stop.updates": 2}, **short)
    settings = {"stop.updates": 4}
    with pytest.raises(ConfigError, match=r"auxiliary=... of train"):
        millrace.resume(tmp_path / "parts", env=Clock, settings=settings, quiet=True)
    millrace.resume(tmp_path / "parts", env=Clock, settings=settings, quiet=True, auxiliary=RewardPrediction)
    assert not differences(learned(tmp_path / "whole"), learned(tmp_path / "parts"))
    assert "head.weight" in learned(tmp_path / "parts")["learner"]["auxiliary"]


@pytest.mark.parametrize(
    "net", [NetConfig((8,)), NetConfig((8,), shared=True), NetConfig((8,), memory="lstm"), NetConfig(image="small")]
)
def test_every_network_of_ours_has_features(net):
    from millrace.types import ArraySpec, SlotSpec

    spec = SPEC if net.image == "auto" else SlotSpec({"image": ArraySpec((3, 32, 32), "uint8", 1 / 255)}, SPEC.action)
    policy = Policy(spec, net)
    seen = {key: torch.zeros(5, *array.seen_shape) for key, array in spec.observation.items()}
    assert policy.features(seen).shape == (5, policy.num_features)
    assert policy.features(seen).requires_grad
