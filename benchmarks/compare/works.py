"""The works: what is asked of each peer and which figures make its table."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.harness import Column

_RATE = Column("steps_per_second", "steps/s", better="higher")
_FIRST = Column("first_update_s", "start to first update, s", 1)
_MEMORY = Column("pss_peak_mb", "memory (PSS), MB")


@dataclass(frozen=True)
class Work:
    """One work of the comparison."""

    name: str
    """Under which results are kept."""
    function: str
    """As the peers' scripts call it."""
    columns: tuple[Column, ...]
    seconds: float
    """How long to measure, or to try."""
    copies: int = 0
    cold_caches: bool = False

    def timeout_s(self, seconds: float) -> float:
        """A run that takes longer has failed: start, which goes by the copies, first update and end come on top."""
        return seconds + 90.0 + 4.0 * self.copies

    def arguments(self, seconds: float) -> tuple[str, ...]:
        """Of the peer's script, after work and variant."""
        copies = ("--copies", str(self.copies)) if self.copies else ()
        return ("--seconds", str(seconds), *copies)


def _slow_uneven(copies: int) -> Work:
    ideal = Column("of_ideal_percent", f"% of {copies / 0.03:.0f}/s", 1)
    return Work(f"slow-uneven-{copies}", "slow-uneven", (_RATE, ideal, _FIRST, _MEMORY), 30.0, copies)


WORKS = (
    Work("cartpole-throughput", "cartpole-throughput", (_RATE, _FIRST, _MEMORY), 15.0),
    Work(
        "cartpole-time-to-475",
        "cartpole-time-to-475",
        (
            Column("seconds_to_475", "seconds from process start", 1, better="lower"),
            Column("env_steps", "environment steps"),
            _MEMORY,
        ),
        120.0,
        cold_caches=True,
    ),
    _slow_uneven(8),
    _slow_uneven(16),
    _slow_uneven(64),
    Work("pong", "pong", (_RATE, _FIRST, _MEMORY), 30.0),
    Work("dict", "dict", (_RATE, _FIRST, _MEMORY), 20.0),
)


def works_named(name: str) -> tuple[Work, ...]:
    """The works that a name means: its own, or all sizes of it; an empty name means all."""
    return tuple(work for work in WORKS if name in ("", work.name, work.function))
