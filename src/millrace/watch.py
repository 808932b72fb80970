"""Says in one sentence when training goes wrong: which figure left its healthy range, why it may have, what to try."""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Mapping
from typing import Any

from millrace.metrics.catalogue import CATALOGUE

WATCHED = ("explained_variance", "value_scale", "ratio_tail_share", "effective_sample_share", "kl", "kl_proximal")
ROWS = 8  # a figure that leaves its range for a row or two has not left it
OF_VALUES = ("explained_variance", "value_scale")
VARIED_TARGETS = 0.05  # of their mean: in a game that is mastered all are alike, and there is nothing to explain
BEGINNING = 0.05  # of the run, in which a value knows nothing yet


class Watch:
    """Reads the rows of figures as they are written; alters nothing."""

    def __init__(self) -> None:
        self._recent: dict[str, collections.deque[float]] = {name: collections.deque(maxlen=ROWS) for name in WATCHED}
        self._side = dict.fromkeys(WATCHED, "")

    def see(self, row: Mapping[str, Any], progress: float) -> list[str]:
        """The sentences that a row gives occasion to: one each time a figure leaves its range for a while.

        Args:
            progress: of the run, 0..1.
        """
        if progress < BEGINNING:
            return []
        names = [name for name in WATCHED if name in row and not (name in OF_VALUES and _is_mastered(row))]
        return [sentence for name in names for sentence in self._judge(name, row[name])]

    def _judge(self, name: str, value: float) -> list[str]:
        recent, metric = self._recent[name], CATALOGUE[name]
        if math.isfinite(value):
            recent.append(value)
        if len(recent) < ROWS:
            return []
        median = statistics.median(recent)
        side, before = metric.side(median), self._side[name]
        is_well = not any(metric.side(value) for value in recent)
        if is_well or side:  # at the edge of its range a figure is not news again and again
            self._side[name] = side
        if not side or side == before:
            return []
        limit = metric.healthy[side == "above"]
        return [f"watch: {name} = {median:.3g} is {side} {limit:g} ({metric.meaning}): {metric.remedy(side)}"]


def _is_mastered(row: Mapping[str, Any]) -> bool:
    mean, deviation = row.get("target_mean", 0.0), row.get("target_deviation", math.inf)
    return bool(deviation < VARIED_TARGETS * abs(mean))
