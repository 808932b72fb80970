"""Intrinsic rewards: the seam, and novelty by random network distillation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import millrace
from helpers import differences, learned, quick_train, rows_of
from learner.test_update import SLOTS, SPEC, STEPS, everything, make_batch
from millrace.buffer.batch import Batch, Item
from millrace.config import NetConfig, PPOConfig, RNDConfig
from millrace.errors import ConfigError
from millrace.learner.ppo import Learner
from millrace.learner.rnd import OBSERVATION_CLIP, RND
from millrace.metrics.catalogue import CATALOGUE
from millrace.nets.policy import Policy
from millrace.types import ActionSpec, ArraySpec, RolloutLayout, SlotSpec
from toys import Clock, Doors

NET = NetConfig(hidden=(16,))
CONFIG = RNDConfig(coef=0.5, learning_rate=1e-3)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # as a run sets it; threads that share a core with others wait for each other


def batch_of(observation: np.ndarray) -> Batch:
    """A batch whose observations [T + 1, B, 3] are these."""
    rollout = RolloutLayout(SPEC, len(observation) - 1, observation.shape[1]).allocate()
    rollout.observation["obs"][:] = observation
    rollout.valid[:] = True
    return Batch(rollout, [Item(0, 0, 0)], observation.shape[1], 0, rollout.valid.size)


def make_learner(intrinsic: Any, **settings: Any) -> Learner:
    torch.manual_seed(0)
    config = PPOConfig(minibatch_size=STEPS * SLOTS, threads=1, learning_rate_schedule="constant", **settings)
    return Learner(Policy(SPEC, NET), config, 10_000, 0, intrinsic)


class Constant:
    """A reward of its own for every step, and a record of what it was asked."""

    def __init__(self, reward: float = 0.5) -> None:
        self.amount, self.calls = reward, []

    def reward(self, rollout):
        self.calls.append("reward")
        return np.full(rollout.reward.shape, self.amount, np.float32)

    def learn(self, batch):
        self.calls.append("learn")
        return {"times": float(len(self.calls))}

    def save_state(self):
        return {"calls": list(self.calls)}

    def load_state(self, state):
        self.calls = list(state["calls"])


def test_intrinsic_reward_is_added_after_scaling_and_clipping_and_learns_once_an_update():
    batch, constant = make_batch(), Constant()
    learner = make_learner(constant, reward_scale=10.0, reward_clip=4.0, epochs=3, recompute_advantage=True)
    expected = np.clip(batch.rollout.reward * 10, -4, 4) + 0.5
    rows = learner._targets.rows(batch, constant.reward(batch.rollout))
    np.testing.assert_allclose(rows.reward.numpy(), expected.ravel(), rtol=1e-6)
    refreshed = learner._targets.refreshed(rows, batch)
    plain = learner._targets.refreshed(learner._targets.rows(batch), batch)
    last = STEPS * SLOTS - 1  # nothing follows it inside the rollout
    assert (refreshed.advantage - plain.advantage)[last] == pytest.approx(0.5, abs=1e-5)
    constant.calls.clear()
    stats = learner.update(batch, 0)
    assert constant.calls == ["reward", "learn"]
    assert (stats["intrinsic_reward"], stats["times"]) == (0.5, 2.0)


def test_nothing_is_learned_from_a_batch_that_is_not_finite():
    constant, batch = Constant(), make_batch()
    batch.rollout.reward[2, 0] = np.nan
    make_learner(constant).update(batch, 0)
    assert constant.calls == ["reward"]


def test_a_reward_of_another_shape_is_refused():
    class Flat(Constant):
        def reward(self, rollout):
            return super().reward(rollout).ravel()

    with pytest.raises(ConfigError, match=r"Flat.reward gave an array \[32\]; it must be \[T, B\], here \[8, 4\]"):
        make_learner(Flat()).update(make_batch(), 0)


def test_what_is_seen_again_and_again_stops_being_novel_and_what_is_new_does_not():
    rng = np.random.default_rng(0)
    rnd = RND(SPEC, NET, dataclasses.replace(CONFIG, learning_rate=3e-3))
    usual, other = (batch_of(sign + 0.3 * rng.normal(size=(65, 8, 3))) for sign in (1.0, -1.0))
    rnd.learn(batch_of(np.concatenate([b.rollout.observation["obs"] for b in (usual, other)])))
    first = {name: rnd._novelty(batch.rollout).mean() for name, batch in (("usual", usual), ("other", other))}
    for _ in range(40):
        rnd.learn(usual)
    last = {name: rnd._novelty(batch.rollout).mean() for name, batch in (("usual", usual), ("other", other))}
    assert last["usual"] < 0.1 * first["usual"]
    assert last["other"] > 5 * last["usual"]


def test_the_first_batch_gives_nothing_and_later_ones_are_in_units_of_the_return_s_deviation():
    batches = [make_batch(seed) for seed in range(3)]
    rnd = RND(SPEC, NET, CONFIG)
    assert not rnd.reward(batches[0].rollout).any()
    rnd.learn(batches[0])
    returns, running = [], np.zeros(SLOTS)
    rollout = batches[0].rollout
    # As it was just before the predictor learned: a fresh one with the same moments.
    twin = RND(SPEC, NET, dataclasses.replace(CONFIG, learning_rate=1e-30))
    twin.learn(batches[0])
    novelty = twin._novelty(rollout)
    for t in range(STEPS):
        running = running * CONFIG.gamma + novelty[t]
        returns += running[rollout.valid[t]].tolist()
        running[rollout.terminated[t]] = 0
    expected = 0.5 * rnd._novelty(batches[1].rollout) / np.std(returns)
    np.testing.assert_allclose(rnd.reward(batches[1].rollout), expected, rtol=1e-4)


def test_novelty_is_the_squared_error_on_the_clipped_normalised_next_observation():
    batch = make_batch(0)
    batch.rollout.observation["obs"][2, 0] = 1e6
    rnd = RND(SPEC, NET, CONFIG)
    rnd.learn(make_batch(1))
    seen = make_batch(1).rollout
    rows = seen.observation["obs"][1:][seen.valid]
    scaled = (batch.rollout.observation["obs"][1:] - rows.mean(0)) / rows.std(0)
    inputs = torch.from_numpy(np.clip(scaled, -OBSERVATION_CLIP, OBSERVATION_CLIP)).reshape(-1, 3).float()
    with torch.no_grad():
        error = (rnd._predictor({"obs": inputs}) - rnd._target({"obs": inputs})).square().mean(1)
    expected = np.where(batch.rollout.valid, error.view(STEPS, SLOTS).numpy(), 0)
    np.testing.assert_allclose(rnd._novelty(batch.rollout), expected, rtol=1e-3, atol=1e-6)


def test_transitions_that_do_not_count_give_and_change_nothing():
    rewards = []
    for rubbish in (0.0, 1e4):
        rnd, batch = RND(SPEC, NET, CONFIG), make_batch()
        rollout = batch.rollout
        rollout.valid[4, 1] = rollout.valid[6, 2] = False
        rollout.observation["obs"][5, 1] = rollout.observation["obs"][7, 2] = rubbish
        rollout.bootstrap_value = np.full((STEPS, SLOTS), np.nan, np.float32)
        rollout.truncated[5, 0] = True  # reset in the same step: what it led to is not in the rollout
        rollout.observation["obs"][6, 0] = rubbish
        rnd.learn(batch)
        rewards.append(rnd.reward(rollout))
        assert rewards[-1][4, 1] == rewards[-1][6, 2] == rewards[-1][5, 0] == 0
        assert (rewards[-1] > 0).sum() == STEPS * SLOTS - 4  # the batch has an end of its own
    np.testing.assert_array_equal(*rewards)


@pytest.mark.parametrize("net", [NET, NetConfig(image="small")], ids=["flat", "convolutions"])
def test_it_sees_the_newest_of_stacked_frames_and_categories(net):
    spec = SlotSpec(
        {"image": ArraySpec((24, 24), "uint8", 1 / 255, stack=3), "kind": ArraySpec((), "int64", num_classes=3)},
        ActionSpec((2,)),
    )
    rng = np.random.default_rng(0)
    rewards = []
    for change in (False, True):
        rollout = RolloutLayout(spec, STEPS, SLOTS).allocate()
        rollout.observation["image"][:] = np.random.default_rng(0).integers(0, 256, rollout.observation["image"].shape)
        rollout.observation["kind"][:] = np.arange(SLOTS) % 3
        rollout.valid[:] = True
        rnd = RND(spec, net, CONFIG)
        rnd.learn(Batch(rollout, [Item(0, 0, 0)], SLOTS, 0))
        if change:  # what lies before row 1 is part of stacks, but of no newest frame of a next observation
            rollout.observation["image"][:3] = rng.integers(0, 256, rollout.observation["image"][:3].shape)
        rewards.append(rnd.reward(rollout))
    assert (rewards[0] > 0).all()
    np.testing.assert_array_equal(*rewards)


def test_only_a_share_of_the_rows_trains_it(monkeypatch):
    taken = []
    rnd = RND(SPEC, NET, dataclasses.replace(CONFIG, share=0.25))
    errors = rnd._errors
    monkeypatch.setattr(rnd, "_errors", lambda rows, index: taken.append(index) or errors(rows, index))
    batch = make_batch()
    rnd.learn(batch)
    assert len(taken[-1]) == 8  # a quarter of 31
    assert batch.rollout.valid.ravel()[taken[-1]].all()


def test_a_coefficient_of_zero_changes_no_bit():
    learners = [make_learner(None), make_learner(RND(SPEC, NET, dataclasses.replace(CONFIG, coef=0.0)))]
    for learner in learners:
        for seed in range(4):
            learner.update(make_batch(seed), 0)
    first, second = (everything(learner) for learner in learners)
    assert second.pop("intrinsic")["batches"] == 4
    assert first.pop("intrinsic") is None
    assert not differences(first, second)


@pytest.mark.parametrize("backend", ["serial", "processes"])
def test_a_resumed_run_goes_on_bit_for_bit_with_novelty(backend, tmp_path: Path):
    settings = {"rnd.coef": 0.1, "rnd.share": 0.5, "ppo.normalize_observation": True}
    quick_train(Clock, tmp_path / "whole", {"stop.updates": 4, **settings}, backend=backend)
    quick_train(Clock, tmp_path / "parts", {"stop.updates": 2, **settings}, backend=backend)
    millrace.resume(tmp_path / "parts", env=Clock, settings={"stop.updates": 4}, quiet=True)
    assert not differences(learned(tmp_path / "whole"), learned(tmp_path / "parts"))
    assert learned(tmp_path / "whole")["learner"]["intrinsic"]["batches"] == 4
    row = rows_of(tmp_path / "parts")[-1]
    assert row["rnd_loss"] > 0
    assert row["intrinsic_reward"] > 0
    assert {"rnd_loss", "intrinsic_reward", "auxiliary_loss"} <= CATALOGUE.keys()


def test_a_reward_of_the_user_s_own_goes_through_a_run_and_its_checkpoint(tmp_path: Path):
    made = []

    def make(spec):
        made.append(Constant())
        assert spec.observation["obs"].shape == (3,)
        return made[-1]

    quick_train(Clock, tmp_path, {"stop.updates": 2}, backend="serial", intrinsic=make)
    millrace.resume(tmp_path, env=Clock, settings={"stop.updates": 3}, quiet=True, intrinsic=make)
    assert made[0].calls == ["reward", "learn"] * 2
    assert made[1].calls == ["reward", "learn"] * 3
    with pytest.raises(ConfigError, match=r"rnd.coef=0.5 and intrinsic=... are both rewards"):
        quick_train(Clock, tmp_path / "two", {"rnd.coef": 0.5}, intrinsic=make)


def test_novelty_leads_through_doors_that_chance_does_not(tmp_path: Path):
    """20 rooms: at random the reward comes once in half a million tries, of which there are some 30,000 here."""
    returns = {}
    settings = {
        "net.hidden": [32],
        "ppo.learning_rate": 3e-3,
        "rnd.learning_rate": 1e-3,
        "stop.updates": 60,
        "metrics.every_s": 10.0,
    }
    sizes = {"backend": "serial", "workers": 1, "envs_per_worker": 16, "rollout_steps": 64, "seed": 1}
    for coef in (0.0, 0.1):
        result = quick_train(Doors, tmp_path / str(coef), {**settings, "rnd.coef": coef}, **sizes)
        returns[coef] = result.mean_return
    assert returns[0.0] == 0.0
    assert returns[0.1] > 0.9
