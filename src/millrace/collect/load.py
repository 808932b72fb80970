"""What the machine and the two sides of training did in the last seconds."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from millrace import system
from millrace.collect.source import RolloutSource

EVERY_S = 10.0  # a worker takes seconds to start: sooner, its effect is not seen


@dataclass(frozen=True)
class Load:
    """What the machine and the two sides did since the last look, shares in 0..1.

    Attributes:
        idle_cores: cores that nobody used.
    """

    learner_wait: float
    collector_wait: float
    memory: float
    idle_cores: float


class LoadMeter:
    """Differences of running totals over windows of some seconds."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        self._every_s = every_s
        self._last: tuple[float, float, float, float, float] | None = None

    def since_last(self, source: RolloutSource) -> Load | None:
        """The load since the window began, if it is over."""
        now_s = time.perf_counter()
        if self._last is not None and now_s - self._last[0] < self._every_s:
            return None
        times = source.times
        collected_s = times.step_s + times.inference_s + times.other_s + times.wait_s
        now = now_s, source.learner_wait_s, times.wait_s, collected_s, system.cpu_idle_s()
        before, self._last = self._last, now
        if before is None:
            return None
        wall_s, learner_wait_s, wait_s, collected_s, idle_s = (b - a for a, b in zip(before, now, strict=True))
        total, left = system.memory_bytes()
        return Load(
            learner_wait=learner_wait_s / wall_s,
            collector_wait=wait_s / max(collected_s, 1e-9),
            memory=1 - left / total if total else 0.0,
            # Where the system does not tell, a core is idle that has neither a worker nor the learner.
            idle_cores=float(system.available_cores() - source.pool.active - 1)
            if math.isnan(idle_s)
            else idle_s / wall_s,
        )
