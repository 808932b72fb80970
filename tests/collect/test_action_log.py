"""The action log tells every episode in progress, at every step at which a worker may die."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from millrace.collect.action_log import ActionLog
from millrace.collect.collector import EnvRows
from millrace.envs.gym_slots import GymSlots
from millrace.envs.protocol import episode_seed
from millrace.types import RolloutLayout

STREAM_SEED, SLOTS, STEPS = 11, 3, 5


class Diary(gym.Env[Any, Any]):
    """Remembers seed and actions of its episode; episodes last 1..9 steps, by their seed."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(100)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        assert seed is not None
        self.seed, self.actions, self.length = seed, [], 1 + seed % 9
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.actions.append([int(action)])
        return np.zeros(1, np.float32), 0.0, len(self.actions) == self.length, False, {}


@pytest.mark.parametrize("capacity", [4, 7, 1000])
def test_at_every_step_the_log_tells_each_slot_s_seed_and_actions(capacity: int) -> None:
    env = GymSlots(Diary, SLOTS, lambda slot, episode: episode_seed(STREAM_SEED, slot, episode))
    layout = RolloutLayout(env.spec, STEPS, SLOTS)
    rollout, rng = layout.allocate(), np.random.default_rng(0)
    rows = EnvRows(rollout, layout).rows
    log = ActionLog(memoryview(bytearray(ActionLog.nbytes(layout, capacity))), layout, capacity)
    env.reset(rows[0])
    log.clear(env.episode_seeds())
    compared = 0
    for _ in range(20):
        for t in range(STEPS):
            rollout.action[t] = rng.integers(0, 100, (SLOTS, 1))
            told = log.slots(rollout, t + 1, STREAM_SEED)
            done = env._done.copy()
            env.step(rollout.action[t], rows[t + 1])
            for slot, diary in enumerate(env.envs):
                # The action under way is told too, unless it only calls the reset.
                truth = [] if done[slot] else diary.actions
                assert told[slot]["seed"] == diary.seed
                if told[slot]["complete"]:
                    assert told[slot]["actions"] == truth
                    compared += 1
        log.append(rollout, env.episode_seeds())
    assert compared == 20 * STEPS * SLOTS or capacity < 9


def test_episodes_that_began_before_the_log_are_told_as_incomplete_until_they_end() -> None:
    env = GymSlots(Diary, 1, lambda slot, episode: episode_seed(STREAM_SEED, slot, episode))
    layout = RolloutLayout(env.spec, STEPS, 1)
    rollout = layout.allocate()
    log = ActionLog(memoryview(bytearray(ActionLog.nbytes(layout, 100))), layout, 100)
    log.clear(np.array([5]), np.array([7]), cut=True)
    assert log.slots(rollout, 1, STREAM_SEED)[0]["complete"] is False
    rollout.terminated[1] = True
    told = log.slots(rollout, 4, STREAM_SEED)[0]
    seed = episode_seed(STREAM_SEED, 0, 8)
    assert told == {"slot": 0, "seed": seed, "start_step": 3, "complete": True, "actions": [[0]]}
