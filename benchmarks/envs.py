"""Environments for measuring: games that are slow, games with large observations, and Pong as everyone plays it.

They run in every peer's environment, so with any Gymnasium from 0.29 on.
"""

from __future__ import annotations

import functools
import time
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

Observation = NDArray[np.float32]
Pixels = NDArray[np.uint8]


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


class MapEnv(gymnasium.Env[dict[str, Any], np.int64]):
    """A map, a vector and a mask of 16 actions, for next to no time a step: what is left is copying and learning.

    Maps and masks come from a pool that is made once; each step pays 1 and ends the episode with probability 0.01.
    The mask is offered in both usual ways: `info["action_mask"]` and `action_masks()`.
    """

    POOL = 64

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Dict(
            map=gymnasium.spaces.Box(0, 255, (4, 51, 51), np.uint8),
            vector=gymnasium.spaces.Box(-1.0, 1.0, (31,), np.float32),
        )
        self.action_space = gymnasium.spaces.Discrete(16)
        self._maps, self._vectors, self._masks = _map_pool(self.POOL)
        self._index = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start anywhere in the pool."""
        super().reset(seed=seed)
        return self._observe()

    def step(self, action: np.int64) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Go anywhere in the pool."""
        terminated = bool(self.np_random.random() < 0.01)
        observation, info = self._observe()
        return observation, 1.0, terminated, False, info

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions are allowed now."""
        mask: NDArray[np.bool_] = self._masks[self._index]
        return mask

    def _observe(self) -> tuple[dict[str, Any], dict[str, Any]]:
        self._index = int(self.np_random.integers(self.POOL))
        observation = {"map": self._maps[self._index], "vector": self._vectors[self._index]}
        return observation, {"action_mask": self.action_masks()}


@functools.cache
def _map_pool(size: int) -> tuple[Pixels, Observation, NDArray[np.bool_]]:
    random = np.random.default_rng(0)
    masks = random.random((size, 16)) < 0.5
    masks[:, 0] = True
    maps = random.integers(0, 256, (size, 4, 51, 51), np.uint8)
    return maps, random.uniform(-1.0, 1.0, (size, 31)).astype(np.float32), masks


class StackedFrames(gymnasium.Wrapper):  # type: ignore[misc, type-arg, unused-ignore]
    """The last four frames as channels; what Gymnasium has for this changed its name between the peers' versions."""

    def __init__(self, env: gymnasium.Env[Any, Any], frames: int = 4) -> None:
        super().__init__(env)
        shape = env.observation_space.shape
        assert shape is not None
        self.observation_space = gymnasium.spaces.Box(0, 255, (frames, *shape), np.uint8)
        self._stack = np.zeros((frames, *shape), np.uint8)

    def reset(self, **arguments: Any) -> tuple[Pixels, dict[str, Any]]:
        """The first frame, as often as it takes."""
        frame, info = self.env.reset(**arguments)
        self._stack = np.stack([frame] * len(self._stack))
        return self._stack, info

    def step(self, action: Any) -> tuple[Pixels, Any, bool, bool, dict[str, Any]]:
        """The newest frame comes last."""
        frame, reward, terminated, truncated, info = self.env.step(action)
        self._stack = np.concatenate([self._stack[1:], frame[None]])
        return self._stack, reward, terminated, truncated, info


def make_pong() -> gymnasium.Env[Pixels, np.int64]:
    """Pong from pixels: (4, 84, 84) uint8, four frames an action, up to 30 idle frames at the start."""
    from ale_py import AtariEnv  # here: the other games need no emulator
    from gymnasium.wrappers import AtariPreprocessing

    return StackedFrames(AtariPreprocessing(AtariEnv("pong", frameskip=1, repeat_action_probability=0.0)))
