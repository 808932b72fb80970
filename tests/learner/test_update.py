"""What one update does with its batch, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from helpers import differences
from millrace.buffer.batch import Batch, Item
from millrace.config import NetConfig, PPOConfig
from millrace.learner.ppo import Learner
from millrace.learner.rewards import RewardScaler
from millrace.nets.policy import Policy
from millrace.types import ActionSpec, ArraySpec, Rollout, RolloutLayout, SlotSpec

SPEC = SlotSpec({"obs": ArraySpec((3,), "float32")}, ActionSpec(nvec=(2,)))
STEPS, SLOTS = 8, 4


def make_learner(**settings: Any) -> Learner:
    torch.manual_seed(0)
    settings = {"minibatch_size": STEPS * SLOTS, "threads": 1, "learning_rate_schedule": "constant", **settings}
    policy = Policy(SPEC, NetConfig(hidden=(8,)), settings.get("normalize_observation", False))
    return Learner(policy, PPOConfig(**settings), 10_000, seed=0)


def make_batch(seed: int = 0, version: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    rollout = RolloutLayout(SPEC, STEPS, SLOTS).allocate()
    rollout.observation["obs"][:] = rng.normal(size=(STEPS + 1, SLOTS, 3))
    rollout.action[:] = rng.integers(2, size=(STEPS, SLOTS, 1))
    rollout.log_prob[:] = np.log(0.5)
    rollout.value[:] = rng.normal(size=(STEPS + 1, SLOTS))
    rollout.reward[:] = rng.normal(size=(STEPS, SLOTS))
    rollout.valid[:] = True
    rollout.terminated[3, 1] = True
    rollout.valid[4, 1] = False
    return Batch(rollout, [Item(0, version, 0)], SLOTS, version, int(rollout.valid.sum()))


def everything(learner: Learner) -> dict[str, Any]:
    """Parameters, moments and statistics; not the counters, and not the generator of shuffles."""
    state = learner.save_state()
    names = ("updates", "skipped_steps", "generator")
    policy = {name: tensor.numpy().copy() for name, tensor in learner.policy.state_dict().items()}
    return {"policy": policy, **{name: value for name, value in state.items() if name not in names}}


def spoil(rollout: Rollout, field: str) -> None:
    {"reward": rollout.reward, "value": rollout.value, "observation": rollout.observation["obs"]}[field][2, 0] = np.nan


@pytest.mark.parametrize("field", ["reward", "value", "observation"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_loss_that_is_not_finite_leaves_parameters_moments_and_statistics_untouched(field, threads):
    learner = make_learner(normalize_observation=True, normalize_reward=True, threads=threads)
    for seed in range(3):
        learner.update(make_batch(seed), 0)
    before = everything(learner)
    batch = make_batch(9)
    spoil(batch.rollout, field)
    with np.errstate(invalid="ignore"):
        learner.update(batch, 0)
    assert learner.skipped_steps == learner.config.epochs
    assert not differences(everything(learner), before)
    # And the next good batch is learned from.
    learner.update(make_batch(10), 0)
    assert learner.skipped_steps == learner.config.epochs
    assert differences(everything(learner)["policy"], before["policy"])
    assert np.isfinite(learner.weights()).all()


def test_invalid_rows_change_nothing_whatever_they_hold():
    learners = [make_learner(normalize_observation=True, normalize_reward=True) for _ in range(2)]
    for number, learner in enumerate(learners):
        for seed in range(3):
            batch = make_batch(seed)
            rollout = batch.rollout
            rollout.valid[5:, 2] = False  # the rest of a slot whose worker was lost
            rollout.terminated[4, 2] = True
            if number == 1:
                rollout.action[5:, 2] = 1
                rollout.log_prob[5:, 2] = -3.0
                rollout.observation["obs"][6:, 2] = 1e3
                rollout.value[6:, 2] = 50.0
                rollout.action[4, 1] = 0
            learner.update(batch, 0)
    first, second = learners
    np.testing.assert_allclose(first.weights(), second.weights(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("is_done", [True, False])
def test_an_invalid_row_in_the_middle_does_not_flow_into_the_advantage_before_it(is_done):
    """A bad value's transition is no experience: neither its reward nor what follows may count before it."""
    advantages = []
    for reward in (0.0, 1e4):
        learner, batch = make_learner(), make_batch()
        batch.rollout.valid[5, 0] = False
        batch.rollout.truncated[5, 0] = is_done
        batch.rollout.reward[5, 0] = reward
        batch.rollout.value[6, 0] += reward
        rows = learner._targets.rows(batch)
        advantages.append(rows.advantage.view(STEPS, SLOTS)[:5, 0])
    assert torch.equal(*advantages)


def test_an_update_with_a_missing_worker_learns_from_the_others():
    learner, batch = make_learner(), make_batch()
    batch.rollout.columns(0, 2).invalidate()
    before = learner.weights()
    stats = learner.update(batch, 0)
    assert np.isfinite(list(stats.values())).all()
    assert (learner.weights() != before).any()


