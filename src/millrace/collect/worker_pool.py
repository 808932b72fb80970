"""Workers somewhere else, each with its collectors: granted rollouts, watched, and restarted.

Where they live, and how messages reach them, is a `Host`'s business: processes of this machine, or actors of a Ray
cluster. What is done when one fails, hangs or never comes is here, once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from millrace.buffer.slab import Slab
from millrace.collect.options import OptionsBoard
from millrace.collect.pool import Board, Outcome
from millrace.collect.setup import PoolSetup
from millrace.collect.supervision import INFERENCE, REFUSED, Fault
from millrace.collect.workplace import with_generation
from millrace.errors import WorkerError

WATCH_INTERVAL_S = 0.25
SETTLING_S = 5.0  # after somebody found a place others may follow
START_ATTEMPTS = 3  # without any worker up, more of them only keep the user waiting

Message = tuple[Any, ...]


@dataclass(eq=False)
class Worker:
    """One place for a worker, whoever is in it at the moment.

    Attributes:
        index: of the worker, or `INFERENCE`.
        generation: how many have been here before.
        state: down, starting, or up.
        places: for rollouts that it was granted.
        deadline_s: by which it must be up; infinite while it waits for a machine to start on.
        link: what the host knows it by.
        was_missed: whether it was told that this worker waits for a machine.
    """

    index: int
    generation: int = -1
    state: str = "down"
    places: list[int] = field(default_factory=list)
    restart_due_s: float = 0.0
    deadline_s: float = 0.0
    last_steps: int = -1
    last_change_s: float = 0.0
    inbox: list[Any] = field(default_factory=list)
    link: Any = None
    was_missed: bool = False

    @property
    def is_inference(self) -> bool:
        return self.index == INFERENCE

    @property
    def is_unplaced(self) -> bool:
        """Whether it waits for a machine to start on."""
        return self.state == "starting" and math.isinf(self.deadline_s)

    @property
    def name(self) -> str:
        return "inference process" if self.is_inference else f"worker {self.index}"


class Life(NamedTuple):
    """A sign of life.

    Attributes:
        steps: begun so far, or turns of the inference process.
        is_waiting: for an answer of the inference process: then it is not the one that is late.
    """

    steps: int
    is_waiting: bool = False


class Remains(NamedTuple):
    """What is left of a worker.

    Attributes:
        steps: begun.
        slots: seed and actions of each slot's episode, as far as they can still be had.
    """

    steps: int = 0
    slots: Sequence[dict[str, Any]] = ()


class Host(Protocol):
    """Where workers live.

    Messages to a worker: ("collect", place, options, version), ("save",), ("load", state, lanes, spare lanes).
    From it: ("placed",) where `spawn` let it wait for a machine, ("ready", ""), ("finished", place, Collected),
    ("state", state), ("loaded", problem), ("failed", text, traceback, whether a restart would not mend it), and
    ("died", reason, kind of fault) as the last.
    """

    slab: Slab
    board: Board

    def spawn(self, worker: Worker) -> float:
        """Start one of the next generation; when it must be up (`time.monotonic`), or infinity until it is placed."""

    def send(self, worker: Worker, message: Message) -> bool:
        """Whether the message is on its way; if not, the worker's death is noticed by the next `wait`."""

    def wait(self, workers: Sequence[Worker], timeout_s: float) -> Iterable[tuple[Worker, Message]]:
        """What these workers say, as soon as one says something; nothing after the timeout."""

    def life(self, worker: Worker) -> Life:
        """The latest sign of life."""

    def end(self, worker: Worker) -> Remains:
        """Put an end to it at once; what it left."""

    def retire(self, workers: Sequence[Worker]) -> None:
        """Let them close their environments, for a moment; then put an end to them."""

    def why_unplaced(self, workers: Sequence[Worker]) -> str:
        """What these wait for: one sentence, or nothing where it may still come at any moment."""

    def memory_bytes(self, workers: Sequence[Worker]) -> list[int]:
        """Resident memory of each."""

    def pids(self, workers: Sequence[Worker]) -> list[int]:
        """Process ids of those on this machine."""

    def close(self) -> None:
        """Release memory; all workers have ended."""


