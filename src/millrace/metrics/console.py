"""The live display on a terminal."""

from __future__ import annotations

import collections
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from millrace.metrics.catalogue import unhealthy
from millrace.metrics.sinks import Row

SPARKS = "▁▂▃▄▅▆▇█"
SPARK_POINTS = 48


class LiveSink:
    """Progress with time left, score, speed, where time goes, workers, and what looks unhealthy."""

    def __init__(self, title: str, total_env_steps: int, wall_limit_s: float = 0.0) -> None:
        self._title, self._total, self._wall_limit_s = title, total_env_steps, wall_limit_s
        self._returns: collections.deque[float] = collections.deque(maxlen=SPARK_POINTS)
        self._notes: collections.deque[str] = collections.deque(maxlen=4)
        self._console = Console()
        self._live = Live(Text("starting ..."), console=self._console, refresh_per_second=4, transient=False)
        self._live.start()

    def write(self, row: Row) -> None:
        if "episode_return" in row:
            self._returns.append(row["episode_return"])
        self._live.update(self._render(row))

    def note(self, text: str) -> None:
        self._notes.append(text)
        self._live.console.print(Text(text, style="dim"))

    def close(self) -> None:
        self._live.stop()

    def _render(self, row: Row) -> Any:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold cyan", no_wrap=True)
        table.add_column()
        bar, text = self._progress(row)
        table.add_row("progress", bar)
        table.add_row("", text)
        if self._returns:
            table.add_row("return", f"{self._returns[-1]:.2f}  {sparkline(list(self._returns))}")
        table.add_row("speed", f"{row.get('steps_per_second', 0):,.0f} steps/s")
        table.add_row(
            "collectors",
            _shares(
                row,
                step="share_step",
                inference="share_inference",
                other="share_collector_other",
                waiting="share_collector_wait",
            ),
        )
        table.add_row(
            "trainer", _shares(row, learning="share_learn", waiting="share_learner_wait", other="share_trainer_other")
        )
        table.add_row("workers", _workers(row))
        table.add_row(
            "policy",
            f"entropy {row.get('entropy', 0):.3f}  KL {row.get('kl', 0):.4f}  "
            f"explained variance {row.get('explained_variance', 0):.2f}",
        )
        options = {name.removeprefix("option/"): row[name] for name in row if name.startswith("option/")}
        if options:
            table.add_row("options", "  ".join(f"{name} {value}" for name, value in options.items()))
        for sentence in unhealthy(row):
            table.add_row("[yellow]look", Text(sentence, style="yellow"))
        return Panel(table, title=f"[bold]{self._title}", border_style="cyan")

    def _progress(self, row: Row) -> tuple[ProgressBar, str]:
        done = row["env_steps"] / self._total
        if self._wall_limit_s:
            done = max(done, row["time_s"] / self._wall_limit_s)
        left_s = row["time_s"] * (1 - done) / max(done, 1e-9)
        text = f"{done:.1%}  {row['env_steps']:,.0f} steps  {clock(row['time_s'])} gone, {clock(left_s)} left"
        return ProgressBar(total=1.0, completed=min(done, 1.0), width=60), text


def sparkline(values: list[float]) -> str:
    """The values as a row of eight-level bars."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(SPARKS[int((value - low) / span * (len(SPARKS) - 1))] for value in values)


def clock(seconds: float) -> str:
    """h:mm:ss or m:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _shares(row: Row, **names: str) -> str:
    return "  ".join(f"{label} {row[name]:.0%}" for label, name in names.items() if name in row)


def _workers(row: Row) -> str:
    text = f"{row.get('workers_up', 0):.0f} up, {row.get('restarts', 0):.0f} restarts"
    if row.get("worker_memory_mb"):
        text += f", {row['worker_memory_mb']:.0f} MB the largest"
    return text
