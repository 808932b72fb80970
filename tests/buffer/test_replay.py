"""What a replay buffer holds, draws, overwrites and counts, and that no place is ever lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.buffer.batch import Item
from millrace.buffer.replay import Replay
from millrace.buffer.slab import Slab
from millrace.config import ReplayConfig
from millrace.system import SharedBlock
from millrace.types import ActionSpec, ArraySpec, EpisodeRecord, RolloutLayout, SlotSpec

SPEC = SlotSpec({"obs": ArraySpec((2,), "float32")}, ActionSpec((3,)), has_action_mask=True)
STEPS, SLOTS = 4, 3
SIZES = {"capacity_items": 4 * SLOTS, "batch_size_items": 5, "min_size_items": 5, "error_items": 12.0}
STEP_SIZES = {"item": "step", "capacity_items": 48, "batch_size_items": 16, "min_size_items": 16, "error_items": 40.0}


@contextmanager
def opened(**replay: Any) -> Iterator[Replay]:
    layout = RolloutLayout(SPEC, STEPS, SLOTS)
    block = SharedBlock(Slab.nbytes(layout, 7))
    slab = Slab(layout, 7, block)
    config = ReplayConfig(**{**SIZES, "sampler": "uniform", "samples_per_insert": 2.0, **replay})
    replay_buffer = Replay(slab, config, seed=0)
    yield replay_buffer
    replay_buffer._stacked.clear()
    slab.rollouts.clear()
    block.close()


def collect(replay: Replay, number: int, valid: Any = True, episodes: Any = ()) -> None:
    """A rollout whose every figure tells rollout, step and slot."""
    place = replay.slab.acquire()
    rollout = replay.slab.rollouts[place]
    step, slot = np.mgrid[: STEPS + 1, :SLOTS]
    figure = 100.0 * number + 10 * step + slot
    rollout.observation["obs"][:] = figure[..., None]
    rollout.value[:] = figure
    rollout.reward[:] = figure[:-1]
    rollout.action_mask[:] = slot[..., None]
    rollout.policy_version[:] = number
    rollout.valid[:] = valid
    rollout.terminated[:], rollout.truncated[:] = False, False
    replay.insert(Item(worker=number % 2, version=number, place=place, episodes=episodes))


def learn(replay: Replay, version: int = 9) -> Any:
    batch = replay.take(version)
    shape = batch.rollout.reward.shape
    batch.draws.error, batch.draws.priority = np.ones(shape, np.float32), np.ones(shape, np.float32)
    replay.feedback(batch)
    return batch


@pytest.mark.parametrize("sampler", ["fifo", "uniform", "prioritized"])
def test_a_drawn_column_is_the_column_as_it_was_collected(sampler: str) -> None:
    with opened(sampler=sampler) as replay:
        for number in range(3):
            collect(replay, number)
        rollout = learn(replay).rollout
        assert rollout.reward.shape == (STEPS, 5)
        slot, number = rollout.action_mask[0, :, 0].astype(int), rollout.policy_version[0]
        expected = 100.0 * number + slot + 10 * np.arange(STEPS + 1)[:, None]
        np.testing.assert_array_equal(rollout.value, expected)
        np.testing.assert_array_equal(rollout.observation["obs"][..., 1], expected)
        np.testing.assert_array_equal(rollout.reward, expected[:-1])


def test_a_drawn_step_comes_with_the_row_behind_it_and_only_experience_is_drawn() -> None:
    valid = np.ones((STEPS, SLOTS), bool)
    valid[1, 2] = False
    with opened(**STEP_SIZES) as replay:
        for number in range(2):
            collect(replay, number, valid)
        seen = set()
        for _ in range(20):
            rollout = learn(replay).rollout
            assert rollout.reward.shape == (1, 16)
            np.testing.assert_array_equal(rollout.value[1] - rollout.value[0], 10.0)
            np.testing.assert_array_equal(rollout.reward[0], rollout.value[0])
            assert rollout.valid.all()
            seen |= set(rollout.reward[0])
        assert len(seen) == 2 * (STEPS * SLOTS - 1)
        assert not {12.0, 112.0} & seen


def test_statistics_hear_of_each_rollout_once_however_often_it_is_drawn() -> None:
    with opened() as replay:
        for number in range(2):
            collect(replay, number)
        first, second = learn(replay), learn(replay)
        assert [worker for worker, _ in first.blocks()] == [0, 1]
        assert first.env_steps == 2 * STEPS * SLOTS
        assert (second.blocks(), second.env_steps) == ([], 0)
        assert not second.is_empty


def test_what_is_overwritten_before_any_batch_told_of_it_still_counts() -> None:
    episode = EpisodeRecord(1.0, 4)
    with opened(samples_per_insert=0.1, error_items=1000.0) as replay:
        for number in range(6):
            collect(replay, number, episodes=(episode,))
        batch = learn(replay)
        assert batch.env_steps == 6 * STEPS * SLOTS
        assert batch.episodes == [episode] * 6
        assert len(batch.blocks()) == 4


def test_a_full_buffer_overwrites_the_oldest_and_counts_what_was_never_seen() -> None:
    with opened(sampler="fifo") as replay:
        for number in range(4):
            collect(replay, number)
        batch = learn(replay)
        assert set(batch.rollout.policy_version[0]) == {0, 1}
        for number in range(4, 7):
            collect(replay, number)
        assert (replay.counts.overwritten, replay.counts.unseen) == (3 * SLOTS, 4)
        assert len(replay) == 4 * SLOTS
        assert replay.slab.num_free == 3


def test_draws_and_inserts_keep_to_the_ratio_whoever_is_quicker() -> None:
    for eager in ("collectors", "learner"):
        with opened() as replay:
            for number in range(60):
                while replay.can_take() and (eager == "learner" or not replay.admits(0, 0)):
                    learn(replay)
                if replay.admits(0, 0):
                    collect(replay, number)
            ratio = replay.counts.drawn / replay.counts.inserted
            assert ratio == pytest.approx(2.0, rel=0.15)


def test_blocking_lets_items_leave_after_their_draws_and_overwrites_nothing() -> None:
    with opened(when_full="block", error_items=1000.0, min_size_items=5) as replay:
        number = 0
        for _ in range(40):
            while replay.admits(0, 0):
                collect(replay, number)
                number += 1
            learn(replay)
        assert replay.counts.blocked > 0
        assert replay.counts.overwritten == 0
        assert replay.counts.drawn == 200
        # Twice each, but for those that are still held.
        assert number * SLOTS - len(replay) <= 100
        assert replay.slab.num_free + len(replay._held) == 7


def test_new_rollouts_and_then_the_stalest_are_refreshed() -> None:
    with opened(**STEP_SIZES, refresh_rollouts=1) as replay:
        for number in range(3):
            collect(replay, number)
        refreshed = [
            [int(refresh.rollout.policy_version[0, 0]) for refresh in learn(replay, version).draws.refresh]
            for version in range(9, 14)
        ]
        assert refreshed == [[0, 1, 2], [0], [1], [2], [0]]


def test_what_was_learned_is_carried_to_the_step_before() -> None:
    with opened(**{**STEP_SIZES, "batch_size_items": 24, "min_size_items": 24}) as replay:
        for number in range(2):
            collect(replay, number)
        batch = replay.take(3)
        for refresh in batch.draws.refresh:
            refresh.error[:-1] = refresh.rollout.reward
        step = (batch.rollout.reward[0] % 100) // 10
        expected = np.where(step < STEPS - 1, batch.rollout.reward[0] + 10, 0.0)
        np.testing.assert_array_equal(batch.draws.carried(), expected)
        batch.draws.error = batch.draws.priority = -batch.rollout.reward
        replay.feedback(batch)
        np.testing.assert_array_equal(batch.draws.carried(), np.where(step < STEPS - 1, -(expected), 0.0))


def test_what_is_too_old_leaves_and_is_lost_only_where_nothing_was_drawn() -> None:
    with opened(sampler="fifo") as replay:
        for number in range(4):
            collect(replay, number)
        learn(replay)  # of rollouts 0 and 1
        assert replay.drop_stale(3) == [STEPS * SLOTS]
        assert len(replay) == SLOTS
        assert replay.slab.num_free == 6


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_place_is_lost_whatever_happens_in_whatever_order(data: Any) -> None:
    """A thousand kills and more over all examples: rollouts granted and lost, dropped, overwritten, left."""
    shape = data.draw(st.sampled_from([{}, STEP_SIZES]))
    sampler = data.draw(st.sampled_from(["uniform", "prioritized", "fifo"]))
    with opened(
        **{**shape, "sampler": sampler, "when_full": data.draw(st.sampled_from(["overwrite", "block"]))}
    ) as replay:
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        version, granted = 0, 0
        for _ in range(120):
            kind = rng.choice(["collect", "kill", "learn", "stale"], p=[0.4, 0.2, 0.38, 0.02])
            if kind == "collect" and replay.slab.num_free and replay.admits(0, 0):
                collect(replay, version, rng.random((STEPS, SLOTS)) < 0.9)
                granted += 1
            elif kind == "kill" and replay.slab.num_free:
                replay.slab.release(replay.slab.acquire())
            elif kind == "learn" and replay.can_take():
                learn(replay, version)
                version += 1
            elif kind == "stale":
                replay.drop_stale(version - 3)
            assert replay.slab.num_free + len(replay._held) == len(replay.slab.rollouts)
            assert len(replay) == len(replay._sampler) == replay._is_live.sum()
        assert granted > 3


def test_priorities_steer_what_is_drawn() -> None:
    with opened(sampler="prioritized", alpha=1.0, beta=0.0) as replay:
        for number in range(4):
            collect(replay, number)
        for _ in range(30):
            batch = replay.take(1)
            shape = batch.rollout.reward.shape
            batch.draws.error = np.zeros(shape, np.float32)
            # Only what came in rollout 2 is surprising.
            batch.draws.priority = np.where(batch.rollout.policy_version == 2, -8.0, 0.01)
            replay.feedback(batch)
        drawn = np.concatenate([learn_as(replay, 2) for _ in range(10)])
        assert (drawn == 2).mean() > 0.9


def learn_as(replay: Replay, number: int) -> np.ndarray:
    batch = replay.take(1)
    batch.draws.error = np.zeros(batch.rollout.reward.shape, np.float32)
    batch.draws.priority = np.where(batch.rollout.policy_version == number, 8.0, 0.01)
    replay.feedback(batch)
    return np.asarray(batch.rollout.policy_version[0])


def test_importance_weights_grow_to_their_full_power_along_the_run() -> None:
    with opened(sampler="prioritized", alpha=1.0, beta=0.0) as replay:
        for number in range(4):
            collect(replay, number)
        keys = np.arange(2 * SLOTS)
        replay._sampler.update(keys, np.linspace(1.0, 3.0, len(keys)))
        assert (replay.take(0, progress=0.0).draws.weight == 1.0).all()
        assert replay.take(0, progress=1.0).draws.weight.min() < 0.6


def test_settings_are_frozen_per_run_and_say_whether_there_is_replay_at_all() -> None:
    assert not ReplayConfig().is_on
    for change in ({"sampler": "uniform"}, {"samples_per_insert": 2.0}, {"item": "step"}):
        assert dataclasses.replace(ReplayConfig(), **change).is_on


@pytest.mark.parametrize("when_full", ["overwrite", "block"])
def test_a_thousand_workers_killed_with_a_place_in_hand_lose_none(when_full: str) -> None:
    rng, kills, number = np.random.default_rng(1), 0, 0
    with opened(when_full=when_full) as replay:
        granted: list[int] = []
        while kills < 1000:
            if replay.slab.num_free and replay.admits(len(granted), 0):
                granted.append(replay.slab.acquire())
            if granted and rng.random() < 0.5:
                place = granted.pop(int(rng.integers(len(granted))))
                replay.slab.release(place)
                if rng.random() < 0.7:
                    kills += 1
                else:
                    collect(replay, number)
                    number += 1
            if replay.can_take():
                learn(replay)
            assert replay.slab.num_free + len(granted) + len(replay._held) == len(replay.slab.rollouts)
        assert number > 100