def test_linear_schedules_fall_to_zero_at_the_end_and_go_by_environment_steps():
    learner = make_learner(learning_rate=0.1, learning_rate_schedule="linear", clip_schedule="linear", clip=0.2)
    for env_steps, share in ((0, 1.0), (2_500, 0.75), (7_500, 0.25)):
        stats = learner.update(make_batch(), env_steps)
        assert stats["learning_rate"] == pytest.approx(0.1 * share)
        assert stats["clip"] == pytest.approx(0.2 * share)
    before = learner.weights()
    assert learner.update(make_batch(), 20_000)["learning_rate"] == 0.0
    np.testing.assert_array_equal(learner.weights(), before)


def test_epochs_stop_when_the_divergence_exceeds_its_target():
    moves = {}
    for target_kl in (0.0, 1e-6):
        learner = make_learner(epochs=50, learning_rate=0.01, target_kl=target_kl)
        before = learner.weights()
        learner.update(make_batch(), 0)
        moves[target_kl] = np.abs(learner.weights() - before).max()
    assert moves[1e-6] < moves[0.0] / 5


def test_every_row_is_learned_from_once_an_epoch(monkeypatch):
    learner = make_learner(minibatch_size=8, epochs=3)
    seen = []
    original = torch.randperm

    def randperm(*args, **kwargs):
        seen.append(original(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(torch, "randperm", randperm)
    learner.update(make_batch(), 0)
    assert len(seen) == 3
    assert all(sorted(index.tolist()) == list(range(STEPS * SLOTS)) for index in seen)
    assert len({tuple(index.tolist()) for index in seen}) == 3


def test_a_bootstrap_value_takes_the_place_of_the_next_rows_value():
    learner, batch = make_learner(), make_batch()
    rollout = batch.rollout
    plain = learner._targets.rows(batch).advantage.clone()
    rollout.bootstrap_value = np.full((STEPS, SLOTS), np.nan, np.float32)
    assert torch.equal(learner._targets.rows(batch).advantage, plain)
    rollout.truncated[2, 0], rollout.bootstrap_value[2, 0] = True, 7.0
    advantage = learner._targets.rows(batch).advantage.view(STEPS, SLOTS)
    expected = rollout.reward[2, 0] + 0.99 * 7.0 - rollout.value[2, 0]
    assert advantage[2, 0].item() == pytest.approx(expected, rel=1e-6)


def test_a_saved_learner_goes_on_bit_for_bit():
    learner, fresh = (make_learner(normalize_observation=True, normalize_reward=True) for _ in range(2))
    for seed in range(3):
        learner.update(make_batch(seed), 0)
    fresh.policy.load_state_dict({name: tensor.clone() for name, tensor in learner.policy.state_dict().items()})
    fresh.load_state(learner.save_state())
    for seed in range(3, 6):
        for one in (learner, fresh):
            one.update(make_batch(seed), 0)
    assert not differences(everything(learner), everything(fresh))


def test_the_reward_scale_is_the_deviation_of_the_discounted_returns():
    rng = np.random.default_rng(0)
    scaler, returns = RewardScaler(0.9), []
    running = np.zeros(3)
    for _ in range(5):
        rollout = RolloutLayout(SPEC, 16, 3).allocate()
        rollout.reward[:] = rng.normal(size=(16, 3))
        rollout.valid[:] = True
        rollout.terminated[:] = rng.random((16, 3)) < 0.1
        scaler.update(0, rollout)
        for t in range(16):
            running = running * 0.9 + rollout.reward[t]
            returns += running.tolist()
            running[rollout.terminated[t]] = 0
    scaled = scaler.scale(np.ones((1, 1), np.float32))
    assert scaled[0, 0] == pytest.approx(1 / np.std(returns), rel=1e-5)
    # In units of the deviation, and never beyond the clip.
    assert scaler.scale(np.array([[1e9]], np.float32))[0, 0] == RewardScaler.CLIP


def test_return_accumulators_belong_to_slots_and_not_to_the_order_of_workers():
    rollouts = []
    for seed in range(2):
        rollout = RolloutLayout(SPEC, 4, 2).allocate()
        rollout.reward[:] = np.random.default_rng(seed).normal(size=(4, 2))
        rollout.valid[:] = True
        rollouts.append(rollout)
    apart = RewardScaler(0.9)
    for _ in range(3):
        apart.update(0, rollouts[0])
        apart.update(1, rollouts[1])
    state = apart.save_state()
    for worker in (0, 1):
        alone = RewardScaler(0.9)
        for _ in range(3):
            alone.update(worker, rollouts[worker])
        np.testing.assert_allclose(alone.save_state()["running"][str(worker)], state["running"][str(worker)])
