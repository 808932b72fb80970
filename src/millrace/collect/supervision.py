"""What happens when a worker fails: written once, for every place that collectors run."""

from __future__ import annotations

import collections
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from millrace.config import CollectConfig
from millrace.errors import WorkerError

MAX_BACKOFF_S = 30.0
REFUSED = "refused"
NODE_LOST = "lost its node"  # no fault of its own, and all that were there share it
INFERENCE = -1  # in a worker's place: the process that acts for all of them


@dataclass(frozen=True)
class Fault:
    """Why a worker was lost.

    Attributes:
        worker: its index, or `INFERENCE`.
        kind: raised, died, hung, failed to start, lost its node, or refused: the environment broke its contract.
        message: one sentence.
        traceback: the worker's own, where it had one.
        stream_seed: the worker's seed; with the slots' seeds and actions it reproduces the fault.
        slots: seed and actions of each slot's episode.
    """

    worker: int
    kind: str
    message: str
    traceback: str = ""
    stream_seed: int = 0
    step: int = 0
    slots: tuple[dict[str, Any], ...] = ()

    def write(self, directory: Path, env: dict[str, Any]) -> Path:
        """Write everything as one JSON file for `millrace replay`."""
        directory.mkdir(parents=True, exist_ok=True)
        path = (
            directory / f"worker-{self.worker}-{time.strftime('%Y%m%d-%H%M%S')}-{time.monotonic_ns() % 10**6:06d}.json"
        )
        path.write_text(json.dumps({"env": env, **vars(self)}, indent=1))
        return path

    def report(self, directory: Path, env: dict[str, Any]) -> str:
        """Write the crash file, if it is a worker's, and say in one sentence what happened and what was done."""
        if self.worker == INFERENCE:
            return f"{self.message} ({self.kind}): restarted; what it was asked waits"
        try:
            file = self.write(directory, env)
            # A worker that had not begun, or a killed actor on Ray, leaves no episodes to play again.
            where = f"; reproduce: millrace replay {file}" if self.slots else f"; {file} has what is known of it"
        except OSError as error:
            where = f"; its crash file could not be written: {error.strerror}"
        return f"{self.message} ({self.kind}): restarted{where}"


@dataclass
class RestartPolicy:
    """Back-off and budget: how soon a worker comes back, and when enough is enough."""

    config: CollectConfig
    restarts: int = 0
    _recent: collections.deque[tuple[float, int]] = field(default_factory=collections.deque)

    def record(self, fault: Fault, now_s: float) -> float:
        """Count a fault and return how long to wait before the restart, in seconds.

        Raises:
            WorkerError: the budget is used up, or the fault is one that a restart does not mend.
        """
        if fault.kind == REFUSED:
            raise WorkerError(fault.message)
        self.restarts += 1
        if fault.kind == NODE_LOST:
            return self.config.restart_backoff_s
        self._recent.append((now_s, fault.worker))
        while self._recent and self._recent[0][0] < now_s - self.config.restart_window_s:
            self._recent.popleft()
        if len(self._recent) > self.config.max_restarts:
            raise WorkerError(
                f"workers failed {len(self._recent)} times within {self.config.restart_window_s:.0f} s, more than "
                f"collect.max_restarts={self.config.max_restarts} allows; the last: {fault.message}"
                + (f"\n\nThe worker's own traceback:\n{fault.traceback}" if fault.traceback else "")
            )
        failures = sum(worker == fault.worker for _, worker in self._recent)
        return float(min(self.config.restart_backoff_s * 2 ** (failures - 1), MAX_BACKOFF_S))
