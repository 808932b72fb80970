"""Wrappers that hide a part of an observation, to try out memory with."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from millrace.types import Array


class PositionsOnly(gym.ObservationWrapper[Any, Any, Any]):  # type: ignore[misc]
    """Every other number of a vector, which for CartPole leaves out the velocities."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, gym.spaces.Box)
        assert space.dtype is not None
        self.observation_space = gym.spaces.Box(space.low[::2], space.high[::2], dtype=space.dtype.type)

    def observation(self, observation: Array) -> Array:
        return np.ascontiguousarray(observation[::2])