class WorkerPool:
    """Collectors in workers that a host looks after.

    With central inference workers also wait for the one that acts, one more that is watched and restarted here. It
    keeps nothing, so that nothing is lost with it: its successor answers what is still asked.
    """

    def __init__(self, setup: PoolSetup, host: Host) -> None:
        self.setup, self.host = setup, host
        self.slab, self.board = host.slab, host.board
        self.options = OptionsBoard(setup.config.workers)
        self.active = setup.config.first_workers
        self._workers = [Worker(index) for index in range(setup.config.workers)]
        self._helpers = [Worker(INFERENCE)] if setup.config.inference == "central" else []
        self._everyone = [*self._helpers, *self._workers]
        self._outcomes: list[Outcome] = []
        self._placed_s = -math.inf  # when a worker found a place last

    def start(self) -> None:
        wanted, deadline_s = self._workers[: self.active], time.monotonic() + self.setup.config.start_timeout_s
        for worker in (*self._helpers, *wanted):  # loading torch takes longest
            self._spawn(worker)
        while not self._has_started(deadline_s):
            self._wait(WATCH_INTERVAL_S)
            for needed in (wanted, self._helpers):
                if needed and all(w.state == "down" and w.generation + 1 >= START_ATTEMPTS for w in needed):
                    self._give_up(needed)
        unplaced = [worker for worker in wanted if worker.is_unplaced]
        for worker in unplaced:
            worker.was_missed = True
        if unplaced:
            self.setup.notes.append(f"begins without {_names(unplaced)}: {self.host.why_unplaced(unplaced)}")

    def _has_started(self, deadline_s: float) -> bool:
        """Everybody is there, or those are who can be.

        Raises:
            WorkerError: nobody is whom it cannot do without, for want of a machine to start on.
        """
        if any(worker.state == "starting" and not worker.is_unplaced for worker in self._everyone):
            return False
        unplaced = [worker for worker in self._everyone if worker.is_unplaced]
        if not unplaced:
            return self._can_collect()
        now_s = time.monotonic()
        if self._can_collect():
            has_settled = now_s > self._placed_s + SETTLING_S and self.host.why_unplaced(unplaced) != ""
            return has_settled or now_s > deadline_s
        if now_s > deadline_s:
            timeout_s = self.setup.config.start_timeout_s
            why = self.host.why_unplaced(unplaced) or "the cluster started them nowhere"
            raise WorkerError(f"{_names(unplaced)} found no place within collect.start_timeout_s={timeout_s:g}: {why}")
        return False

    def _can_collect(self) -> bool:
        """Somebody collects, and whoever acts for all is there."""
        acts = all(helper.state == "up" for helper in self._helpers)
        return acts and any(worker.state == "up" for worker in self._workers)

    def _give_up(self, needed: Sequence[Worker]) -> None:
        who = "no inference process" if needed[0].is_inference else "no worker"
        fault = [fault for fault in self.setup.faults if any(fault.worker == worker.index for worker in needed)][-1]
        raise WorkerError(
            f"{who} could be started in {START_ATTEMPTS} attempts each; the last: {fault.message}"
            + (f"\n\nThe worker's own traceback:\n{fault.traceback}" if fault.traceback else "")
        )

    def _spawn(self, worker: Worker) -> None:
        worker.generation += 1
        if not worker.is_inference:
            self.options.forget(worker.index)
        worker.deadline_s = self.host.spawn(worker)
        worker.state = "starting"

    def grant(self, worker: int, place: int, version: int | None = None) -> None:
        target = self._workers[worker]
        if target.state == "up" and self.host.send(target, ("collect", place, self.options.grant(worker), version)):
            target.places.append(place)
            if len(target.places) == 1:
                target.last_change_s = time.monotonic()
        else:
            self._outcomes.append(Outcome(worker, place, None))

    def is_up(self, worker: int) -> bool:
        return self._workers[worker].state == "up"

    def poll(self, timeout_s: float) -> list[Outcome]:
        # Even with news at hand, deadlines and restarts are looked after.
        self._wait(0.0 if self._outcomes else timeout_s)
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _wait(self, timeout_s: float) -> None:
        """Sleep until a message, a death, or the next thing to look after."""
        alive = [worker for worker in self._everyone if worker.state != "down"]
        timeout_s = min(timeout_s, WATCH_INTERVAL_S)
        if alive:
            for worker, message in self.host.wait(alive, timeout_s):
                if worker.state != "down":
                    self._handle(worker, message)
        else:
            time.sleep(timeout_s)  # until a restart is due
        self._look_after()

    def _handle(self, worker: Worker, message: Message) -> None:
        match message:
            case ("placed",):
                self._placed_s = time.monotonic()
                worker.deadline_s = self._placed_s + self.setup.config.start_timeout_s
            case ("ready", _):
                worker.state, worker.last_change_s = "up", time.monotonic()
                if worker.was_missed:
                    self.setup.notes.append(f"{worker.name} found a place")
                    worker.was_missed = False
            case ("finished", place, collected):
                worker.places.remove(place)
                worker.last_change_s = time.monotonic()
                self._outcomes.append(Outcome(worker.index, place, collected))
            case ("failed", text, traceback, is_refusal):
                kind = "failed to start" if worker.state == "starting" else REFUSED if is_refusal else "raised"
                self._lose(worker, kind, text, traceback)
            case ("died", reason, kind):
                self._lose(worker, kind, reason)
            case _:
                worker.inbox.append(message[1])

    def _look_after(self) -> None:
        """Deadlines: of starting, of stepping, of coming back."""
        now_s = time.monotonic()
        for worker in self._everyone:
            if worker.state == "starting" and now_s > worker.deadline_s:
                self._lose(worker, "failed to start", f"not ready within {self.setup.config.start_timeout_s:g} s")
            elif worker.state == "up" and (worker.places or worker.is_inference):
                self._watch_steps(worker, now_s)
            elif worker.index >= self.active:
                self._retire(worker)
            elif worker.state == "down" and now_s >= worker.restart_due_s:
                self._spawn(worker)

    def _retire(self, worker: Worker) -> None:
        """Let an idle worker that is one too many go; what it was in the middle of ends with it."""
        if worker.state == "up" or worker.is_unplaced:
            self.host.retire([worker])
            worker.state, worker.restart_due_s = "down", 0.0

    def _watch_steps(self, worker: Worker, now_s: float) -> None:
        life, timeout_s = self.host.life(worker), self.setup.config.step_timeout_s
        if life.steps != worker.last_steps or life.is_waiting:
            worker.last_steps, worker.last_change_s = life.steps, now_s
        elif now_s - worker.last_change_s > timeout_s:
            what = "sign of life" if worker.is_inference else "step finished"
            self._lose(worker, "hung", f"no {what} within collect.step_timeout_s={timeout_s:g}")

    def _lose(self, worker: Worker, kind: str, reason: str, traceback: str = "") -> None:
        """Put an end to it, report its grants as lost, and plan the restart."""
        fault = self._fault(worker, self.host.end(worker), kind, reason, traceback)
        self._outcomes += [Outcome(worker.index, place, None) for place in worker.places]
        worker.places.clear()
        worker.inbox.clear()
        worker.state = "down"
        self.setup.faults.append(fault)
        worker.restart_due_s = time.monotonic() + self.setup.policy.record(fault, time.monotonic())

    def _fault(self, worker: Worker, left: Remains, kind: str, reason: str, traceback: str) -> Fault:
        if worker.is_inference:
            return Fault(INFERENCE, kind, f"{worker.name}: {reason}", traceback)
        slots = self.options.of_episodes(worker.index, list(left.slots), self.setup.layout.num_steps)
        message = f"{worker.name}, step {left.steps}: {reason}"
        stream_seed = self.setup.lanes(worker.index, worker.generation)[0].stream_seed
        return Fault(worker.index, kind, message, traceback, stream_seed, left.steps, tuple(slots))

    def _ask(self, worker: Worker, message: Message, timeout_s: float) -> Any:
        """Send a request to an idle worker and wait for its one answer; None where it fails to give one."""
        generation, deadline_s = worker.generation, time.monotonic() + timeout_s
        if not self.host.send(worker, message):
            return None
        while not worker.inbox and worker.state == "up" and worker.generation == generation:
            if time.monotonic() > deadline_s:
                self._lose(worker, "hung", f"no answer to {message[0]!r} within {timeout_s:g} s")
                return None
            self._wait(WATCH_INTERVAL_S)
        return worker.inbox.pop(0) if worker.inbox else None

    def save_states(self) -> list[dict[str, Any] | None]:
        timeout_s = self.setup.config.step_timeout_s
        states = [self._ask(w, ("save",), timeout_s) if w.state == "up" else None for w in self._workers]
        return [with_generation(state, w.generation) for state, w in zip(states, self._workers, strict=True)]

    def load_states(self, states: list[dict[str, Any] | None]) -> list[str]:
        problems = []
        for worker, state in zip(self._workers, states, strict=True):
            if state is None:
                continue
            # A restart from here on is a later generation than any before.
            worker.generation = state["generation"]
            if worker.state != "up":
                problems.append(f"worker {worker.index}: it has not started")
                continue
            lanes = [self.setup.lanes(worker.index, worker.generation + i) for i in (0, 1)]
            problem = self._ask(worker, ("load", state, *lanes), self.setup.config.start_timeout_s)
            if problem:
                worker.generation += 1
            if problem != "":
                problems.append(f"worker {worker.index}: {problem or 'it was lost while loading'}")
        return problems

    def memory_bytes(self) -> list[int]:
        return self.host.memory_bytes([worker for worker in self._workers if worker.state != "down"])

    def pids(self) -> list[int]:
        """Process ids of what runs on this machine: workers, then the inference process if there is one."""
        return self.host.pids([worker for worker in (*self._workers, *self._helpers) if worker.state != "down"])

    def close(self) -> None:
        self.host.retire([worker for worker in self._everyone if worker.state != "down"])
        for worker in self._everyone:
            worker.state = "down"
        self.host.close()


def _names(workers: Sequence[Worker]) -> str:
    """Who: worker 3; workers 3, 4; 12 workers."""
    if len(workers) == 1:
        return workers[0].name
    numbers = ", ".join(str(worker.index) for worker in workers if not worker.is_inference)
    return f"workers {numbers}" if len(workers) <= 4 else f"{len(workers)} workers"
