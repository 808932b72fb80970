"""When a run ends before its steps are done."""

from __future__ import annotations

from millrace.config import StopConfig

RECENT_EPISODES = 100
"""Training episodes that a mean return is of."""


def reason_to_stop(rules: StopConfig, *, updates: int, episodes: int, wall_s: float, mean_return: float | None) -> str:
    """The first rule that holds, in words; empty where none does.

    Args:
        mean_return: of the last `RECENT_EPISODES` episodes; None or nan where none finished.
    """
    if rules.updates and updates >= rules.updates:
        return f"stop.updates={rules.updates} reached"
    if rules.episodes and episodes >= rules.episodes:
        return f"stop.episodes={rules.episodes} reached"
    if rules.wall_s and wall_s >= rules.wall_s:
        return f"stop.wall_s={rules.wall_s:g} reached"
    if rules.mean_return is None or mean_return is None or episodes < RECENT_EPISODES:
        return ""
    return f"stop.mean_return={rules.mean_return:g} reached" if mean_return >= rules.mean_return else ""
