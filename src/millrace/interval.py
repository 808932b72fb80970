"""Things that a run does every so often."""

from __future__ import annotations

import time


class Interval:
    """The steps and seconds between two times of something; 0 = never for that reason.

    Args:
        env_steps: of the run now, when the first interval begins.
    """

    def __init__(self, env_steps: int, every_env_steps: int, every_s: float = 0.0) -> None:
        self._every_env_steps, self._every_s = every_env_steps, every_s
        self.begin(env_steps)

    def begin(self, env_steps: int) -> None:
        """From here it counts anew."""
        self._begin_s, self._begin_steps = time.perf_counter(), env_steps

    def is_over(self, env_steps: int) -> bool:
        by_steps = bool(self._every_env_steps) and env_steps - self._begin_steps >= self._every_env_steps
        by_time = bool(self._every_s) and time.perf_counter() - self._begin_s >= self._every_s
        return by_steps or by_time
