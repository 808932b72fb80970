"""What people and programs see while an experiment runs."""

from __future__ import annotations

import json
import sys
import time
from typing import Protocol

from millrace.experiments.records import RunRecord

LINES_EVERY_S = 10.0


class Progress(Protocol):
    """Shown the runs at work and told of each that ends."""

    def show(self, running: dict[str, RunRecord], num_waiting: int) -> None: ...

    def ended(self, name: str, record: RunRecord) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


class LinesProgress:
    """A line for each run at work now and then, and one when it ends."""

    def __init__(self) -> None:
        self._last_s = time.monotonic()

    def show(self, running: dict[str, RunRecord], num_waiting: int) -> None:
        if time.monotonic() - self._last_s < LINES_EVERY_S:
            return
        self._last_s = time.monotonic()
        for name, record in running.items():
            print(f"{name}: {figures(record)}", flush=True)

    def ended(self, name: str, record: RunRecord) -> None:
        print(ending(name, record), flush=True)

    def note(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        """Nothing is held open."""


class JsonProgress:
    """Each run that ends as a JSON line on standard output; words go to standard error."""

    def show(self, running: dict[str, RunRecord], num_waiting: int) -> None:
        """Only ends are told."""

    def ended(self, name: str, record: RunRecord) -> None:
        print(json.dumps({"run": name, **record.plain()}), flush=True)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is held open."""


class NoProgress:
    """Nothing at all."""

    def show(self, running: dict[str, RunRecord], num_waiting: int) -> None:
        """Not shown."""

    def ended(self, name: str, record: RunRecord) -> None:
        """Not told."""

    def note(self, text: str) -> None:
        """Not told."""

    def close(self) -> None:
        """Nothing is held open."""


def make_progress(console: str, title: str, total_env_steps: int) -> Progress:
    """The kind that the setting `metrics.console` names."""
    if console == "json":
        return JsonProgress()
    if console == "off":
        return NoProgress()
    if console == "live" or (console == "auto" and sys.stdout.isatty()):
        from millrace.experiments.live import LiveProgress

        return LiveProgress(title, total_env_steps)
    return LinesProgress()


def figures(record: RunRecord) -> str:
    """Steps, return and speed of a run in a few words."""
    score = f"return {record.mean_return:.1f}" if record.mean_return == record.mean_return else "no episode yet"
    speed = f", {record.steps_per_second:,.0f} steps/s" if record.steps_per_second == record.steps_per_second else ""
    return f"{record.env_steps:,} steps, {score}{speed}, {record.wall_s:.0f} s"


def ending(name: str, record: RunRecord) -> str:
    """One line about a run that has ended."""
    return f"{name}: {record.state}, {figures(record)}" + (f"; {record.error}" if record.error else "")
