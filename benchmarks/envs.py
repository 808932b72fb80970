"""Environments whose step costs time and nothing else: what a slow game looks like from outside."""

from __future__ import annotations

import time
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

Observation = NDArray[np.float32]


class SleepEnv(gymnasium.Env[Observation, np.int64]):
    """Each step sleeps U(`low_s`, `high_s`), pays 1 and ends the episode with probability `end_probability`.

    Resets do not sleep. Sleeps, ends and observations all come from the environment's own generator.
    """

    def __init__(self, low_s: float, high_s: float, end_probability: float = 0.05) -> None:
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self._low_s = low_s
        self._high_s = high_s
        self._end_probability = end_probability

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode at once."""
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Sleep, then go on or end."""
        time.sleep(self.np_random.uniform(self._low_s, self._high_s))
        terminated = bool(self.np_random.random() < self._end_probability)
        return self._observation(), 1.0, terminated, False, {}

    def _observation(self) -> Observation:
        return self.np_random.uniform(-1.0, 1.0, 4).astype(np.float32)


def make_slow_uneven() -> SleepEnv:
    """The slow uneven game: a step sleeps 10 to 50 ms, so that one copy makes 33.3 steps per second."""
    return SleepEnv(0.010, 0.050)


def make_sleep(ms: float) -> SleepEnv:
    """A game whose every step sleeps `ms` milliseconds."""
    return SleepEnv(ms / 1000, ms / 1000)
