"""Where collectors run, seen from the source: grants go in, outcomes come out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from millrace.buffer.slab import Slab
from millrace.collect.collector import Collected
from millrace.collect.options import OptionsBoard
from millrace.collect.setup import PoolSetup
from millrace.collect.weights import Held
from millrace.types import Array


@dataclass(frozen=True)
class Outcome:
    """What became of a grant: `collected`, or None with the worker's fault."""

    worker: int
    place: int
    collected: Collected | None


class Board(Protocol):
    """Where the learner's weights are laid out for collectors."""

    @property
    def version(self) -> int:
        """Updates made when the newest weights were published."""

    def publish(self, weights: Array, version: int) -> Held:
        """Make these the newest weights."""


class CollectorPool(Protocol):
    """Runs the collectors of all workers.

    Attributes:
        active: how many of them collect, the first ones; may be changed at any time.
    """

    setup: PoolSetup
    slab: Slab
    board: Board
    options: OptionsBoard
    active: int

    def start(self) -> None:
        """Bring workers up; returns when all are ready, or those that could be."""

    def grant(self, worker: int, place: int, version: int | None = None) -> None:
        """Let a worker fill one place, with this version of the weights or the newest at the time it begins."""

    def poll(self, timeout_s: float) -> list[Outcome]:
        """What finished or failed; waits at most `timeout_s`.

        Raises:
            WorkerError: the restart budget is used up.
        """

    def is_up(self, worker: int) -> bool:
        """Whether a grant to this worker can succeed now."""

    def save_states(self) -> list[dict[str, Any] | None]:
        """One state per worker, between rollouts; None where there is none to be had."""

    def load_states(self, states: list[dict[str, Any] | None]) -> list[str]:
        """Continue workers from saved states; a sentence for each that could not."""

    def memory_bytes(self) -> list[int]:
        """Resident memory of each worker process; empty where they have none of their own."""

    def close(self) -> None:
        """Stop everything and release memory."""
