"""Workers as actors of a Ray cluster. Rollouts and weights travel through its object store, once each."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import re
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.buffer.slab import LooseSlab, Slab
from millrace.collect.pool import Board
from millrace.collect.processes import pickled
from millrace.collect.ray_actors import InferenceActor, WorkerActor
from millrace.collect.ray_session import MEBIBYTE, RaySession
from millrace.collect.setup import PoolSetup
from millrace.collect.supervision import NODE_LOST
from millrace.collect.weights import Held, digest_of
from millrace.collect.wire import TOKEN_BYTES, Address
from millrace.collect.worker_pool import Life, Message, Remains, Worker
from millrace.config import RayConfig
from millrace.errors import ConfigError, EnvError
from millrace.system import SharedBlock
from millrace.types import Array

CLOSE_TIMEOUT_S = 2.0
REMAINS_TIMEOUT_S = 1.0
TAKE_TIMEOUT_S = 10.0
LOOKS_PER_TIMEOUT = 4
LONGEST_LOOK_S = 5.0
NEARLY_ALL_OF_THE_STORE = 0.8
NO_SIGN = Life(-1)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
SIDE = "side"  # a thread of the actor for what is asked while it collects


@dataclass(eq=False)
class Link:
    """An actor, and what is known of it.

    Attributes:
        sent_version: of the weights that it was sent last.
        look_due_s: when to ask for the next sign of life; infinite while one is awaited.
        is_serving: whether it acts for all by now.
    """

    actor: Any
    worker: Worker
    pid: int = 0
    memory_bytes: int = 0
    life: Life = NO_SIGN
    sent_version: int = -1
    look_due_s: float = 0.0
    is_serving: bool = False


class RayBoard:
    """Each version of the weights is put into the object store once, and referred to from then on."""

    def __init__(self, num_versions: int) -> None:
        self._refs = collections.OrderedDict[int, Any]()
        self._num_versions = num_versions
        self.version = 0
        self.listener: Any = None

    def publish(self, weights: Array, version: int) -> Held:
        import ray

        self._refs[version] = ray.put(weights)
        self.version = version
        while len(self._refs) > self._num_versions:
            self._refs.popitem(last=False)
        if self.listener is not None:
            self.listener()
        return Held(version, digest_of(weights))

    def ref(self, version: int) -> Any:
        return self._refs[version]

    def clear(self) -> None:
        self._refs.clear()


class RayHost:
    """Calls are sent ahead, several to an actor, and their results taken in as they come."""

    def __init__(self, setup: PoolSetup, config: RayConfig, session: RaySession) -> None:
        session.wait()
        self._setup, self._config = setup, config
        self._is_central = setup.config.inference == "central"
        self._board = RayBoard(setup.num_versions)
        self._board.listener = self._tell_weights
        self.board: Board = self._board
        self._refuse_small_store()
        self.slab = self._make_slab()
        self._calls: dict[Any, tuple[Link, str, int]] = {}  # by reference: whose, what, and the place it is for
        self._links: list[Link] = []
        self._path = [entry or str(Path.cwd()) for entry in sys.path]
        self._token = secrets.token_bytes(TOKEN_BYTES)
        self._address: Address | None = None
        timeout_s = setup.config.step_timeout_s
        self._look_every_s = min(timeout_s / LOOKS_PER_TIMEOUT, LONGEST_LOOK_S)
        self._put_makers()

    def _make_slab(self) -> Slab:
        layout, count = self._setup.layout, self._setup.num_rollouts
        if self._setup.keeps_rollouts:
            return Slab(layout, count, SharedBlock(Slab.nbytes(layout, count)))
        return LooseSlab(layout, count)

    def _put_makers(self) -> None:
        import ray

        setup = self._setup
        self._makers = ray.put(pickled((setup.env_maker, None if self._is_central else setup.actor_maker)))
        self._actor_maker = ray.put(pickled(setup.actor_maker)) if self._is_central else None

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
        actor = self._new_inference() if worker.is_inference else self._new_worker()
        worker.link = link = Link(actor, worker)
        self._links.append(link)
        self._call(link, "placed", actor.place.remote())
        if worker.is_inference:
            self._open(link)
        else:
            layout = self._setup.exchange_layout if self._is_central else None
            part = self._setup.for_worker(worker.index, worker.generation)
            self._call(link, "built", actor.build.remote(part, self._makers, self._path, layout, self._address))
        return math.inf

    def _new_worker(self) -> Any:
        import ray

        config = self._config
        memory = {"memory": config.worker_memory_mb * MEBIBYTE} if config.worker_memory_mb else {}
        return ray.remote(num_cpus=config.worker_cpus, concurrency_groups={SIDE: 1}, **memory)(WorkerActor).remote()

    def _new_inference(self) -> Any:
        import ray

        resources = {"num_cpus": self._config.inference_cpus, "num_gpus": self._gpus}
        return ray.remote(concurrency_groups={SIDE: 1}, **resources)(InferenceActor).remote()

    @property
    def _gpus(self) -> float:
        """Of central inference."""
        import ray

        wanted = self._config.inference_gpus
        if wanted >= 0:
            return wanted
        has_any = ray.cluster_resources().get("GPU", 0) >= 1
        return 1.0 if has_any and self._setup.actor_maker.needs_torch else 0.0

    def _open(self, link: Link) -> None:
        part, layout = self._setup.for_inference(), self._setup.exchange_layout
        device = "cuda" if self._gpus else "cpu"
        version = self._board.version
        link.sent_version = version
        call = link.actor.open.remote(
            dataclasses.replace(part, device=device),
            self._actor_maker,
            self._path,
            layout,
            self._token,
            self._config.inference_port,
            version,
            self._board.ref(version),
        )
        self._call(link, "opened", call)

    def why_unplaced(self, workers: Sequence[Worker]) -> str:
        import ray

        wants = self._wanted(workers[-1])
        total, free = ray.cluster_resources(), ray.available_resources()
        if all(free.get(name, 0.0) >= amount for name, amount in wants.items()):
            return ""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        what = " and ".join(_amount(name, amount) for name, amount in wants.items())
        left = ", ".join(
            f"{_amount(name, free.get(name, 0.0))} of {total.get(name, 0.0):g}" for name in wants if name != "memory"
        )
        if "memory" in wants:
            left += f", {_amount('memory', free.get('memory', 0.0))}"
        count = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
        nowhere = "" if any(_fits(wants, node) for node in nodes) else ", and no node has that much at all"
        return (
            f"each wants {what}, and the cluster of {count} has {left} free{nowhere}; add nodes, or lower "
            "ray.worker_cpus, ray.worker_memory_mb or collect.workers"
        )

    def _wanted(self, worker: Worker) -> dict[str, float]:
        config = self._config
        if worker.is_inference:
            return {"CPU": config.inference_cpus} | ({"GPU": self._gpus} if self._gpus else {})
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
        is_new = not self._is_central and version != link.sent_version
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
                self._serve(link, value)
                return "ready", ""
            case "connected":
                return None
        return what, value

    # Central inference ---------------------------------------------------------------------------------------

    def _serve(self, link: Link, address: Address) -> None:
        """Have it answer, and tell every worker where."""
        self._address = address
        self._call(link, "served", link.actor.serve.remote())
        link.is_serving = True
        self._tell_weights()  # those that were published while it started
        for other in self._links:
            if not other.worker.is_inference:
                call = other.actor.connect.options(concurrency_group=SIDE).remote(address)
                self._call(other, "connected", call)

    def _tell_weights(self) -> None:
        """Whoever acts for all has the newest weights before anything is granted with them."""
        import ray
        from ray.exceptions import RayError

        version = self._board.version
        for link in self._links:
            if link.is_serving and link.sent_version != version:
                call = link.actor.take.options(concurrency_group=SIDE).remote(version, self._board.ref(version))
                with contextlib.suppress(RayError):  # its death is noticed where it is awaited
                    ray.get(call, timeout=TAKE_TIMEOUT_S)
                link.sent_version = version

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
        self._makers = self._actor_maker = None


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


def _amount(name: str, amount: float) -> str:
    return f"{amount / 2**30:.1f} GiB of memory" if name == "memory" else f"{amount:g} {name}"


def _fits(wants: dict[str, float], node: dict[str, float]) -> bool:
    return all(node.get(name, 0.0) >= amount for name, amount in wants.items())
