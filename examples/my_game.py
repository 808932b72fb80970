"""A game of your own: copy this file, change the rules, and train it.

    millrace check-env examples.my_game:make_env
    millrace train examples.my_game:make_env --total-env-steps 200000
    millrace eval

The game: a walker on a small square looks for the flag, and may not leave the square.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

MOVES = np.array([(0, 1), (0, -1), (1, 0), (-1, 0)])
STEP_LIMIT = 50

Observation = dict[str, npt.NDArray[Any]]


class MyGame(gym.Env[Observation, np.int64]):
    """Everything that Millrace asks of an environment is Gymnasium's own interface."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - Gymnasium declares it so

    def __init__(self, size: int = 8, render_mode: str | None = None) -> None:
        # Arguments come from the settings: --env.kwargs size=12
        self.size = size
        self.render_mode = render_mode
        self.observation_space = spaces.Dict(
            {
                "walker": spaces.Box(0, 1, (2,), np.float32),
                "flag": spaces.Box(0, 1, (2,), np.float32),
                # Optional: 1 for each action that is legal now. Illegal ones are never played.
                "action_mask": spaces.Box(0, 1, (len(MOVES),), np.uint8),
            }
        )
        self.action_space = spaces.Discrete(len(MOVES))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        # Draw from self.np_random only: then the same seed gives the same episode, crashes can be replayed, and a
        # resumed run goes on exactly where it stopped.
        super().reset(seed=seed)
        self.walker, self.flag = self.np_random.integers(0, self.size, (2, 2))
        self.steps = 0
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self.walker = self.walker + MOVES[action]
        self.steps += 1
        found = bool((self.walker == self.flag).all())
        # terminated: the game is over. truncated: it was cut off, and would have gone on. PPO treats them differently.
        terminated, truncated = found, self.steps >= STEP_LIMIT and not found
        reward = 1.0 if found else -0.02
        # Numbers in the last info of an episode are averaged and logged under game/NAME.
        info = {"found": float(found)} if terminated or truncated else {}
        return self._observe(), reward, terminated, truncated, info

    def render(self) -> npt.NDArray[np.uint8]:  # type: ignore[override]  # Gymnasium's type is a variable
        picture = np.full((self.size, self.size, 3), 235, np.uint8)
        picture[tuple(self.flag)] = (240, 180, 32)
        picture[tuple(self.walker)] = (222, 66, 54)
        return picture.repeat(24, 0).repeat(24, 1)

    def _observe(self) -> Observation:
        after = self.walker + MOVES
        legal = ((after >= 0) & (after < self.size)).all(axis=1)
        scale = np.float32(self.size - 1)
        return {
            "walker": self.walker.astype(np.float32) / scale,
            "flag": self.flag.astype(np.float32) / scale,
            "action_mask": legal.astype(np.uint8),
        }


def make_env(**kwargs: Any) -> gym.Env[Observation, np.int64]:
    """What `millrace train examples.my_game:make_env` calls."""
    return MyGame(**kwargs)
