"""How many workers collect: as many as the machine bears and the learner needs, or as a schedule says."""

from __future__ import annotations

from collections.abc import Sequence

from millrace.collect.load import Load, LoadMeter
from millrace.collect.source import RolloutSource
from millrace.config import CollectConfig

STARVED = 0.2  # of the learner's time without anything to learn from
IDLE_CORE = 0.5  # of a core is enough for another worker to be of use
LEARNER_IS_THE_LIMIT = 0.5  # of the collectors' time without anything to do
NEARLY_ALL_MEMORY = 0.8


class Scaler:
    """Follows the schedule or the machine, whichever is asked for."""

    def __init__(self, settings: CollectConfig) -> None:
        self._settings, self.meter = settings, LoadMeter()

    def adjust(self, source: RolloutSource, progress: float) -> str:
        """Set how many workers collect from here on; a sentence where that is news.

        Args:
            progress: of the run, 0..1.
        """
        pool, settings = source.pool, self._settings
        before, reason = pool.active, ""
        if settings.workers_schedule:
            pool.active = workers_scheduled(settings.workers_schedule, progress, settings.workers)
            reason = f"{progress:.0%} of the run is done"
        elif settings.scaling == "machine":
            load = self.meter.since_last(source)
            if load is not None:
                pool.active, reason = workers_wanted(before, settings.min_workers, settings.workers, load)
        return f"{pool.active} workers instead of {before}: {reason}" if pool.active != before else ""


def workers_wanted(active: int, least: int, most: int, load: Load) -> tuple[int, str]:
    """One worker more or less, and why; the same number and no reason where all is well."""
    wanted, reason = active, ""
    if load.memory > NEARLY_ALL_MEMORY:
        wanted, reason = active - 1, f"{load.memory:.0%} of memory is in use"
    elif load.collector_wait > LEARNER_IS_THE_LIMIT and load.learner_wait < STARVED:
        wanted, reason = active - 1, f"collectors waited {load.collector_wait:.0%} of the time for the learner"
    elif load.learner_wait > STARVED and load.idle_cores > IDLE_CORE:
        wanted = active + 1
        reason = f"the learner waited {load.learner_wait:.0%} of the time and {load.idle_cores:.1f} cores were idle"
    wanted = min(max(wanted, least), most)
    return (wanted, reason) if wanted != active else (active, "")


def workers_scheduled(schedule: Sequence[int], progress: float, most: int) -> int:
    """The number of the stage that training is in: stages are of equal length along the run."""
    stage = min(int(progress * len(schedule)), len(schedule) - 1)
    return min(max(schedule[stage], 1), most)
