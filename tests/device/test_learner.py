"""What is learned on a device is what is learned on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from device import simulated
from millrace.buffer.batch import Batch, Draws, Item, Refresh
from millrace.config import ImitateConfig, NetConfig, PPOConfig, ReplayConfig, RNDConfig
from millrace.learner.cloning import Cloner
from millrace.learner.ppo import Learner
from millrace.learner.rnd import RND
from millrace.nets.policy import Policy
from millrace.types import ActionSpec, ArraySpec, Rollout, RolloutLayout, SlotSpec

sys.path.insert(0, str(Path(__file__).parents[2]))
from examples.reward_prediction import RewardPrediction

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
    assert device != simulated.NAME or simulated.traffic().launches


def test_an_update_makes_the_host_wait_for_its_figures_alone(simulated_device: str) -> None:
    """Arrays go to the device once, an order of the rows each epoch; figures come back at the end."""
    epochs, minibatches = 4, 8
    settings = {"epochs": epochs, "minibatch_size": STEPS * SLOTS // minibatches}
    learner = make_learner(VECTOR, {}, settings, simulated_device)
    simulated.reset_traffic()
    taught(learner, VECTOR, updates=1)
    traffic = simulated.traffic()
    assert traffic.to_device == 10 + epochs
    assert traffic.scalars == 1  # the number of steps that were skipped
    assert traffic.to_host == 2  # figures of the steps, figures of the values
    assert traffic.waits == 0
    simulated.reset_traffic()
    learner.weights()
    assert simulated.traffic().to_host == 1


def test_bfloat16_on_a_device_is_that_of_the_cpu(device: str) -> None:
    on_device, on_cpu = (make_learner(VECTOR, {}, {"precision": "bf16"}, place) for place in (device, "cpu"))
    precise = make_learner(VECTOR, {}, {}, device)
    for learner in (on_device, on_cpu, precise):
        taught(learner, VECTOR)
    apart, rounded = (np.abs(on_device.weights() - one.weights()).mean() for one in (on_cpu, precise))
    assert 3 * apart < rounded


def test_an_auxiliary_loss_is_learned_beside(device: str) -> None:
    learners = []
    for place in (device, "cpu"):
        policy = make_policy(VECTOR, NetConfig(hidden=(16,), **LSTM), place)
        auxiliary = RewardPrediction(policy).to(place)
        learners.append(Learner(policy, PPOConfig(minibatch_size=2 * STEPS), 10**6, 0, auxiliary=auxiliary))
        taught(learners[-1], VECTOR)
    assert_same(*learners)
    heads = [learner._auxiliary.head.weight.detach().cpu() for learner in learners]
    torch.testing.assert_close(*heads, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spec", [VECTOR, DICT, FRAMES], ids=["vector", "dict", "frames"])
def test_novelty_is_the_same(spec: SlotSpec, device: str) -> None:
    net, found = NetConfig(hidden=(16,), image="small"), []
    for place in (device, "cpu"):
        rnd = RND(spec, net, RNDConfig(coef=0.5, learning_rate=1e-3), place)
        losses = [rnd.learn(make_batch(spec, seed))["rnd_loss"] for seed in range(3)]
        moved = RND(spec, net, RNDConfig(coef=0.5), "cpu" if place == device else device)
        moved.load_state(rnd.save_state())
        rewards = [one.reward(make_batch(spec, 9).rollout) for one in (rnd, moved)]
        np.testing.assert_allclose(*rewards, rtol=1e-4, atol=1e-5)
        found.append((losses, rewards[0]))
    (losses, reward), (expected_losses, expected) = found
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    np.testing.assert_allclose(reward, expected, rtol=1e-4, atol=1e-5)
    assert reward.std() > 0.01


@pytest.mark.parametrize("spec", [DICT, MIXED], ids=["masks", "both kinds of actions"])
@pytest.mark.parametrize("memory", [{}, GRU], ids=["without memory", "gru"])
def test_players_are_imitated_the_same(spec: SlotSpec, memory: dict[str, Any], device: str) -> None:
    policies, figures = [], []
    for place in (device, "cpu"):
        net = NetConfig(hidden=(16,), image="small", **memory)
        policies.append(policy := make_policy(spec, net, place, normalize_observation=True))
        config = PPOConfig(minibatch_size=2 * STEPS, normalize_reward=True)
        cloner = Cloner(policy, config, ImitateConfig(epochs=2), 0)
        figures += [cloner.update(make_batch(spec, seed, policy.state_size), 1e-3) for seed in range(3)]
        assert not cloner.skipped_steps
    weights = [policy.flat_weights() for policy in policies]
    np.testing.assert_allclose(*weights, rtol=0, atol=1e-5)
    for found, expected in zip(figures[:3], figures[3:], strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4, nan_ok=True)


def test_a_learner_goes_from_device_to_cpu_and_back(device: str) -> None:
    """Each leg on another device, against one that stays on the CPU."""
    arguments = DICT, {"image": "small"}, NORMALIZED
    stays, learner = make_learner(*arguments, "cpu"), make_learner(*arguments, device)
    for leg, place in enumerate((device, "cpu", device)):
        policy, state = learner.policy.state_dict(), learner.save_state()
        learner = make_learner(*arguments, place)
        learner.policy.load_state_dict({name: torch.from_numpy(x.cpu().numpy().copy()) for name, x in policy.items()})
        learner.load_state(state)
        for one in (learner, stays):
            one.update(make_batch(DICT, leg), 0)
        assert next(learner.policy.parameters()).device.type == place
        assert_same(learner, stays)


def test_a_step_that_is_not_finite_is_skipped_on_a_device_too(device: str) -> None:
    learner, batch = make_learner(VECTOR, {}, NORMALIZED, device), make_batch(VECTOR)
    before = learner.weights()
    batch.rollout.reward[:] = np.nan
    with np.errstate(invalid="ignore"):
        learner.update(batch, 0)
    assert learner.skipped_steps == 2 * 4  # epochs and minibatches
    np.testing.assert_array_equal(learner.weights(), before)


@pytest.mark.parametrize("item", ["column", "step"])
def test_what_is_drawn_from_a_replay_buffer_is_learned_the_same(item: str, device: str) -> None:
    off_policy = {"targets": "vtrace", "objective": "decoupled", "values": "learner", "recompute_advantage": True}
    found = []
    for place in (device, "cpu"):
        # Whole columns come with their rows, single steps by the row.
        learner = make_learner(VECTOR, {}, {**off_policy, "minibatch_size": 8}, place, replay=ReplayConfig(item=item))
        for seed in range(3):
            batch = drawn(make_batch(VECTOR, seed), item)
            learner.update(batch, 0)
            stale = [refresh.error for refresh in batch.draws.refresh]
            found += [batch.draws.priority, batch.draws.error, *stale, learner.weights()]
    half = len(found) // 2
    for on_device, on_cpu in zip(found[:half], found[half:], strict=True):
        np.testing.assert_allclose(on_device, on_cpu, rtol=1e-4, atol=1e-4)


def drawn(whole: Batch, item: str) -> Batch:
    """All of a batch, as if it had been drawn: with weights, and single steps with the error behind each."""
    if item == "column":
        whole.draws = Draws(np.arange(SLOTS), np.linspace(0.5, 1.0, SLOTS, dtype=np.float32))
        return whole
    steps, slots = (x.ravel() for x in np.mgrid[:STEPS, :SLOTS])
    rollout = whole.rollout
    fields = {
        name: array[steps + np.arange(1 + len(array) - STEPS)[:, None], slots] for name, array in rollout.fields()
    }
    error = np.zeros((STEPS + 1, SLOTS), np.float32)
    draws = Draws(np.arange(len(steps)), np.ones(len(steps), np.float32), [Refresh(rollout, error)])
    draws.carried = lambda: error[steps + 1, slots]
    return Batch(Rollout.from_fields(fields), [Item(0, 0, 0)], SLOTS, 1, draws=draws, fresh=[rollout])
