"""TensorBoard files, written by the `tensorboard` package alone: torch's wrapper costs a second of start-up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from millrace.errors import MissingExtraError
from millrace.metrics.sinks import Row


class TensorBoardSink:
    """One scalar per figure against environment steps."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: Any = None
        try:
            import importlib.util

            if importlib.util.find_spec("tensorboard") is None:
                raise ModuleNotFoundError
        except ModuleNotFoundError:
            raise MissingExtraError("tensorboard", "tensorboard", "metrics.tensorboard") from None

    def write(self, row: Row) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if self._writer is None:
            self._writer = EventFileWriter(str(self._directory))
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers(row).items()]
        self._writer.add_event(Event(wall_time=time.time(), step=int(row["env_steps"]), summary=Summary(value=values)))

    def note(self, text: str) -> None:
        """TensorBoard shows figures only."""

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def numbers(row: Row) -> Row:
    """The figures but the step count, which is the axis, and environment options that are words."""
    return {name: value for name, value in row.items() if name != "env_steps" and not isinstance(value, str)}
