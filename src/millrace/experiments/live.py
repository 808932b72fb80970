"""The live table of an experiment on a terminal."""

from __future__ import annotations

import collections

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from millrace.experiments.progress import ending
from millrace.experiments.records import RunRecord
from millrace.metrics.console import SPARK_POINTS, clock, sparkline


class LiveProgress:
    """One row for each run at work: how far, its score so far, its speed. Those that end stay above as lines."""

    def __init__(self, title: str, total_env_steps: int) -> None:
        self._title, self._total = title, total_env_steps
        self._num_ended = 0
        self._returns: dict[str, collections.deque[float]] = {}
        self._live = Live(Text("starting ..."), console=Console(), refresh_per_second=4, transient=True)
        self._live.start()

    def show(self, running: dict[str, RunRecord], num_waiting: int) -> None:
        caption = f"{self._num_ended} ended, {len(running)} running, {num_waiting} waiting; Ctrl-C stops and saves"
        table = Table(title=self._title, caption=caption, title_justify="left", caption_justify="left")
        table.add_column("run", style="bold cyan", no_wrap=True)
        for header in ("done", "steps", "return", "steps/s", "time"):
            table.add_column(header, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for name, record in running.items():
            table.add_row(name, *self._cells(record), self._sparks(name, record))
        self._live.update(table)

    def _cells(self, record: RunRecord) -> list[str]:
        has_score, has_speed = record.episodes > 0, record.steps_per_second == record.steps_per_second
        return [
            f"{record.env_steps / self._total:.0%}",
            f"{record.env_steps:,}",
            f"{record.mean_return:.1f}" if has_score else "-",
            f"{record.steps_per_second:,.0f}" if has_speed else "-",
            clock(record.wall_s),
        ]

    def _sparks(self, name: str, record: RunRecord) -> str:
        returns = self._returns.setdefault(name, collections.deque(maxlen=SPARK_POINTS // 2))
        if record.mean_return == record.mean_return:
            returns.append(record.mean_return)
        return sparkline(list(returns)) if returns else ""

    def ended(self, name: str, record: RunRecord) -> None:
        self._num_ended += 1
        self._returns.pop(name, None)
        self._live.console.print(Text(ending(name, record), style="red" if record.failed else "dim"))

    def note(self, text: str) -> None:
        self._live.console.print(Text(text, style="dim"))

    def close(self) -> None:
        self._live.stop()
