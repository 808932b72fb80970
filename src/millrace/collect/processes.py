"""Workers as spawned processes of this machine, which share memory with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import time
import types
from collections.abc import Iterator, Sequence
from multiprocessing import connection as mp_connection
from typing import Any, NamedTuple

import cloudpickle

from millrace import system
from millrace.buffer.slab import Slab
from millrace.collect.exchange import Exchange
from millrace.collect.inference import inference_main
from millrace.collect.pool import Board
from millrace.collect.setup import LANE_STEPS, Blocks, PoolSetup, episodes_under_way, progress_words
from millrace.collect.weights import WeightsBoard
from millrace.collect.worker import worker_main
from millrace.collect.worker_pool import Life, Message, Remains, Worker
from millrace.errors import ConfigError

CLOSE_TIMEOUT_S = 2.0
EXIT_TIMEOUT_S = 0.5


class Link(NamedTuple):
    """A process and our end of its pipe."""

    process: Any
    connection: Any


class ProcessHost:
    """Workers wait for nothing but their pipe; this side waits for pipes and deaths together."""

    def __init__(self, setup: PoolSetup) -> None:
        self._setup = setup
        self._blocks = Blocks.allocate(setup.for_worker(0, 0))
        self.slab = Slab(setup.layout, setup.num_rollouts, self._blocks.rollouts)
        self.board: Board = WeightsBoard(self._blocks.weights.memory, setup.weights_size, setup.num_versions)
        self._progress = progress_words(self._blocks.progress, setup.config.workers)
        self._context = multiprocessing.get_context("spawn")
        is_central = setup.config.inference == "central"
        self._exchange = Exchange.open(setup.exchange_layout, self._context) if is_central else None
        # Makers that bring torch along stay out of workers that do not act themselves.
        self._makers = pickled((setup.env_maker, None if is_central else setup.actor_maker))

    def spawn(self, worker: Worker) -> float:
        ours, theirs = self._context.Pipe()
        target, setup, makers = self._inference_part() if worker.is_inference else self._worker_part(worker)
        process = self._context.Process(
            target=target,
            args=(setup, self._blocks, self._exchange, makers, theirs),
            name=f"millrace-{worker.name.replace(' ', '-')}",
            daemon=True,
        )
        with bare_main(), system.environment(**dict.fromkeys(system.THREAD_VARIABLES, "1")):
            process.start()
        theirs.close()
        worker.link = Link(process, ours)
        return time.monotonic() + self._setup.config.start_timeout_s

    def _worker_part(self, worker: Worker) -> tuple[Any, Any, bytes]:
        self._progress[worker.index] = 0
        return worker_main, self._setup.for_worker(worker.index, worker.generation), self._makers

    def _inference_part(self) -> tuple[Any, Any, bytes]:
        return inference_main, self._setup.for_inference(), pickled(self._setup.actor_maker)

    def send(self, worker: Worker, message: Message) -> bool:
        try:
            worker.link.connection.send(message)
        except OSError:
            return False
        return True

    def wait(self, workers: Sequence[Worker], timeout_s: float) -> Iterator[tuple[Worker, Message]]:
        handles = [worker.link.connection for worker in workers] + [worker.link.process.sentinel for worker in workers]
        ready = mp_connection.wait(handles, timeout_s)
        for worker in workers:
            if worker.link.connection in ready or worker.link.process.sentinel in ready:
                yield from ((worker, message) for message in self._messages(worker))

    def _messages(self, worker: Worker) -> Iterator[Message]:
        process, connection = worker.link
        try:
            while worker.state != "down" and connection.poll():
                yield connection.recv()
        except (EOFError, OSError):
            process.join(EXIT_TIMEOUT_S)  # its pipe closes a moment before its exit code is known
            yield "died", f"the process ended{_exit_reason(process)}", "died"
            return
        if worker.state != "down" and not process.is_alive():
            yield "died", f"the process ended{_exit_reason(process)}", "died"

    def life(self, worker: Worker) -> Life:
        exchange = self._exchange
        if worker.is_inference:
            assert exchange is not None
            return Life(int(exchange.heartbeat[0]))
        steps = int(self._progress[worker.index, LANE_STEPS].sum())
        return Life(steps, exchange is not None and exchange.is_waiting(worker.index))

    def end(self, worker: Worker) -> Remains:
        worker.link.process.kill()
        worker.link.process.join(CLOSE_TIMEOUT_S)
        worker.link.connection.close()
        if worker.is_inference:
            return Remains()
        progress = self._progress[worker.index]
        left = Remains(int(progress[0]), self._episodes(worker) if worker.state == "up" else ())
        progress[1] = 0  # nobody waits for its questions any more
        return left

    def _episodes(self, worker: Worker) -> list[dict[str, Any]]:
        """Seed and actions of its slots' episodes, which outlive it in shared memory."""
        setup, progress = self._setup, self._progress[worker.index]
        lanes = setup.lanes(worker.index, worker.generation)
        rollout, log_steps = self.slab.rollouts[int(progress[2])], setup.config.action_log_steps
        return episodes_under_way(self._blocks.logs, lanes, log_steps, worker.index, progress, rollout)

    def retire(self, workers: Sequence[Worker]) -> None:
        for worker in workers:
            if worker.is_inference:
                worker.link.process.kill()  # it keeps nothing
            else:
                self.send(worker, ("close",))
        deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
        for worker in workers:
            process, connection = worker.link
            # A worker in the middle of a rollout is not waited for.
            process.join(0 if worker.places else max(0.0, deadline_s - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join(CLOSE_TIMEOUT_S)
            connection.close()

    def why_unplaced(self, workers: Sequence[Worker]) -> str:
        return ""

    def memory_bytes(self, workers: Sequence[Worker]) -> list[int]:
        return [system.memory_rss_bytes(pid) for pid in self.pids(workers)]

    def pids(self, workers: Sequence[Worker]) -> list[int]:
        return [worker.link.process.pid for worker in workers]

    def close(self) -> None:
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None
        self._blocks.close()


def _exit_reason(process: Any) -> str:
    code = process.exitcode
    if code is None:
        return ""
    return f" by signal {-code}" if code < 0 else f" with exit code {code}"


def pickled(makers: Any) -> bytes:
    """By value, so that functions of a notebook or script travel too.

    Raises:
        ConfigError: something of them cannot travel.
    """
    try:
        result: bytes = cloudpickle.dumps(makers)
        return result
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
