"""Workers give way to other programs when asked to."""

from __future__ import annotations

import json
import os

import gymnasium as gym
import pytest

import millrace


class TellsNiceness(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample() * 0, {}

    def step(self, action):
        return self.observation_space.sample() * 0, 0.0, True, False, {"niceness": os.nice(0)}


@pytest.mark.skipif(not hasattr(os, "nice"), reason="this system knows no niceness")
def test_workers_run_at_the_niceness_that_was_asked_for(tmp_path):
    settings = {"stop.updates": 2, "metrics.tensorboard": False, "metrics.every_s": 0.0}
    result = millrace.train(
        TellsNiceness,
        backend="processes",
        workers=1,
        envs_per_worker=2,
        rollout_steps=8,
        worker_nice=3,
        run_dir=tmp_path / "run",
        settings=settings,
        quiet=True,
    )
    row = json.loads((result.run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["game/niceness"] == os.nice(0) + 3
