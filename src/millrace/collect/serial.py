"""All collectors in this process, one after another."""

from __future__ import annotations

import collections
import faulthandler
import time
import traceback
from typing import Any

from millrace.buffer.slab import Slab
from millrace.collect.options import OptionsBoard
from millrace.collect.pool import Board, Outcome
from millrace.collect.setup import Blocks, PoolSetup, episodes_under_way, progress_words
from millrace.collect.supervision import REFUSED, Fault
from millrace.collect.weights import WeightsBoard
from millrace.collect.workplace import Workplace, with_generation
from millrace.errors import EnvError


class SerialPool:
    """Runs the oldest grant when polled. A step cannot be interrupted here, only reported."""

    def __init__(self, setup: PoolSetup) -> None:
        self.setup = setup
        self._blocks = Blocks.allocate(setup.for_worker(0, 0))
        self.slab = Slab(setup.layout, setup.num_rollouts, self._blocks.rollouts)
        self.board: Board = WeightsBoard(self._blocks.weights.memory, setup.weights_size, setup.num_versions)
        self._progress = progress_words(self._blocks.progress, setup.config.workers)
        self._workplaces: list[Workplace | None] = [None] * setup.config.workers
        self._generations = [0] * setup.config.workers
        self._due_s = [0.0] * setup.config.workers
        self._grants: collections.deque[tuple[int, int, dict[str, Any] | None, int | None]] = collections.deque()
        self.options = OptionsBoard(setup.config.workers)
        self.active = setup.config.first_workers

    def start(self) -> None:
        for worker in range(self.setup.config.workers):
            self._build(worker)

    def _build(self, worker: int) -> None:
        setup = self.setup
        part = setup.for_worker(worker, self._generations[worker])
        self._workplaces[worker] = Workplace(part, self._blocks, setup.env_maker, setup.actor_maker)

    def grant(self, worker: int, place: int, version: int | None = None) -> None:
        self._grants.append((worker, place, self.options.grant(worker), version))

    def is_up(self, worker: int) -> bool:
        return self._workplaces[worker] is not None or time.monotonic() >= self._due_s[worker]

    def poll(self, timeout_s: float) -> list[Outcome]:
        if not self._grants:
            if timeout_s > 0:
                time.sleep(min(timeout_s, 0.05))
            return []
        worker, place, options, version = self._grants.popleft()
        if not self.is_up(worker):
            time.sleep(max(0.0, min(self._due_s[worker] - time.monotonic(), timeout_s)))
            return [Outcome(worker, place, None)]
        return [Outcome(worker, place, self._collect(worker, place, options, version))]

    def _collect(self, worker: int, place: int, options: dict[str, Any] | None, version: int | None) -> Any:
        # Prints every thread's stack if a step takes too long: all that can be done from the same process.
        faulthandler.dump_traceback_later(self.setup.config.step_timeout_s * self.setup.layout.num_steps)
        try:
            if self._workplaces[worker] is None:
                self._build(worker)
            workplace = self._workplaces[worker]
            assert workplace is not None
            return workplace.collect(place, options, version)
        except Exception as error:
            self._fail(worker, place, error)
            return None
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _fail(self, worker: int, place: int, error: Exception) -> None:
        setup = self.setup
        lanes, progress = setup.lanes(worker, self._generations[worker]), self._progress[worker]
        seed, step = lanes[0].stream_seed, int(progress[0])
        rollout, log_steps = self.slab.rollouts[place], setup.config.action_log_steps
        slots = episodes_under_way(self._blocks.logs, lanes, log_steps, worker, progress, rollout)
        slots = self.options.of_episodes(worker, slots, setup.layout.num_steps)
        message = f"worker {worker}, step {step}: {type(error).__name__}: {error}"
        kind = REFUSED if isinstance(error, EnvError) else "raised"
        fault = Fault(worker, kind, message, traceback.format_exc(), seed, step, tuple(slots))
        if isinstance(error, EnvError) and self._workplaces[worker] is None:
            raise error
        self._workplaces[worker] = None
        self._progress[worker, 1] = 0
        self._generations[worker] += 1
        self.options.forget(worker)
        setup.faults.append(fault)
        self._due_s[worker] = time.monotonic() + setup.policy.record(fault, time.monotonic())

    def save_states(self) -> list[dict[str, Any] | None]:
        states = [None if workplace is None else workplace.save_state() for workplace in self._workplaces]
        return [with_generation(*pair) for pair in zip(states, self._generations, strict=True)]

    def load_states(self, states: list[dict[str, Any] | None]) -> list[str]:
        problems = []
        for worker, state in enumerate(states):
            workplace = self._workplaces[worker]
            if state is None or workplace is None:
                continue
            self._generations[worker] = state["generation"]
            try:
                workplace.load_state(state, self.setup.lanes(worker, state["generation"]))
            except Exception as error:
                problems.append(f"worker {worker}: {error}")
                self._generations[worker] += 1
                workplace.begin_anew(self.setup.lanes(worker, self._generations[worker]))
        return problems

    def memory_bytes(self) -> list[int]:
        return []

    def close(self) -> None:
        for workplace in self._workplaces:
            if workplace is not None:
                workplace.close()
        self._workplaces.clear()
        self._blocks.close()
