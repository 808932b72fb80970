"""Where collectors run, seen from the source: grants go in, outcomes come out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from millrace.buffer.slab import Slab
from millrace.collect.action_log import ActionLog
from millrace.collect.collector import Collected, Collector
from millrace.collect.options import OptionsBoard
from millrace.collect.supervision import Fault, RestartPolicy
from millrace.collect.weights import Held, WeightsBoard
from millrace.config import CollectConfig
from millrace.envs.make import EnvMaker
from millrace.envs.protocol import episode_seed
from millrace.errors import EnvError
from millrace.nets.actor import ActorMaker
from millrace.system import SharedBlock
from millrace.types import RolloutLayout

NOTHING = Held(-1, 0)
GENERATION_STRIDE = 1_000_003  # a restarted worker gets episodes that no other has


@dataclass(frozen=True)
class Outcome:
    """What became of a grant: `collected`, or None with the worker's fault."""

    worker: int
    place: int
    collected: Collected | None


@dataclass
class PoolSetup:
    """What every pool needs."""

    env_maker: EnvMaker
    actor_maker: ActorMaker
    layout: RolloutLayout
    config: CollectConfig
    seed: int
    num_rollouts: int
    weights_size: int
    num_versions: int = 2
    policy: RestartPolicy = field(init=False)
    faults: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.policy = RestartPolicy(self.config)

    def blocks(self) -> Blocks:
        workers = self.config.workers
        log_bytes = ActionLog.nbytes(self.layout, self.config.action_log_steps)
        return Blocks(
            rollouts=SharedBlock(Slab.nbytes(self.layout, self.num_rollouts)),
            weights=SharedBlock(WeightsBoard.nbytes(self.weights_size, self.num_versions)),
            progress=SharedBlock(workers * PROGRESS_WORDS * 8),
            logs=SharedBlock(workers * log_bytes),
        )

    def stream_seed(self, worker: int, generation: int) -> int:
        """The seed of one worker's environments and random stream."""
        return episode_seed(self.seed, worker, generation * GENERATION_STRIDE)

    def for_worker(self, worker: int, generation: int, blocks: Blocks) -> WorkerSetup:
        """The part that one worker needs."""
        return WorkerSetup(
            worker=worker,
            stream_seed=self.stream_seed(worker, generation),
            layout=self.layout,
            num_rollouts=self.num_rollouts,
            num_workers=self.config.workers,
            weights_size=self.weights_size,
            num_versions=self.num_versions,
            action_log_steps=self.config.action_log_steps,
            nice=self.config.worker_nice,
            temperature=self.config.temperature_of(worker),
            blocks=blocks,
        )


PROGRESS_WORDS = 8  # a cache line a worker: steps so far, busy, place, steps at the start of the rollout


@dataclass
class Blocks:
    """The memory that pool and workers share."""

    rollouts: SharedBlock
    weights: SharedBlock
    progress: SharedBlock
    logs: SharedBlock

    def close(self) -> None:
        for block in vars(self).values():
            block.close()


@dataclass
class WorkerSetup:
    """What one worker needs to build its collector; picklable while spawning."""

    worker: int
    stream_seed: int
    layout: RolloutLayout
    num_rollouts: int
    num_workers: int
    weights_size: int
    num_versions: int
    action_log_steps: int
    nice: int
    temperature: float
    blocks: Blocks


class Workplace:
    """A collector with the shared memory that it writes to: the whole of a worker but its messages."""

    def __init__(self, setup: WorkerSetup, env_maker: EnvMaker, actor_maker: ActorMaker) -> None:
        self._setup, self._env_maker, self._actor_maker = setup, env_maker, actor_maker
        self._options: dict[str, Any] = {}  # given to the environment so far
        self.collector = self._make_collector(setup.stream_seed)
        self.slab = Slab(setup.layout, setup.num_rollouts, setup.blocks.rollouts)
        self.board = WeightsBoard(setup.blocks.weights.memory, setup.weights_size, setup.num_versions)
        self.progress = progress_words(setup.blocks.progress, setup.num_workers)[setup.worker]
        self.log = action_log(setup.blocks.logs, setup.layout, setup.action_log_steps, setup.worker)
        self._log_begun = False
        self._weights = np.empty(setup.weights_size, np.float32)
        self._held = NOTHING

    def _make_collector(self, stream_seed: int) -> Collector:
        setup = self._setup
        env = self._env_maker.make(setup.layout.num_slots, stream_seed)
        if env.spec != setup.layout.spec:
            env.close()
            raise EnvError(f"worker {setup.worker}: its environment has other spaces than the first one made")
        if self._options:
            env.set_options(self._options)
        rng = np.random.Generator(np.random.Philox(stream_seed))
        return Collector(env, self._actor_maker.make(), setup.layout, rng, temperature=setup.temperature)

    def begin_anew(self, stream_seed: int) -> None:
        """Other episodes in place of the present ones."""
        self.collector.close()
        self.collector = self._make_collector(stream_seed)
        self._held, self._log_begun = NOTHING, False

    def collect(self, place: int, options: dict[str, Any] | None = None, version: int | None = None) -> Collected:
        """One rollout into the given place.

        Args:
            options: of the environment, for episodes that begin from now on; None where they have not changed.
            version: of the weights to act with; None for the newest.
        """
        if options is not None:
            self._options = options
            self.collector.env.set_options(options)
        if self._held != (self.board.newest if version is None else (version, self._held.digest)):
            self._held = self.board.read(self._weights, version)
            self.collector.load_weights(self._weights)
        self.collector.start()
        if self.log is not None and not self._log_begun:
            self.log.clear(self.collector.env.episode_seeds())
            self._log_begun = True
        rollout = self.slab.rollouts[place]
        self.progress[2:4] = place, self.progress[0]
        self.progress[1] = 1
        collected = self.collector.collect(rollout, self._held.version, self.progress)
        if self.log is not None:
            self.log.append(rollout, self.collector.env.episode_seeds())
        self.progress[1] = 0
        return dataclasses.replace(collected, digest=self._held.digest)

    def load_state(self, state: dict[str, Any], stream_seed: int) -> None:
        """Continue from a saved collector, whose worker had this seed."""
        if stream_seed != self._setup.stream_seed:  # it had been restarted
            self.begin_anew(stream_seed)
        self.collector.load_state(state)
        if self.log is not None:
            # Environments that count begun episodes name them from 0; the others have no seeds to tell.
            episodes = np.asarray(state["env"].get("episodes", 1)) - 1
            self.log.clear(self.collector.env.episode_seeds(), episodes, cut=True)
            self._log_begun = True


def with_generation(state: dict[str, Any] | None, generation: int) -> dict[str, Any] | None:
    """A collector's state with what its worker's seed follows from."""
    return None if state is None else {**state, "generation": generation}


def progress_words(block: SharedBlock, num_workers: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """[workers, words] view."""
    return np.ndarray((num_workers, PROGRESS_WORDS), np.int64, buffer=block.memory)


def action_log(block: SharedBlock, layout: RolloutLayout, steps: int, worker: int) -> ActionLog | None:
    """One worker's log, or None where it is switched off."""
    if not steps:
        return None
    nbytes = ActionLog.nbytes(layout, steps)
    return ActionLog(block.memory[worker * nbytes : (worker + 1) * nbytes], layout, steps)


class CollectorPool(Protocol):
    """Runs the collectors of all workers.

    Attributes:
        active: how many of them collect, the first ones; may be changed at any time.
    """

    setup: PoolSetup
    slab: Slab
    board: WeightsBoard
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
