"""Figures for Ray's dashboard and its Prometheus endpoint, where they stand as `ray_millrace_NAME`."""

from __future__ import annotations

import re
from typing import Any

from millrace.metrics.catalogue import CATALOGUE
from millrace.metrics.sinks import Row

NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_]")


class RayMetricsSink:
    """One gauge per figure, labelled with the run.

    Args:
        run: by which the figures of several runs on one cluster are told apart.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Any] = {}

    def write(self, row: Row) -> None:
        for name, value in row.items():
            if not isinstance(value, str):
                self._gauge(name).set(value, {"run": self._run})

    def _gauge(self, name: str) -> Any:
        if name not in self._gauges:
            from ray.util.metrics import Gauge

            metric = CATALOGUE.get(name)
            meaning = f"{metric.meaning} [{metric.unit}]" if metric else "a figure of the game or one of its options"
            self._gauges[name] = Gauge(f"millrace_{NOT_IN_A_NAME.sub('_', name)}", meaning, ("run",))
        return self._gauges[name]

    def note(self, text: str) -> None:
        """Notes are in the run's log."""

    def close(self) -> None:
        self._gauges.clear()
