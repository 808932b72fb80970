"""Each collector in a process of its own, spawned, watched, and restarted."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import connection as mp_connection
from typing import Any

import cloudpickle

from millrace import system
from millrace.buffer.slab import Slab
from millrace.collect.exchange import Exchange
from millrace.collect.inference import inference_main
from millrace.collect.options import OptionsBoard
from millrace.collect.pool import Outcome
from millrace.collect.setup import LANE_STEPS, PoolSetup, episodes_under_way, progress_words
from millrace.collect.supervision import INFERENCE, REFUSED, Fault
from millrace.collect.weights import WeightsBoard
from millrace.collect.worker import worker_main
from millrace.collect.workplace import with_generation
from millrace.errors import ConfigError, WorkerError

CLOSE_TIMEOUT_S = 2.0
EXIT_TIMEOUT_S = 0.5
WATCH_INTERVAL_S = 0.25
START_ATTEMPTS = 3  # without any worker up, more of them only keep the user waiting


@dataclass
class _Worker:
    """One place for a process, whatever is in it at the moment."""

    index: int
    generation: int = -1
    process: Any = None
    connection: Any = None
    state: str = "down"  # down, starting, up
    places: list[int] = field(default_factory=list)
    restart_due_s: float = 0.0
    deadline_s: float = 0.0
    last_steps: int = -1
    last_change_s: float = 0.0
    inbox: list[Any] = field(default_factory=list)

    @property
    def name(self) -> str:
        return "inference process" if self.index == INFERENCE else f"worker {self.index}"


class ProcessPool:
    """Workers wait for nothing but their pipe; this side waits for pipes and deaths together.

    With central inference they also wait for the process that acts, one more that is watched and restarted here. It
    keeps nothing, so that nothing is lost with it: its successor answers what is still asked.
    """

    def __init__(self, setup: PoolSetup) -> None:
        self.setup = setup
        self._blocks = setup.blocks()
        self.slab = Slab(setup.layout, setup.num_rollouts, self._blocks.rollouts)
        self.board = WeightsBoard(self._blocks.weights.memory, setup.weights_size, setup.num_versions)
        self._progress = progress_words(self._blocks.progress, setup.config.workers)
        self._workers = [_Worker(index) for index in range(setup.config.workers)]
        self._inference = _Worker(INFERENCE) if setup.config.inference == "central" else None
        self._helpers = [self._inference] if self._inference else []
        self._everyone = [*self._helpers, *self._workers]
        self.options = OptionsBoard(setup.config.workers)
        self.active = setup.config.first_workers
        self._outcomes: list[Outcome] = []
        self._context = multiprocessing.get_context("spawn")
        self._exchange: Exchange | None = setup.open_exchange(self._context) if self._inference else None
        # Makers that bring torch along stay out of workers that do not act themselves.
        self._makers = _pickled((setup.env_maker, None if self._inference else setup.actor_maker))

    def start(self) -> None:
        wanted = self._workers[: self.active]
        for worker in (*self._helpers, *wanted):  # loading torch takes longest
            self._spawn(worker)
        while any(worker.state == "starting" for worker in self._everyone) or not self._can_collect():
            self._wait(WATCH_INTERVAL_S)
            for needed in (wanted, self._helpers):
                if needed and all(w.state == "down" and w.generation + 1 >= START_ATTEMPTS for w in needed):
                    self._give_up(needed)

    def _can_collect(self) -> bool:
        """Somebody collects, and whoever acts for all is there."""
        acts = self._inference is None or self._inference.state == "up"
        return acts and any(worker.state == "up" for worker in self._workers)

    def _give_up(self, needed: list[_Worker]) -> None:
        who = "no worker" if len(needed) > 1 or needed[0].index != INFERENCE else "no inference process"
        fault = [fault for fault in self.setup.faults if any(fault.worker == worker.index for worker in needed)][-1]
        raise WorkerError(
            f"{who} could be started in {START_ATTEMPTS} attempts each; the last: {fault.message}"
            + (f"\n\nThe worker's own traceback:\n{fault.traceback}" if fault.traceback else "")
        )

    def _spawn(self, worker: _Worker) -> None:
        worker.generation += 1
        worker.connection, theirs = self._context.Pipe()
        target, payload, makers = self._inference_part() if worker is self._inference else self._worker_part(worker)
        worker.process = self._context.Process(
            target=target,
            args=(payload, makers, theirs),
            name=f"millrace-{worker.name.replace(' ', '-')}",
            daemon=True,
        )
        with bare_main(), system.environment(**dict.fromkeys(system.THREAD_VARIABLES, "1")):
            worker.process.start()
        theirs.close()
        worker.state = "starting"
        worker.deadline_s = time.monotonic() + self.setup.config.start_timeout_s

    def _worker_part(self, worker: _Worker) -> tuple[Any, Any, bytes]:
        self.options.forget(worker.index)
        self._progress[worker.index] = 0
        payload = self.setup.for_worker(worker.index, worker.generation, self._blocks, self._exchange)
        return worker_main, payload, self._makers

    def _inference_part(self) -> tuple[Any, Any, bytes]:
        assert self._exchange is not None
        payload = self.setup.for_inference(self._blocks, self._exchange)
        return inference_main, payload, _pickled(self.setup.actor_maker)

    def grant(self, worker: int, place: int, version: int | None = None) -> None:
        target = self._workers[worker]
        if target.state == "up":
            try:
                target.connection.send(("collect", place, self.options.grant(worker), version))
                target.places.append(place)
                if len(target.places) == 1:
                    target.last_change_s = time.monotonic()
                return
            except OSError:
                pass  # its death is noticed by the next poll
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
        handles = [worker.connection for worker in alive] + [worker.process.sentinel for worker in alive]
        # Without handles this just sleeps, until a restart is due.
        ready = mp_connection.wait(handles, min(timeout_s, WATCH_INTERVAL_S)) if handles else _sleep(timeout_s)
        for worker in alive:
            if worker.connection in ready or worker.process.sentinel in ready:
                self._receive(worker)
        self._look_after()

    def _receive(self, worker: _Worker) -> None:
        try:
            while worker.connection.poll():
                self._handle(worker, worker.connection.recv())
                if worker.state == "down":
                    return
        except (EOFError, OSError):
            worker.process.join(EXIT_TIMEOUT_S)  # its pipe closes a moment before its exit code is known
            self._lose(worker, "died", f"the process ended{_exit_reason(worker.process)}")
            return
        if not worker.process.is_alive() and worker.state != "down":
            self._lose(worker, "died", f"the process ended{_exit_reason(worker.process)}")

    def _handle(self, worker: _Worker, message: tuple[Any, ...]) -> None:
        match message:
            case ("ready", _):
                worker.state, worker.last_change_s = "up", time.monotonic()
            case ("finished", place, collected):
                worker.places.remove(place)
                self._outcomes.append(Outcome(worker.index, place, collected))
            case ("failed", text, traceback, is_refusal):
                kind = "failed to start" if worker.state == "starting" else REFUSED if is_refusal else "raised"
                self._lose(worker, kind, text, traceback)
            case _:
                worker.inbox.append(message[1])

    def _look_after(self) -> None:
        """Deadlines: of starting, of stepping, of coming back."""
        now_s = time.monotonic()
        for worker in self._everyone:
            if worker.state == "starting" and now_s > worker.deadline_s:
                self._lose(worker, "failed to start", f"not ready within {self.setup.config.start_timeout_s:g} s")
            elif worker.state == "up" and (worker.places or worker is self._inference):
                self._watch_steps(worker, now_s)
            elif worker.index >= self.active:
                self._retire(worker)
            elif worker.state == "down" and now_s >= worker.restart_due_s:
                self._spawn(worker)

    def _retire(self, worker: _Worker) -> None:
        """Let an idle worker that is one too many go; what it was in the middle of ends with it."""
        if worker.state != "up":
            return
        with contextlib.suppress(OSError):
            worker.connection.send(("close",))
        worker.process.join(CLOSE_TIMEOUT_S)
        worker.process.kill()
        worker.connection.close()
        worker.state, worker.restart_due_s = "down", 0.0

    def _watch_steps(self, worker: _Worker, now_s: float) -> None:
        steps, timeout_s = self._steps(worker), self.setup.config.step_timeout_s
        is_waiting = worker is not self._inference and self._exchange and self._exchange.is_waiting(worker.index)
        if steps != worker.last_steps or is_waiting:  # for an answer, that is: then it is not the one that is late
            worker.last_steps, worker.last_change_s = steps, now_s
        elif now_s - worker.last_change_s > timeout_s:
            what = "sign of life" if worker is self._inference else "step finished"
            self._lose(worker, "hung", f"no {what} within collect.step_timeout_s={timeout_s:g}")

    def _steps(self, worker: _Worker) -> int:
        """What changes as long as a process does not hang."""
        if worker is self._inference:
            assert self._exchange is not None
            return int(self._exchange.heartbeat[0])
        return int(self._progress[worker.index, LANE_STEPS].sum())

    def _lose(self, worker: _Worker, kind: str, reason: str, traceback: str = "") -> None:
        """Put an end to the process, report its grants as lost, and plan the restart."""
        worker.process.kill()
        worker.process.join(CLOSE_TIMEOUT_S)
        worker.connection.close()
        fault = self._fault(worker, kind, reason, traceback)
        if worker is not self._inference:
            self._progress[worker.index, 1] = 0  # nobody waits for its questions any more
        self._outcomes += [Outcome(worker.index, place, None) for place in worker.places]
        worker.places.clear()
        worker.inbox.clear()
        worker.state = "down"
        self.setup.faults.append(fault)
        worker.restart_due_s = time.monotonic() + self.setup.policy.record(fault, time.monotonic())

    def _fault(self, worker: _Worker, kind: str, reason: str, traceback: str) -> Fault:
        if worker is self._inference:
            return Fault(INFERENCE, kind, f"{worker.name}: {reason}", traceback)
        setup, progress = self.setup, self._progress[worker.index]
        steps, place = int(progress[0]), int(progress[2])
        lanes = setup.lanes(worker.index, worker.generation)
        slots: list[dict[str, Any]] = []
        if worker.state == "up":
            rollout, log_steps = self.slab.rollouts[place], setup.config.action_log_steps
            slots = episodes_under_way(self._blocks.logs, lanes, log_steps, worker.index, progress, rollout)
            slots = self.options.of_episodes(worker.index, slots, setup.layout.num_steps)
        message = f"{worker.name}, step {steps}: {reason}"
        return Fault(worker.index, kind, message, traceback, lanes[0].stream_seed, steps, tuple(slots))

    def _ask(self, worker: _Worker, message: tuple[Any, ...], timeout_s: float) -> Any:
        """Send a request to an idle worker and wait for its one answer; None where it fails to give one."""
        generation, deadline_s = worker.generation, time.monotonic() + timeout_s
        try:
            worker.connection.send(message)
        except OSError:
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
        return [system.memory_rss_bytes(w.process.pid) for w in self._workers if w.state != "down"]

    def pids(self) -> list[int]:
        """Process ids of what runs: workers, then the inference process if there is one."""
        return [w.process.pid for w in (*self._workers, *self._helpers) if w.state != "down"]

    def close(self) -> None:
        for helper in self._helpers:
            if helper.state != "down":
                helper.process.kill()
        running = [worker for worker in self._everyone if worker.state != "down"]
        for worker in running:
            with contextlib.suppress(OSError):
                worker.connection.send(("close",))
        deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
        for worker in running:
            # A worker in the middle of a rollout is not waited for.
            worker.process.join(0 if worker.places else max(0.0, deadline_s - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join(CLOSE_TIMEOUT_S)
            worker.connection.close()
            worker.state = "down"
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None
        self._blocks.close()


def _sleep(timeout_s: float) -> list[Any]:
    time.sleep(min(timeout_s, WATCH_INTERVAL_S))
    return []


def _exit_reason(process: Any) -> str:
    code = process.exitcode
    if code is None:
        return ""
    return f" by signal {-code}" if code < 0 else f" with exit code {code}"


def _pickled(makers: Any) -> bytes:
    try:
        pickled: bytes = cloudpickle.dumps(makers)
        return pickled
    except Exception as error:
        raise ConfigError(
            f"the environment factory or network cannot be sent to worker processes ({error}); make it inside the "
            "function, or use --backend serial"
        ) from error


@contextlib.contextmanager
def bare_main() -> Iterator[None]:
    """Spawn without importing the user's script again: what workers need travels by value.

    So no `if __name__ == "__main__"` guard is needed, and workers do not pay for the script's own imports.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
