"""Where a run writes: its directory, its figures, its notes, its status, and the first lines on the screen."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from millrace.config import Config
from millrace.errors import MissingExtraError
from millrace.metrics.sinks import JsonLinesSink, LinesSink, LogSink, Row, Sinks, StdoutJsonSink
from millrace.rundir import RunDirectory, new_run_path


class Logbook:
    """What a run leaves behind and tells, whoever trains it.

    Args:
        config: as asked for.
        name: of the environment.
        quiet: print nothing.

    Attributes:
        directory: from `open` on; its lock is held until `close`.
        notes: sentences to tell at the start.
    """

    def __init__(self, config: Config, name: str, quiet: bool) -> None:
        self._config, self._name = config, name
        self._console = "off" if quiet else config.metrics.console
        self.notes: list[str] = []
        self._opened = contextlib.ExitStack()

    def open(self) -> None:
        """Make the directory, or find it, and open all that figures go to.

        Raises:
            MillraceError: it cannot be written, or somebody else is at work there.
        """
        config = self._config
        path = Path(config.run_dir) if config.run_dir else new_run_path(self._name)
        self.directory = RunDirectory(path)
        self.directory.create()
        self._opened.callback(self.directory.lock.release)
        self._sinks = Sinks(make_sinks(config, path, self._name, self._console, self.notes))
        self._opened.callback(self._sinks.close)

    def close(self) -> None:
        """Let go of files and lock."""
        self._opened.close()

    def announce(self, lines: Sequence[str]) -> None:
        """Tell the screen, if there is one, these lines, and everybody the notes."""
        if self._console != "off":
            print(*lines, sep="\n", file=sys.stderr if self._console == "json" else sys.stdout, flush=True)
        for note in self.notes:
            self.note(note)

    def write(self, row: Row) -> None:
        """A row of figures."""
        self._sinks.write(row)

    def note(self, text: str) -> None:
        """One sentence for people."""
        self._sinks.note(text)

    def log(self, text: str) -> None:
        """One sentence for the log file alone."""
        LogSink(self.directory.path / "log.txt").note(text)

    def write_status(self, state: str, env_steps: int, wall_s: float, mean_return: float | None) -> None:
        """How the run stands, for other programs; a full disk is warned of and survived."""
        status = {
            "state": state,
            "env_steps": env_steps,
            "wall_s": wall_s,
            "pid": os.getpid(),
            "mean_return": None if mean_return is None or math.isnan(mean_return) else mean_return,
        }
        try:
            self.directory.write_status(status)
        except OSError as error:
            warnings.warn(f"cannot write the run's status: {error}", stacklevel=2)


def make_sinks(config: Config, path: Path, name: str, console: str, notes: list[str]) -> list[Any]:
    """Where the figures of a run go; `notes` gets a sentence about what is left out."""
    sinks: list[Any] = [JsonLinesSink(path / "metrics.jsonl"), LogSink(path / "log.txt")]
    if config.metrics.tensorboard:
        from millrace.metrics.tensorboard import TensorBoardSink

        try:
            sinks.append(TensorBoardSink(path / "tensorboard"))
        except MissingExtraError as error:
            notes.append(f"no TensorBoard files: {error}")
    if config.collect.backend == "ray" and config.engine == "millrace":
        from millrace.metrics.ray_metrics import RayMetricsSink

        sinks.append(RayMetricsSink(path.name))
    if console == "json":
        sinks.append(StdoutJsonSink())
    elif console == "live" or (console == "auto" and sys.stdout.isatty()):
        from millrace.metrics.console import LiveSink

        sinks.append(LiveSink(f"millrace {name}", config.total_env_steps, config.stop.wall_s))
    elif console != "off":
        sinks.append(LinesSink(config.total_env_steps))
    return sinks
