"""Where collectors run, seen from the source: grants go in, outcomes come out."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from millrace.buffer.slab import Slab
from millrace.collect.action_log import ActionLog
from millrace.collect.collector import Collected, Collector, collect_in_turn
from millrace.collect.exchange import CentralActor, Exchange, ExchangeLayout
from millrace.collect.options import OptionsBoard
from millrace.collect.supervision import MAX_BACKOFF_S, Fault, RestartPolicy
from millrace.collect.weights import Held, WeightsBoard
from millrace.config import CollectConfig
from millrace.envs.make import EnvMaker
from millrace.envs.protocol import episode_seed
from millrace.errors import EnvError
from millrace.nets.actor import Actor, ActorMaker, Forward
from millrace.system import SharedBlock
from millrace.types import Array, Rollout, RolloutLayout

NOTHING = Held(-1, 0)
GENERATION_STRIDE = 1_000_003  # a restarted worker gets episodes that no other has


@dataclass(frozen=True)
class Outcome:
    """What became of a grant: `collected`, or None with the worker's fault."""

    worker: int
    place: int
    collected: Collected | None


@dataclass(frozen=True)
class Lane:
    """Slots first..last-1 of a worker, which are stepped together; all of them, unless inference is central.

    Attributes:
        stream_seed: of their environments and random stream.
        layout: of their columns of a rollout.
    """

    first: int
    last: int
    stream_seed: int
    layout: RolloutLayout


