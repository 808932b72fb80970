"""The learner's network in bfloat16, and compiled: the same gradients, nearly."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace

import pytest
import torch

from millrace.config import NetConfig, PPOConfig
from millrace.errors import ConfigError
from millrace.learner.autograd import AutogradGradients
from millrace.learner.flat import FlatParameters
from millrace.learner.gradients import make_gradients
from millrace.learner.rows import Rows
from millrace.nets.policy import Policy
from millrace.types import ActionSpec, ArraySpec, SlotSpec

NUM_ROWS = 64
IMAGE = SlotSpec({"obs": ArraySpec((3, 48, 48), "uint8", scale=1 / 255)}, ActionSpec((4,)))
VECTOR = SlotSpec({"obs": ArraySpec((6,), "float32")}, ActionSpec((4,)))
has_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")


def make_rows(spec: SlotSpec) -> Rows:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (NUM_ROWS, 3, 48, 48), dtype=torch.uint8, generator=generator)
    vector = torch.randn(NUM_ROWS, 6, generator=generator)
    action = torch.randint(0, 4, (NUM_ROWS, 1), dtype=torch.int32, generator=generator)
    advantage, target, value = torch.randn(3, NUM_ROWS, generator=generator)
    log_prob = torch.full((NUM_ROWS,), -1.4)
    observation = {"obs": image if spec == IMAGE else vector}
    return Rows(observation, action, log_prob, advantage, target, value, torch.ones(NUM_ROWS))


def gradient(policy: Policy, config: PPOConfig) -> tuple[float, torch.Tensor]:
    policy = copy.deepcopy(policy)
    names = list(policy.state_dict())
    parameters = FlatParameters(policy.parameters())
    gradients = make_gradients(policy, parameters, config)
    assert isinstance(gradients, AutogradGradients)
    gradients.prepare(make_rows(policy.spec))
    gradients.shuffle(torch.Generator().manual_seed(0))
    loss, _ = gradients.compute(0, NUM_ROWS, 0.2, wants_stats=True)
    assert list(policy.state_dict()) == names  # what checkpoints are written from
    assert all(parameter.dtype == torch.float32 for parameter in policy.parameters())
    return loss, parameters.grad.clone()


def make_policy(spec: SlotSpec) -> Policy:
    torch.manual_seed(0)
    policy = Policy(spec, NetConfig(image="small"))
    with torch.no_grad():
        policy.network.policy_head.weight.mul_(50.0)  # away from the uniform beginning
    return policy


def test_gradients_in_bfloat16_point_the_same_way():
    policy = make_policy(IMAGE)
    loss, expected = gradient(policy, PPOConfig(threads=1))
    rounded_loss, rounded = gradient(policy, PPOConfig(threads=1, precision="bf16"))
    assert rounded_loss == pytest.approx(loss, rel=0.02)
    assert not torch.equal(rounded, expected)
    assert float((rounded - expected).norm() / expected.norm()) < 0.03


def test_dense_networks_take_bfloat16_too():
    policy = make_policy(VECTOR)
    _, expected = gradient(policy, PPOConfig(threads=2))
    _, rounded = gradient(policy, PPOConfig(threads=1, precision="bf16"))
    assert not torch.equal(rounded, expected)
    assert float((rounded - expected).norm() / expected.norm()) < 0.03


def test_networks_with_memory_take_bfloat16_and_are_not_compiled():
    torch.manual_seed(0)
    policy = Policy(VECTOR, NetConfig(memory="gru", memory_size=8))
    grads = {}
    for precision in ("fp32", "bf16"):
        trained = copy.deepcopy(policy)
        parameters = FlatParameters(trained.parameters())
        config = PPOConfig(precision=precision, minibatch_size=NUM_ROWS)
        gradients = make_gradients(trained, parameters, config)
        rows = replace(make_rows(VECTOR), begins=torch.arange(NUM_ROWS) % 5 == 0)
        gradients.prepare(rows, torch.zeros(4, policy.state_size))
        gradients.shuffle(torch.Generator().manual_seed(0))
        gradients.compute(0, NUM_ROWS, 0.2, wants_stats=False)
        grads[precision] = parameters.grad.clone()
    assert not torch.equal(grads["bf16"], grads["fp32"])
    assert float((grads["bf16"] - grads["fp32"]).norm() / grads["fp32"].norm()) < 0.03
    with pytest.raises(ConfigError, match=r"ppo.compile does not take networks with memory"):
        make_gradients(policy, FlatParameters(policy.parameters()), PPOConfig(compile=True))


@has_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")  # torch's compiler imports deprecated parts of torch
def test_compiled_gradients_equal_eager_ones_and_parameters_keep_their_names():
    policy = make_policy(IMAGE)
    loss, expected = gradient(policy, PPOConfig(threads=1))
    compiled_loss, compiled = gradient(policy, PPOConfig(threads=1, compile=True))
    assert compiled_loss == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(compiled, expected, rtol=1e-3, atol=1e-5)
