"""What every peer's script shares: the work it is asked for, how it is metered, how it is told.

Standard library only, so that it imports in any peer's environment. A peer's script ends with

    if __name__ == "__main__":
        main({"cartpole-throughput": {"variant": function}}, packages=("torch",))

where a function takes a `Job` and returns figures. Works that a peer cannot do are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks import child

Figures = Mapping[str, Any]
SCORE = 475.0
"""The mean return at which CartPole-v1 counts as solved."""
SCORE_EPISODES = 100
"""The training episodes over which that mean goes."""
SETTLE_S = 3.0
"""From the first update to the start of measuring: early workers have rollouts waiting."""
MEAN_SLEEP_S = 0.03
"""What a step of the slow uneven game takes on average."""


@dataclass(frozen=True)
class Job:
    """One piece of work."""

    seconds: float
    """How long to measure the steady state, or how long to try."""
    copies: int
    """Copies of a slow environment."""
    seed: int


Work = Callable[[Job], Figures]


class Meter:
    """Steps per second in the steady state: whole updates, from `SETTLE_S` after the first one on."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._first_update_s = 0.0
        self._start_s = 0.0
        self._marks: list[tuple[float, int]] = []

    def update_done(self, env_steps: int) -> bool:
        """Note that an update has ended, `env_steps` in all so far. True when measured for long enough."""
        now = time.perf_counter()
        if not self._first_update_s:
            self._first_update_s = child.since_launch_s()
            self._start_s = now + SETTLE_S
        if now >= self._start_s:
            self._marks.append((now, env_steps))
        return bool(self._marks) and now - self._marks[0][0] >= self._seconds

    def figures(self) -> Figures:
        """The figures of the throughput works."""
        if len(self._marks) < 3:
            raise RuntimeError(f"{len(self._marks)} updates in {self._seconds} s are too few to measure a rate")
        (first_s, first_steps), (last_s, last_steps) = self._marks[0], self._marks[-1]
        return {
            "steps_per_second": (last_steps - first_steps) / (last_s - first_s),
            "first_update_s": self._first_update_s,
            "measured_s": last_s - first_s,
            "updates": len(self._marks) - 1,
        }


class ScoreWatch:
    """The mean return of the last 100 training episodes, and when it reached 475."""

    def __init__(self) -> None:
        self._returns: deque[float] = deque(maxlen=SCORE_EPISODES)
        self._reached_s: float | None = None

    def episode(self, episode_return: float) -> bool:
        """Note a finished episode. True once the score has been reached."""
        self._returns.append(episode_return)
        if self._reached_s is None and len(self._returns) == SCORE_EPISODES and self.mean >= SCORE:
            self._reached_s = child.since_launch_s()
        return self.reached

    @property
    def reached(self) -> bool:
        """Whether the score has been reached."""
        return self._reached_s is not None

    @property
    def mean(self) -> float:
        """The mean so far."""
        return sum(self._returns) / max(len(self._returns), 1)

    def figures(self, env_steps: int) -> Figures:
        """The figures of the work that races to a score; no time if it was not reached."""
        return {"seconds_to_475": self._reached_s, "env_steps": env_steps, "last_mean_return": self.mean}


def with_ideal(figures: Figures, copies: int) -> Figures:
    """The figures with the rate as a percentage of `copies` environments that never wait."""
    return {**figures, "of_ideal_percent": 100 * figures["steps_per_second"] * MEAN_SLEEP_S / copies}


def main(works: Mapping[str, Mapping[str, Work]], packages: Iterable[str]) -> None:
    """The command line of a peer's script."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--list", action="store_true", help="print works and their variants as JSON")
    parser.add_argument("work", nargs="?", choices=tuple(works))
    parser.add_argument("variant", nargs="?")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--copies", type=int, default=8)
    arguments = parser.parse_args()
    if arguments.list:
        print(json.dumps({work: list(variants) for work, variants in works.items()}))
        return
    job = Job(arguments.seconds, arguments.copies, child.seed())
    child.report(works[arguments.work][arguments.variant](job), packages)