@dataclass
class PoolSetup:
    """What every pool needs.

    Attributes:
        device: of central inference.
    """

    env_maker: EnvMaker
    actor_maker: ActorMaker
    layout: RolloutLayout
    config: CollectConfig
    seed: int
    num_rollouts: int
    weights_size: int
    num_versions: int = 2
    device: str = "cpu"
    policy: RestartPolicy = field(init=False)
    faults: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.policy = RestartPolicy(self.config)

    @property
    def num_lanes(self) -> int:
        """Of each worker: with central inference it steps one half of its slots while it asks about the other."""
        config = self.config
        return 2 if config.inference == "central" and config.double_buffering and self.layout.num_slots > 1 else 1

    def lanes(self, worker: int, generation: int) -> tuple[Lane, ...]:
        """How a worker's slots are dealt out."""
        count, slots = self.num_lanes, self.layout.num_slots
        bounds = [-(-slots * lane // count) for lane in range(count + 1)]
        return tuple(
            Lane(
                first,
                last,
                # Every lane is like a worker of its own.
                self.stream_seed(worker + lane * self.config.workers, generation),
                dataclasses.replace(self.layout, num_slots=last - first),
            )
            for lane, (first, last) in enumerate(itertools.pairwise(bounds))
        )

    def blocks(self) -> Blocks:
        workers = self.config.workers
        log_bytes = sum(ActionLog.nbytes(lane.layout, self.config.action_log_steps) for lane in self.lanes(0, 0))
        return Blocks(
            rollouts=SharedBlock(Slab.nbytes(self.layout, self.num_rollouts)),
            weights=SharedBlock(WeightsBoard.nbytes(self.weights_size, self.num_versions)),
            progress=SharedBlock(workers * PROGRESS_WORDS * 8),
            logs=SharedBlock(workers * log_bytes),
        )

    def open_exchange(self, context: Any) -> Exchange:
        """Where workers ask the inference process."""
        largest = max(lane.layout.num_slots for lane in self.lanes(0, 0))
        layout = ExchangeLayout(self.layout.spec, self.layout.state_size, largest, self.config.workers, self.num_lanes)
        return Exchange.open(layout, context)

    def for_inference(self, blocks: Blocks, exchange: Exchange) -> InferenceSetup:
        """The part that the inference process needs."""
        config = self.config
        return InferenceSetup(
            exchange=exchange,
            weights=blocks.weights,
            progress=blocks.progress,
            weights_size=self.weights_size,
            num_versions=self.num_versions,
            max_batch_slots=config.max_batch_slots,
            max_wait_s=config.max_wait_ms / 1e3,
            device=self.device,
            threads=config.inference_threads,
            nice=config.worker_nice,
        )

    def stream_seed(self, worker: int, generation: int) -> int:
        """The seed of one worker's environments and random stream."""
        return episode_seed(self.seed, worker, generation * GENERATION_STRIDE)

    def for_worker(self, worker: int, generation: int, blocks: Blocks, exchange: Exchange | None = None) -> WorkerSetup:
        """The part that one worker needs."""
        config = self.config
        return WorkerSetup(
            worker=worker,
            lanes=self.lanes(worker, generation),
            layout=self.layout,
            num_rollouts=self.num_rollouts,
            num_workers=config.workers,
            weights_size=self.weights_size,
            num_versions=self.num_versions,
            action_log_steps=config.action_log_steps,
            nice=config.worker_nice,
            temperature=config.temperature_of(worker),
            # Time for the inference process to be found dead or hung, to be restarted, and to answer.
            answer_timeout_s=2 * config.step_timeout_s + MAX_BACKOFF_S + config.start_timeout_s,
            blocks=blocks,
            exchange=exchange,
        )


PROGRESS_WORDS = 8  # a cache line a worker: steps begun, busy, place, steps at the start of the rollout, second lane's
LANE_STEPS = (0, 4)  # words with the steps that each lane began


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
    """What one worker needs to build its collectors; picklable while spawning."""

    worker: int
    lanes: tuple[Lane, ...]
    layout: RolloutLayout
    num_rollouts: int
    num_workers: int
    weights_size: int
    num_versions: int
    action_log_steps: int
    nice: int
    temperature: float
    answer_timeout_s: float
    blocks: Blocks
    exchange: Exchange | None


@dataclass
class InferenceSetup:
    """What the inference process needs; picklable while spawning."""

    exchange: Exchange
    weights: SharedBlock
    progress: SharedBlock
    weights_size: int
    num_versions: int
    max_batch_slots: int
    max_wait_s: float
    device: str
    threads: int
    nice: int


class PolicyCopy:
    """A policy of one's own, which takes its weights from the board."""

    def __init__(self, setup: WorkerSetup, actor: Actor) -> None:
        self.actor = actor
        self.held = NOTHING
        self._board = WeightsBoard(setup.blocks.weights.memory, setup.weights_size, setup.num_versions)
        self._weights = np.empty(setup.weights_size, np.float32)

    def take(self, version: int | None) -> Held:
        """Load the weights of a version, or the newest, unless they are loaded; which they are."""
        if self.held != (self._board.newest if version is None else (version, self.held.digest)):
            self.held = self._board.read(self._weights, version)
            self.actor.load(self._weights)
        return self.held


class Workplace:
    """Collectors with the shared memory that they write to: the whole of a worker but its messages.

    Args:
        actor_maker: of the worker's own copy of the policy; None where inference is central.
    """

    def __init__(self, setup: WorkerSetup, env_maker: EnvMaker, actor_maker: ActorMaker | None) -> None:
        self._setup, self._env_maker = setup, env_maker
        self._options: dict[str, Any] = {}  # given to the environments so far
        self._policy = None if actor_maker is None else PolicyCopy(setup, actor_maker.make())
        self._collectors = self._make_collectors(setup.lanes)
        slab = Slab(setup.layout, setup.num_rollouts, setup.blocks.rollouts)
        # Kept, since collectors know rollouts by identity.
        self._rollouts = [[_columns(rollout, lane) for lane in setup.lanes] for rollout in slab.rollouts]
        self.progress = progress_words(setup.blocks.progress, setup.num_workers)[setup.worker]
        self._logs = action_logs(setup.blocks.logs, setup.lanes, setup.action_log_steps, setup.worker)
        self._logs_begun = False

    def _make_collectors(self, lanes: tuple[Lane, ...]) -> list[Collector]:
        return [self._make_collector(index, lane) for index, lane in enumerate(lanes)]

    def _make_collector(self, index: int, lane: Lane) -> Collector:
        setup = self._setup
        env = self._env_maker.make(lane.layout.num_slots, lane.stream_seed)
        if env.spec != setup.layout.spec:
            env.close()
            raise EnvError(f"worker {setup.worker}: its environment has other spaces than the first one made")
        if self._options:
            env.set_options(self._options)
        rng = np.random.Generator(np.random.Philox(lane.stream_seed))
        return Collector(env, self._actor(index), lane.layout, rng, temperature=setup.temperature)

    def _actor(self, lane: int) -> Forward:
        setup = self._setup
        if self._policy is not None:
            return self._policy.actor
        assert setup.exchange is not None
        return CentralActor(setup.exchange, setup.worker, lane, setup.answer_timeout_s)

    @property
    def exactness(self) -> str:
        """What the environments can save: see `SlotEnv`."""
        return self._collectors[0].env.exactness

    def begin_anew(self, lanes: tuple[Lane, ...]) -> None:
        """Other episodes in place of the present ones, from the lanes' seeds."""
        self.close()
        self._collectors = self._make_collectors(lanes)
        self._logs_begun = False

    def collect(self, place: int, options: dict[str, Any] | None = None, version: int | None = None) -> Collected:
        """One rollout into the given place.

        Args:
            options: of the environment, for episodes that begin from now on; None where they have not changed.
            version: of the weights to act with; None for the newest.
        """
        if options is not None:
            self._options = options
            for collector in self._collectors:
                collector.env.set_options(options)
        held = NOTHING if self._policy is None else self._policy.take(version)
        self._begin_logs()
        rollouts = self._rollouts[place]
        self.progress[2:4] = place, self.progress[0]
        self.progress[1] = 1
        collected = collect_in_turn(
            [
                collector.collecting(rollout, held, self.progress[word : word + 1])
                for collector, rollout, word in zip(self._collectors, rollouts, LANE_STEPS, strict=False)
            ]
        )
        for log, rollout, collector in zip(self._logs, rollouts, self._collectors, strict=False):
            log.append(rollout, collector.env.episode_seeds())
        self.progress[1] = 0
        return collected

    def _begin_logs(self) -> None:
        for collector in self._collectors:
            collector.start()
        if not self._logs_begun:
            for log, collector in zip(self._logs, self._collectors, strict=False):
                log.clear(collector.env.episode_seeds())
            self._logs_begun = True

    def save_state(self) -> dict[str, Any] | None:
        """Everything needed to continue; None where that is not to be had, or nothing has begun."""
        states = [collector.save_state() for collector in self._collectors]
        if any(state is None for state in states):
            return None
        return states[0] if len(states) == 1 else {"lanes": states}

    def load_state(self, state: dict[str, Any], lanes: tuple[Lane, ...]) -> None:
        """Continue from a saved state, whose worker had these lanes.

        Raises:
            EnvError: it cannot be continued here.
        """
        states = state.get("lanes", [state])
        if len(states) != len(lanes):
            raise EnvError(f"its slots were in {len(states)} part(s), and are in {len(lanes)} now")
        if lanes != self._setup.lanes:  # it had been restarted
            self.begin_anew(lanes)
        for collector, part in zip(self._collectors, states, strict=True):
            collector.load_state(part)
        for log, collector, part in zip(self._logs, self._collectors, states, strict=False):
            # Environments that count begun episodes name them from 0; the others have no seeds to tell.
            episodes = np.asarray(part["env"].get("episodes", 1)) - 1
            log.clear(collector.env.episode_seeds(), episodes, cut=True)
        self._logs_begun = True

    def close(self) -> None:
        for collector in self._collectors:
            collector.close()


def _columns(rollout: Rollout, lane: Lane) -> Rollout:
    """A lane's part of a rollout."""
    return rollout if lane.layout.num_slots == rollout.num_slots else rollout.columns(lane.first, lane.last)


def with_generation(state: dict[str, Any] | None, generation: int) -> dict[str, Any] | None:
    """A collector's state with what its worker's seed follows from."""
    return None if state is None else {**state, "generation": generation}


def progress_words(block: SharedBlock, num_workers: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """[workers, words] view."""
    return np.ndarray((num_workers, PROGRESS_WORDS), np.int64, buffer=block.memory)


def action_logs(block: SharedBlock, lanes: tuple[Lane, ...], steps: int, worker: int) -> list[ActionLog]:
    """One worker's logs, one for each lane; none where they are switched off."""
    if not steps:
        return []
    sizes = [ActionLog.nbytes(lane.layout, steps) for lane in lanes]
    offset, logs = worker * sum(sizes), []
    for lane, nbytes in zip(lanes, sizes, strict=True):
        logs.append(ActionLog(block.memory[offset : offset + nbytes], lane.layout, steps))
        offset += nbytes
    return logs


def episodes_under_way(
    block: SharedBlock, lanes: tuple[Lane, ...], steps: int, worker: int, progress: Array, rollout: Rollout
) -> list[dict[str, Any]]:
    """Seed and actions of every slot's episode as a worker left them, from what outlives it.

    Args:
        progress: the worker's words.
        rollout: which it was filling, if it was busy.
    """
    slots: list[dict[str, Any]] = []
    busy, _, before = (int(word) for word in progress[1:4])
    for lane, log, word in zip(lanes, action_logs(block, lanes, steps, worker), LANE_STEPS, strict=False):
        # The step under way counts: its action is written before the environment sees it.
        taken = int(progress[word]) - before
        found = log.slots(_columns(rollout, lane) if busy else None, taken, lane.stream_seed)
        slots += [slot | {"slot": slot["slot"] + lane.first} for slot in found]
    return slots


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
