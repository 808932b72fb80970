"""What is learned on a device is what is learned on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from device import simulated
from millrace.buffer.batch import Batch, Item
from millrace.config import NetConfig, PPOConfig
from millrace.learner.ppo import Learner
from millrace.nets.policy import Policy
from millrace.types import ActionSpec, ArraySpec, Rollout, RolloutLayout, SlotSpec

STEPS, SLOTS = 8, 8
VECTOR = SlotSpec({"obs": ArraySpec((3,), "float32")}, ActionSpec((2,)))
IMAGE = SlotSpec({"obs": ArraySpec((36, 36, 3), "uint8", scale=1 / 255)}, ActionSpec((4,)))
FRAMES = SlotSpec({"obs": ArraySpec((36, 36), "uint8", scale=1 / 255, stack=3)}, ActionSpec((4,)))
DICT = SlotSpec(
    {
        "map": ArraySpec((2, 36, 36), "uint8", scale=1 / 255),
        "kind": ArraySpec((), "int64", num_classes=3),
        "vector": ArraySpec((5,), "float32"),
    },
    ActionSpec((4, 3)),
    has_action_mask=True,
)
BOX = SlotSpec({"obs": ArraySpec((3,), "float32")}, ActionSpec((), (-1.0,) * 2, (1.0,) * 2))
MIXED = SlotSpec({"obs": ArraySpec((3,), "float32", stack=2)}, ActionSpec((3,), (-1.0,), (1.0,)))
NORMALIZED = {"normalize_observation": True, "normalize_reward": True}
LSTM, GRU = {"memory": "lstm", "memory_size": 8}, {"memory": "gru", "memory_size": 8}

CASES: dict[str, tuple[SlotSpec, dict[str, Any], dict[str, Any]]] = {
    "dense": (VECTOR, {}, {}),
    "dense, shared, all terms": (
        VECTOR,
        {"shared": True, "activation": "relu"},
        {"value_clip": 0.2, "dual_clip": 2.0, "entropy_coef": 0.01, "target_kl": 5.0, "age_weight": 0.9},
    ),
    "images": (IMAGE, {"image": "small"}, {}),
    "stacked frames": (FRAMES, {"image": "small"}, {}),
    "dict with masks": (DICT, {"image": "small"}, NORMALIZED),
    "continuous": (BOX, {}, NORMALIZED),
    "continuous, deviations by state": (BOX, {"state_log_std": True}, {}),
    "both kinds of actions, stacked": (MIXED, {}, NORMALIZED),
    "lstm": (VECTOR, LSTM, NORMALIZED),
    "gru": (VECTOR, GRU, {}),
    "gru on images": (IMAGE, {"image": "small", **GRU}, {}),
    "vtrace, decoupled": (VECTOR, {}, {"targets": "vtrace", "objective": "decoupled", "values": "learner"}),
    "clipped gae, proximal, lstm": (VECTOR, LSTM, {"targets": "clipped_gae", "objective": "proximal"}),
    "advantages recomputed": (VECTOR, {}, {"recompute_advantage": True}),
}


def make_policy(spec: SlotSpec, net: NetConfig, device: str, normalize_observation: bool = False) -> Policy:
    """On its device, with the same weights wherever that is; away from the symmetry of the initial heads."""
    torch.manual_seed(0)
    policy = Policy(spec, net, normalize_observation)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return policy.to(device)


def make_learner(spec: SlotSpec, net: dict[str, Any], ppo: dict[str, Any], device: str, **extras: Any) -> Learner:
    sizes = {"minibatch_size": 2 * STEPS, "epochs": 2, "threads": 1, "learning_rate_schedule": "constant"}
    config = PPOConfig(**{**sizes, **ppo})
    policy = make_policy(spec, NetConfig(hidden=(16,), **net), device, config.normalize_observation)
    return Learner(policy, config, 10**6, 0, **extras)


def make_batch(spec: SlotSpec, seed: int = 0, state_size: int = 0) -> Batch:
    """Rows as some other policy might have collected them, with episodes that end and reset transitions."""
    rollout = RolloutLayout(spec, STEPS, SLOTS, state_size=state_size).allocate()
    fill(rollout, spec, np.random.default_rng(seed))
    return Batch(rollout, [Item(0, 0, 0)], SLOTS, 0, int(rollout.valid.sum()))


def fill(rollout: Rollout, spec: SlotSpec, rng: np.random.Generator) -> None:
    for key, array in spec.observation.items():
        target = rollout.observation[key]
        high = array.num_classes or 256
        values = rng.normal(size=target.shape) if array.dtype == "float32" else rng.integers(0, high, target.shape)
        target[...] = values
    shape = rollout.reward.shape
    for column, size in enumerate(spec.action.nvec):
        rollout.action[:, :, column] = rng.integers(size, size=shape)
    rollout.action[:, :, len(spec.action.nvec) :] = rng.normal(size=(*shape, spec.action.num_box))
    rollout.log_prob[:] = np.log(rng.uniform(0.2, 0.8, shape))
    rollout.value[:] = rng.normal(size=rollout.value.shape)
    rollout.reward[:] = rng.normal(size=shape)
    rollout.valid[:] = True
    rollout.terminated[3, 1], rollout.valid[4, 1] = True, False
    rollout.truncated[5, 2], rollout.valid[6, 2] = True, False
    if rollout.action_mask is not None:
        rollout.action_mask[:] = 0xFF
        rollout.action_mask[:, 0] = 0b1011011
    if rollout.age is not None:
        rollout.age[:] = np.arange(STEPS + 1)[:, None]
        rollout.age[5:, 1] -= 5
        rollout.age[7:, 2] -= 7
    if rollout.state is not None:
        rollout.state[:] = rng.normal(size=rollout.state.shape)


def taught(learner: Learner, spec: SlotSpec, updates: int = 3) -> list[dict[str, float]]:
    """The figures of some updates."""
    return [learner.update(make_batch(spec, seed, learner.policy.state_size), 0) for seed in range(updates)]


def assert_same(on_device: Learner, on_cpu: Learner) -> None:
    np.testing.assert_allclose(on_device.weights(), on_cpu.weights(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_updates_on_a_device_are_those_of_the_cpu(case: str, device: str) -> None:
    spec, net, ppo = CASES[case]
    on_device, on_cpu = (make_learner(spec, net, ppo, place) for place in (device, "cpu"))
    before = on_cpu.weights()
    figures = taught(on_device, spec)
    assert {parameter.device.type for parameter in on_device.policy.parameters()} == {device}
    for found, expected in zip(figures, taught(on_cpu, spec), strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert np.abs(on_cpu.weights() - before).max() > 1e-3
    assert_same(on_device, on_cpu)
    assert not on_device.skipped_steps
    assert simulated.traffic().launches
