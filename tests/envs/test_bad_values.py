"""Rewards and observations that are missing, not finite, or of another shape: counted or refused, not learned from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from helpers import new_row
from millrace.envs.gym_slots import GymSlots
from millrace.envs.protocol import SlotEnv, episode_seed
from millrace.envs.vector_slots import VectorSlots
from millrace.errors import EnvError
from toys import Faulty, tokens

BAD = [
    "reward is nan", "reward is infinite", "reward is None",
    "observation is nan", "observation is None", "observation has another shape",
]  # fmt: skip
BAD_IN_VECTORS = ["reward is nan", "reward is infinite", "observation is nan"]


def single(make_env: Callable[[], gym.Env], on_bad_value: str) -> SlotEnv:
    return GymSlots(make_env, 3, lambda slot, episode: episode_seed(0, slot, episode), on_bad_value)


def vector(make_env: Callable[[], gym.Env], on_bad_value: str) -> SlotEnv:
    return VectorSlots(SyncVectorEnv([make_env] * 3, autoreset_mode=AutoresetMode.NEXT_STEP), 0, on_bad_value)


def play(env: SlotEnv, steps: int):
    rows = [new_row(env.spec, env.num_slots)]
    env.reset(rows[0])
    for _ in range(steps):
        rows.append(new_row(env.spec, env.num_slots))
        env.step(np.zeros((env.num_slots, 1), np.int32), rows[-1])
    return rows


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_value_is_counted_and_its_transition_is_no_experience(kind, tmp_path: Path):
    directory = tokens(tmp_path / "tokens", 1)
    env = single(lambda: Faulty(kind, directory), "count")
    rows = play(env, 40)
    assert env.bad_values == 1
    bad = [(t, slot) for t, row in enumerate(rows) for slot in np.flatnonzero(row.truncated & ~row.valid)]
    ((t, slot),) = bad
    assert rows[t].reward[slot] == 0
    assert not rows[t].terminated[slot]
    # The episode ends with it: the next transition is a reset, and the one after that is experience again.
    assert not rows[t + 1].valid[slot]
    assert rows[t + 1].observation["obs"][slot, 1] == 0
    assert rows[t + 2].valid[slot]
    for row in rows:
        assert np.isfinite(row.observation["obs"]).all()
        assert np.isfinite(row.reward).all()


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_value_is_refused_with_slot_and_seed_where_that_is_asked(kind, tmp_path: Path):
    directory = tokens(tmp_path / "tokens", 1)
    env = single(lambda: Faulty(kind, directory), "refuse")
    with pytest.raises(EnvError, match=rf"slot \d, episode seed \d+: the {kind.split(' is ')[0].split(' has ')[0]}"):
        play(env, 40)


@pytest.mark.parametrize("kind", BAD_IN_VECTORS)
def test_a_bad_value_in_a_vector_environment_is_counted(kind, tmp_path: Path):
    directory = tokens(tmp_path / "tokens", 1)
    env = vector(lambda: Faulty(kind, directory), "count")
    rows = play(env, 40)
    assert env.bad_values == 1
    for row in rows:
        assert np.isfinite(row.observation["obs"]).all()
        assert np.isfinite(row.reward).all()
    resets_and_bad = sum(int((~row.valid).sum()) for row in rows[1:])
    dones = sum(int((row.terminated | row.truncated).sum()) for row in rows[1:-1])
    assert resets_and_bad == dones + 1


@pytest.mark.parametrize("kind", BAD_IN_VECTORS)
def test_a_bad_value_in_a_vector_environment_is_refused_where_that_is_asked(kind, tmp_path: Path):
    directory = tokens(tmp_path / "tokens", 1)
    with pytest.raises(EnvError, match=r"slot \d: a reward or observation is not finite"):
        play(vector(lambda: Faulty(kind, directory), "refuse"), 40)


def test_two_bad_values_that_cancel_in_a_sum_are_both_seen():
    class Cancels(Faulty):
        def step(self, action):
            observation, reward, terminated, truncated, info = super().step(action)
            infinite = np.array([0, 0, np.inf * (1 if self.tag % 2 else -1)])
            return observation + infinite, reward, terminated, truncated, info

    env = vector(Cancels, "count")
    rows = play(env, 1)
    assert env.bad_values == 3
    assert not rows[1].valid.any()


def test_a_bad_first_observation_is_an_error_with_its_seed():
    class Broken(Faulty):
        def reset(self, *, seed=None, options=None):
            return np.full(3, np.nan, np.float32), {}

    with pytest.raises(EnvError, match=r"slot 0, reset\(seed=\d+\): the observation obs is not finite"):
        play(single(Broken, "count"), 0)


@pytest.mark.parametrize("make", [single, vector])
def test_large_numbers_are_not_taken_for_infinite_ones(make):
    class Large(Faulty):
        def _observe(self):
            return np.full(3, 3e38, np.float32)

    env = make(Large, "refuse")
    rows = play(env, 5)
    assert env.bad_values == 0
    assert all((row.observation["obs"] == np.float32(3e38)).all() for row in rows)
