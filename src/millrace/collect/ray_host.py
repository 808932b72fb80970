"""Workers as actors of a Ray cluster. Rollouts and weights travel through its object store, once each."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.buffer.slab import LooseSlab, Slab
from millrace.collect.pool import Board
from millrace.collect.processes import pickled
from millrace.collect.ray_actors import SIDE, WorkerActor
from millrace.collect.ray_board import RayBoard
from millrace.collect.ray_inference import RayInference
from millrace.collect.ray_session import MEBIBYTE, RaySession, why_no_room
from millrace.collect.setup import PoolSetup
from millrace.collect.supervision import NODE_LOST
from millrace.collect.wire import Address
from millrace.collect.worker_pool import Life, Message, Remains, Worker
from millrace.config import RayConfig
from millrace.errors import ConfigError, EnvError
from millrace.system import SharedBlock

CLOSE_TIMEOUT_S = 2.0
REMAINS_TIMEOUT_S = 1.0
LOOKS_PER_TIMEOUT = 4
LONGEST_LOOK_S = 5.0
NEARLY_ALL_OF_THE_STORE = 0.8
NO_SIGN = Life(-1)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(eq=False)
class Link:
    """An actor, and what is known of it.

    Attributes:
        sent_version: of the weights that it was sent last, where it acts by itself.
        look_due_s: when to ask for the next sign of life; infinite while one is awaited.
    """

    actor: Any
    worker: Worker
    pid: int = 0
    memory_bytes: int = 0
    life: Life = NO_SIGN
    sent_version: int = -1
    look_due_s: float = 0.0


class RayHost:
    """Calls are sent ahead, several to an actor, and their results taken in as they come."""

    def __init__(self, setup: PoolSetup, config: RayConfig, session: RaySession) -> None:
        session.wait()
        self._setup, self._config = setup, config
        self._board = RayBoard(setup.num_versions)
        self.board: Board = self._board
        self._refuse_small_store()
        self.slab = self._make_slab()
        self._calls: dict[Any, tuple[Link, str, int]] = {}  # by reference: whose, what, and the place it is for
        self._links: list[Link] = []
        self._path = [entry or str(Path.cwd()) for entry in sys.path]
        self._inference: RayInference | None = None
        if setup.config.inference == "central":
            self._inference = RayInference(setup, config, self._board, self._path)
        timeout_s = setup.config.step_timeout_s
        self._look_every_s = min(timeout_s / LOOKS_PER_TIMEOUT, LONGEST_LOOK_S)
        self._makers = self._put_makers()

    def _make_slab(self) -> Slab:
        layout, count = self._setup.layout, self._setup.num_rollouts
        if self._setup.keeps_rollouts:
            return Slab(layout, count, SharedBlock(Slab.nbytes(layout, count)))
        return LooseSlab(layout, count)

    def _put_makers(self) -> Any:
        import ray

        actor_maker = self._setup.actor_maker if self._inference is None else None
        return ray.put(pickled((self._setup.env_maker, actor_maker)))

    def _refuse_small_store(self) -> None:
        """Better now than by a store that spills to disk all the time."""
        import ray

        setup, per_worker = self._setup, 2
        under_way = setup.config.workers * per_worker
        nbytes = Slab.nbytes(setup.layout, under_way if setup.keeps_rollouts else max(setup.num_rollouts, under_way))
        largest = max((node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes()), default=0.0)
        if largest and nbytes > NEARLY_ALL_OF_THE_STORE * largest:
            raise ConfigError(
                f"rollouts on their way take {nbytes / MEBIBYTE:,.0f} MiB and Ray's object store has "
                f"{largest / MEBIBYTE:,.0f} MiB; raise ray.object_store_memory_mb (or `ray start "
                "--object-store-memory`), or lower collect.rollout_steps, collect.envs_per_worker or collect.workers"
            )

    # Starting ------------------------------------------------------------------------------------------------

    def spawn(self, worker: Worker) -> float:
        inference = self._inference if worker.is_inference else None
        actor = self._new_worker() if inference is None else inference.new_actor()
        worker.link = link = Link(actor, worker)
        self._links.append(link)
        self._call(link, "placed", actor.place.remote())
        if inference is None:
            self._call(link, "built", self._build(actor, worker))
        else:
            self._call(link, "opened", inference.open(actor))
        return math.inf

    def _new_worker(self) -> Any:
        import ray

        config = self._config
        memory = {"memory": config.worker_memory_mb * MEBIBYTE} if config.worker_memory_mb else {}
        return ray.remote(num_cpus=config.worker_cpus, concurrency_groups={SIDE: 1}, **memory)(WorkerActor).remote()

    def _build(self, actor: Any, worker: Worker) -> Any:
        setup, inference = self._setup, self._inference
        layout, address = (None, None) if inference is None else (setup.exchange_layout, inference.address)
        part = setup.for_worker(worker.index, worker.generation)
        return actor.build.remote(part, self._makers, self._path, layout, address)

    def why_unplaced(self, workers: Sequence[Worker]) -> str:
        return why_no_room(self._wanted(workers[-1]))

    def _wanted(self, worker: Worker) -> dict[str, float]:
        config = self._config
        if worker.is_inference and self._inference is not None:
            return self._inference.resources
        memory = {"memory": float(config.worker_memory_mb * MEBIBYTE)} if config.worker_memory_mb else {}
        return {"CPU": config.worker_cpus} | memory

    # Messages ------------------------------------------------------------------------------------------------

    def _call(self, link: Link, what: str, ref: Any, place: int = -1) -> None:
        self._calls[ref] = (link, what, place)

    def send(self, worker: Worker, message: Message) -> bool:
        link, actor = worker.link, worker.link.actor
        match message:
            case ("collect", place, options, version):
                self._collect(link, place, options, self._board.version if version is None else version)
            case ("save",):
                self._call(link, "state", actor.save_state.remote())
            case ("load", state, lanes, spare_lanes):
                self._call(link, "loaded", actor.load_state.remote(state, lanes, spare_lanes))
        return True

    def _collect(self, link: Link, place: int, options: dict[str, Any] | None, version: int) -> None:
        is_new = self._inference is None and version != link.sent_version
        weights = self._board.ref(version) if is_new else None
        link.sent_version = version
        self._call(link, "finished", link.actor.collect.remote(options, version, weights), place)

    def wait(self, workers: Sequence[Worker], timeout_s: float) -> Iterator[tuple[Worker, Message]]:
        import ray

        refs = list(self._calls)
        if not refs:
            time.sleep(timeout_s)
            return
        awaited = min(self._config.wait_for_results, len(refs))
        ready, rest = ray.wait(refs, num_returns=awaited, timeout=timeout_s)
        if rest and ready:  # what else is there by now
            ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        for ref in ready:
            if ref in self._calls:  # its actor was not lost with an earlier one
                link, what, place = self._calls.pop(ref)
                message = self._result(link, what, place, ref)
                if message is not None:
                    yield link.worker, message

    def _result(self, link: Link, what: str, place: int, ref: Any) -> Message | None:
        """What a call came to, as a message; None where nobody need know."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            value = ray.get(ref)
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            traceback = COLOURS.sub("", str(error))
            return "failed", f"{type(cause).__name__}: {cause}", traceback, isinstance(cause, EnvError)
        except RayError as error:
            return _death(error)
        return self._understood(link, what, place, value)

    def _understood(self, link: Link, what: str, place: int, value: Any) -> Message | None:
        match what:
            case "placed":
                link.pid = value
                return ("placed",)
            case "finished":
                rollout, collected, link.memory_bytes = value
                self.slab.lay(place, memoryview(rollout))
                return "finished", place, collected
            case "look":
                link.life, link.look_due_s = Life(*value), time.monotonic() + self._look_every_s
                return None
            case "built":
                return "ready", value
            case "opened":
                self._introduce(link, value)
                return "ready", ""
            case "connected":
                return None
        return what, value

    def _introduce(self, link: Link, address: Address) -> None:
        """Have central inference answer, and tell every worker where."""
        assert self._inference is not None
        self._call(link, "served", self._inference.serve(link.actor, address))
        for other in self._links:
            if not other.worker.is_inference:
                call = other.actor.connect.options(concurrency_group=SIDE).remote(address)
                self._call(other, "connected", call)

    # Watching ------------------------------------------------------------------------------------------------

    def life(self, worker: Worker) -> Life:
        link: Link = worker.link
        if time.monotonic() >= link.look_due_s:
            link.look_due_s = math.inf
            self._call(link, "look", link.actor.look.options(concurrency_group=SIDE).remote())
        return link.life

    def end(self, worker: Worker) -> Remains:
        left = self._remains(worker.link) if worker.state == "up" and not worker.is_inference else Remains()
        self._kill(worker.link)
        return left

    def _remains(self, link: Link) -> Remains:
        import ray
        from ray.exceptions import RayError

        try:
            call = link.actor.remains.options(concurrency_group=SIDE).remote()
            return Remains(*ray.get(call, timeout=REMAINS_TIMEOUT_S))
        except RayError:  # nobody is left to tell
            return Remains(max(link.life.steps, 0))

    def _kill(self, link: Link) -> None:
        import ray

        self._calls = {ref: call for ref, call in self._calls.items() if call[0] is not link}
        self._links.remove(link)
        if self._inference is not None:
            self._inference.forget(link.actor)
        ray.kill(link.actor)

    def retire(self, workers: Sequence[Worker]) -> None:
        import ray

        # A worker in the middle of a rollout is not waited for.
        idle = [w for w in workers if not w.places and not w.is_inference and w.state == "up"]
        closing = [worker.link.actor.close.remote() for worker in idle]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=CLOSE_TIMEOUT_S)
        for worker in workers:
            self._kill(worker.link)

    def memory_bytes(self, workers: Sequence[Worker]) -> list[int]:
        return [worker.link.memory_bytes for worker in workers]

    def pids(self, workers: Sequence[Worker]) -> list[int]:
        """None: killing them is Ray's, which does so when this process ends."""
        return []

    def close(self) -> None:
        self._calls.clear()
        self._board.clear()
        self._makers = None
        if self._inference is not None:
            self._inference.close()


def _death(error: Exception) -> Message:
    """An actor's end, or a result that is lost with the node it lay on."""
    from ray.exceptions import ActorDiedError, NodeDiedError, ObjectLostError, OutOfMemoryError

    text = " ".join(str(error).split())
    if isinstance(error, OutOfMemoryError) or "memory pressure" in text:
        return "died", "Ray killed it because its node was running out of memory", "died"
    if isinstance(error, NodeDiedError | ObjectLostError) or "because its node has died" in text:
        return "died", "its node left the cluster", NODE_LOST
    if isinstance(error, ActorDiedError):
        return "died", "the actor's process ended: it was killed, ran out of memory, or crashed", "died"
    return "died", text, "died"
