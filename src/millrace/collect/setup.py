"""What pools, workers and the inference process need to be built, and the memory that they share."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from millrace.buffer.slab import Slab
from millrace.collect.action_log import ActionLog
from millrace.collect.exchange import ExchangeLayout
from millrace.collect.supervision import MAX_BACKOFF_S, Fault, RestartPolicy
from millrace.collect.weights import WeightsBoard
from millrace.config import CollectConfig
from millrace.envs.make import EnvMaker
from millrace.envs.protocol import episode_seed
from millrace.nets.actor import ActorMaker
from millrace.system import SharedBlock
from millrace.types import Array, Rollout, RolloutLayout

GENERATION_STRIDE = 1_000_003  # a restarted worker gets episodes that no other has


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
        keeps_rollouts: whether rollouts are drawn again and again, and not used once.
        faults, notes: what happened, until somebody has told about it.
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
    keeps_rollouts: bool = False
    policy: RestartPolicy = field(init=False)
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

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

    @property
    def exchange_layout(self) -> ExchangeLayout:
        """Of what workers ask whoever acts for all."""
        largest = max(lane.layout.num_slots for lane in self.lanes(0, 0))
        return ExchangeLayout(self.layout.spec, self.layout.state_size, largest, self.config.workers, self.num_lanes)

    def for_inference(self) -> InferenceSetup:
        """The part that whoever acts for all needs."""
        config = self.config
        return InferenceSetup(
            num_seats=config.workers,
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

    def for_worker(self, worker: int, generation: int) -> WorkerSetup:
        """The part that one worker needs."""
        config = self.config
        return WorkerSetup(
            worker=worker,
            seat=worker,
            num_seats=config.workers,
            lanes=self.lanes(worker, generation),
            layout=self.layout,
            num_rollouts=self.num_rollouts,
            weights_size=self.weights_size,
            num_versions=self.num_versions,
            action_log_steps=config.action_log_steps,
            nice=config.worker_nice,
            temperature=config.temperature_of(worker),
            # Time for the inference process to be found dead or hung, to be restarted, and to answer.
            answer_timeout_s=2 * config.step_timeout_s + MAX_BACKOFF_S + config.start_timeout_s,
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

    @classmethod
    def allocate(cls, setup: WorkerSetup) -> Blocks:
        """For all workers that are seated like this one."""
        log_bytes = sum(ActionLog.nbytes(lane.layout, setup.action_log_steps) for lane in setup.lanes)
        return cls(
            rollouts=SharedBlock(Slab.nbytes(setup.layout, setup.num_rollouts)),
            weights=SharedBlock(WeightsBoard.nbytes(setup.weights_size, setup.num_versions)),
            progress=SharedBlock(setup.num_seats * PROGRESS_WORDS * 8),
            logs=SharedBlock(setup.num_seats * log_bytes),
        )

    def close(self) -> None:
        for block in vars(self).values():
            block.close()


@dataclass(frozen=True)
class WorkerSetup:
    """What one worker needs to build its collectors.

    Attributes:
        seat: its place among the `num_seats` workers that share its blocks.
    """

    worker: int
    seat: int
    num_seats: int
    lanes: tuple[Lane, ...]
    layout: RolloutLayout
    num_rollouts: int
    weights_size: int
    num_versions: int
    action_log_steps: int
    nice: int
    temperature: float
    answer_timeout_s: float

    @property
    def alone(self) -> WorkerSetup:
        """The same for a worker that shares memory with nobody, and needs room for one rollout."""
        return dataclasses.replace(self, seat=0, num_seats=1, num_rollouts=1, num_versions=1)


@dataclass(frozen=True)
class InferenceSetup:
    """What whoever acts for all needs."""

    num_seats: int
    weights_size: int
    num_versions: int
    max_batch_slots: int
    max_wait_s: float
    device: str
    threads: int
    nice: int


def columns_of(rollout: Rollout, lane: Lane) -> Rollout:
    """A lane's part of a rollout."""
    return rollout if lane.layout.num_slots == rollout.num_slots else rollout.columns(lane.first, lane.last)


def progress_words(block: SharedBlock, num_seats: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """[seats, words] view."""
    return np.ndarray((num_seats, PROGRESS_WORDS), np.int64, buffer=block.memory)


def action_logs(block: SharedBlock, lanes: tuple[Lane, ...], steps: int, seat: int) -> list[ActionLog]:
    """One worker's logs, one for each lane; none where they are switched off."""
    if not steps:
        return []
    sizes = [ActionLog.nbytes(lane.layout, steps) for lane in lanes]
    offset, logs = seat * sum(sizes), []
    for lane, nbytes in zip(lanes, sizes, strict=True):
        logs.append(ActionLog(block.memory[offset : offset + nbytes], lane.layout, steps))
        offset += nbytes
    return logs


def episodes_under_way(
    block: SharedBlock, lanes: tuple[Lane, ...], steps: int, seat: int, progress: Array, rollout: Rollout
) -> list[dict[str, Any]]:
    """Seed and actions of every slot's episode as a worker left them, from what outlives it.

    Args:
        progress: the worker's words.
        rollout: which it was filling, if it was busy.
    """
    slots: list[dict[str, Any]] = []
    busy, _, before = (int(word) for word in progress[1:4])
    for lane, log, word in zip(lanes, action_logs(block, lanes, steps, seat), LANE_STEPS, strict=False):
        # The step under way counts: its action is written before the environment sees it.
        taken = int(progress[word]) - before
        found = log.slots(columns_of(rollout, lane) if busy else None, taken, lane.stream_seed)
        slots += [slot | {"slot": slot["slot"] + lane.first} for slot in found]
    return slots
