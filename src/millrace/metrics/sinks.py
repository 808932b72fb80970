"""Where figures go. A sink sees rows and may alter nothing; one that fails is told about once and left out."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any, Protocol

Row = dict[str, Any]  # numbers; an environment option may be a word


class Sink(Protocol):
    """Takes rows of figures."""

    def write(self, row: Row) -> None: ...

    def note(self, text: str) -> None:
        """One sentence for people."""

    def close(self) -> None: ...


class JsonLinesSink:
    """`metrics.jsonl`: one object a row."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - held until close

    def write(self, row: Row) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def note(self, text: str) -> None:
        """Notes go to the log file, not among the figures."""

    def close(self) -> None:
        self._file.close()


class LogSink:
    """`log.txt`: every note of the run."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, row: Row) -> None:
        """Figures have their own file."""

    def note(self, text: str) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def close(self) -> None:
        """Nothing is held open."""


class StdoutJsonSink:
    """Rows as JSON lines on standard output, for programs."""

    def write(self, row: Row) -> None:
        print(json.dumps(row), flush=True)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is held open."""


class LinesSink:
    """Plain lines, for logs and pipes."""

    def __init__(self, total_env_steps: int, every_s: float = 5.0) -> None:
        self._total, self._every_s, self._last_s = total_env_steps, every_s, -1e9

    def write(self, row: Row) -> None:
        if row["time_s"] - self._last_s < self._every_s:
            return
        self._last_s = row["time_s"]
        score = f"return {row['episode_return']:.1f}" if "episode_return" in row else "no episode yet"
        print(
            f"{row['env_steps'] / self._total:6.1%}  {row['env_steps']:>12,.0f} steps  {score}  "
            f"{row.get('steps_per_second', 0):,.0f} steps/s  {row['time_s']:.0f} s",
            flush=True,
        )

    def note(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        """Nothing is held open."""


class Sinks:
    """All sinks of a run."""

    def __init__(self, sinks: list[Any]) -> None:
        self._sinks: list[Sink] = sinks

    def write(self, row: Row) -> None:
        for sink in list(self._sinks):
            self._guard(sink, lambda sink=sink: sink.write(row))

    def note(self, text: str) -> None:
        for sink in list(self._sinks):
            self._guard(sink, lambda sink=sink: sink.note(text))

    def close(self) -> None:
        for sink in list(self._sinks):
            self._guard(sink, sink.close)
        self._sinks = []

    def _guard(self, sink: Sink, call: Any) -> None:
        """A full disk or a broken display must not end a run."""
        try:
            call()
        except Exception as error:
            if sink in self._sinks:
                self._sinks.remove(sink)
                with contextlib.suppress(Exception):
                    sink.close()
            warnings.warn(f"{type(sink).__name__} failed and is left out from here on: {error}", stacklevel=3)
