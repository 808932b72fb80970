"""The stream of batches: grants collectors their next rollouts, bounds lag and reuse, counts what is lost.

Lock-step and asynchronous collecting are one rule. A rollout granted now, with `ahead` others granted or ready
before it, is learned from after `ahead // batch` more updates, plus those that the newest published weights lag behind.
It is granted if that is at most `max_policy_lag`. With lag 0 nothing may be granted during an update: lock-step.
With replay the buffer's rate limiter decides instead.
"""

from __future__ import annotations

import collections
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from millrace.buffer.batch import Batch, Item
from millrace.collect.collector import Collected
from millrace.collect.pool import CollectorPool, Outcome
from millrace.config import CollectConfig
from millrace.types import Array, CollectorTimes

POLL_S = 0.25
LATENCIES_KEPT = 100
RETURNS_KEPT = 20  # by worker, for the emphasis
MOST_DEVIATIONS = 2.0
VERSIONS_REMEMBERED = 1000


@dataclass
class SourceCounts:
    """What happened to rollouts and workers so far; each loss has its own name."""

    lost_rollouts: int = 0
    stale_rollouts: int = 0
    missing_rollouts: int = 0
    bad_values: int = 0
    restarts: int = 0
    dropped_env_steps: int = 0
    weight_mismatches: int = 0
    stale_weights: int = 0


class Buffer(Protocol):
    """Where finished rollouts lie: `RolloutQueue`, or `Replay`."""

    def __len__(self) -> int: ...

    def insert(self, item: Item) -> None:
        """Take over a finished rollout and its place."""

    def waiting(self) -> list[Item]:
        """Rollouts that no batch has told of yet."""

    def admits(self, num_granted: int, updates_ahead: int) -> bool:
        """Whether one more rollout may be granted, `num_granted` being under way."""

    def can_take(self) -> bool:
        """Whether a batch can be had."""

    def take(self, version: int, progress: float) -> Batch:
        """The next batch, `version` updates having been made; `progress` of the run, 0..1."""

    def drop_stale(self, oldest_version: int) -> list[int]:
        """Let go of what an older policy collected; the transitions of each rollout never learned from."""

    def feedback(self, batch: Batch) -> None:
        """What learning found out about a batch is written in it."""

    def figures(self) -> dict[str, float]:
        """Of `millrace.metrics.catalogue`."""

    def close(self) -> None:
        """Let go of the slab."""


@dataclass(frozen=True)
class Grant:
    """A rollout under way.

    Attributes:
        version: of the newest weights when it was granted.
        granted_s: when that was (`time.perf_counter`).
        turn: the batch it is for, where every batch takes one of each worker.
    """

    worker: int
    place: int
    version: int
    turn: int
    granted_s: float


@dataclass
class RolloutSource:
    """Batches from a pool of collectors, by way of a buffer.

    Attributes:
        updates: made so far by the learner, which may be ahead of the weights that were published.
        progress: of the run, 0..1.
    """

    pool: CollectorPool
    config: CollectConfig
    buffer: Buffer
    is_replay: bool = False
    counts: SourceCounts = field(default_factory=SourceCounts)
    times: CollectorTimes = field(default_factory=CollectorTimes)
    learner_wait_s: float = 0.0
    updates: int = 0
    progress: float = 0.0

    def __post_init__(self) -> None:
        self._restarts_seen = 0  # of this process; the counts go on over resumes
        self._granted: dict[tuple[int, int], Grant] = {}  # by worker and place
        self._versions_granted = collections.Counter[int]()
        self._num_granted = self._num_taken = 0  # rollouts, batches
        # Every batch takes one rollout of each worker, up or not, so that nothing depends on who is quick.
        self._is_in_turn = not self.is_replay and (self.config.max_policy_lag == 0 or self.config.deterministic)
        most = 2 if self.is_replay else self.config.max_policy_lag + 1
        # Workers by how many rollouts they have under way, up to the most; among equals the longest waiting first.
        self._by_load: list[dict[int, None]] = [dict.fromkeys(range(self.config.workers)), *({} for _ in range(most))]
        self._published = collections.OrderedDict[int, int]()  # digest by version
        self.held: dict[int, int] = {}  # by worker, the version that it acted with last
        self._latencies_s = collections.deque[float](maxlen=LATENCIES_KEPT)
        self._returns = [collections.deque[float](maxlen=RETURNS_KEPT) for _ in range(self.config.workers)]

    @property
    def version(self) -> int:
        """Updates made when the newest weights were published."""
        return self.pool.board.version

    @property
    def has_published(self) -> bool:
        """Whether collectors have any weights."""
        return bool(self._published)

    def publish(self, weights: Array) -> None:
        """Make these the weights that collectors act with."""
        held = self.pool.board.publish(weights, self.updates)
        self._published[held.version] = held.digest
        while len(self._published) > VERSIONS_REMEMBERED:
            self._published.popitem(last=False)

    def next_batch(self, should_stop: Any = None) -> Batch | None:
        """The next batch, or None once `should_stop()` says so.

        Raises:
            WorkerError: the restart budget is used up.
        """
        begin = time.perf_counter()
        if self.is_replay:  # a batch may be at hand without anything new: what has come is to be taken in all the same
            self._poll(0.0)
        while not self._is_ready():
            if should_stop is not None and should_stop():
                return None
            self._grant(updates_under_way=0)
            self._poll(POLL_S)
        batch = self.buffer.take(self.updates, self.progress)
        self._num_taken += 1
        batch.emphasis = self._emphasis(batch)
        # Collectors go on under the present weights while the learner works.
        self._grant(updates_under_way=1)
        self.learner_wait_s += time.perf_counter() - begin
        return batch

    def _poll(self, timeout_s: float) -> None:
        for outcome in self.pool.poll(timeout_s):
            self._settle(outcome)

    def take_in(self, timeout_s: float) -> None:
        """Take over what has arrived, waiting for at most so long; while a batch is being learned from."""
        if self.is_replay:  # where what comes may take the place of what is being learned from
            time.sleep(timeout_s)
        else:
            self._poll(timeout_s)

    def feedback(self, batch: Batch) -> None:
        """What learning found out about a batch is written in it: priorities, and errors to go on from."""
        self.buffer.feedback(batch)

    def _is_ready(self) -> bool:
        if self._is_in_turn:
            return self.buffer.can_take() and all(grant.turn > self._num_taken for grant in self._granted.values())
        if self.config.on_stale == "drop" or self.is_replay:
            self._drop_stale(self.updates - self.config.max_policy_lag)
            return self.buffer.can_take()
        return self.buffer.can_take() and not self._must_wait()

    def _must_wait(self) -> bool:
        """With what this batch leaves behind, some rollout under way would come to be learned from too late.

        A batch takes the oldest that are ready. Younger ones may have overtaken some that are still under way: of those
        left, at most `j` batches may be as old as is allowed `j` updates from now.
        """
        size, lag = self.config.workers, self.config.max_policy_lag
        under_way = self._versions_granted
        if not under_way or min(under_way) <= self.updates - lag:
            return bool(under_way)
        left = sorted(item.version for item in self.buffer.waiting())[size:]
        versions = under_way + collections.Counter(left)
        return any(
            sum(count for version, count in versions.items() if version <= self.updates - lag + j) > j * size
            for j in range(1, lag + 1)
        )

    def _drop_stale(self, oldest_version: int) -> None:
        for env_steps in self.buffer.drop_stale(oldest_version):
            self.counts.stale_rollouts += 1
            self.counts.dropped_env_steps += env_steps

    def _grant(self, updates_under_way: int) -> None:
        """Hand out as many rollouts as lag or reuse allows, one after another to whoever has fewest."""
        while self.pool.slab.num_free:
            ahead = updates_under_way + self.updates - self.version
            worker = self._next_worker() if self.buffer.admits(len(self._granted), ahead) else None
            if worker is None:
                return
            turn = self._num_granted // self.config.workers if self._is_in_turn else 0
            grant = Grant(worker, self.pool.slab.acquire(), self.version, turn, time.perf_counter())
            self._num_granted += 1
            self._granted[worker, grant.place] = grant
            self._versions_granted[grant.version] += 1
            self._load(worker, 1)
            self.pool.grant(worker, grant.place, grant.version if self.config.deterministic else None)

    def _next_worker(self) -> int | None:
        """In turn each worker, up or not; otherwise workers that are down are passed over."""
        if self._is_in_turn:
            # Without anybody up there is nobody to wait with: the pool is bringing them back.
            is_any_up = any(self.pool.is_up(worker) for worker in range(self.config.workers))
            return self._num_granted % self.config.workers if is_any_up else None
        candidates = (worker for workers in self._by_load[:-1] for worker in workers)
        return next((w for w in candidates if w < self.pool.active and self.pool.is_up(w)), None)

    def _load(self, worker: int, change: int) -> None:
        """Count a rollout more or less that a worker has under way."""
        load = next(load for load, workers in enumerate(self._by_load) if worker in workers)
        del self._by_load[load][worker]
        while len(self._by_load) <= load + change:  # in turn a worker may be ahead of the others
            self._by_load.append({})
        self._by_load[load + change][worker] = None

    def _settle(self, outcome: Outcome) -> None:
        grant = self._granted.pop((outcome.worker, outcome.place))
        self._versions_granted[grant.version] -= 1
        if not self._versions_granted[grant.version]:
            del self._versions_granted[grant.version]
        self._load(outcome.worker, -1)
        self._count_restarts()
        if outcome.collected is not None:
            self._insert(grant, outcome.collected)
            return
        self.counts.lost_rollouts += 1
        if not self._is_in_turn:
            self.pool.slab.release(grant.place)
            return
        # A batch in turn keeps its shape: the rows of a worker that is gone count for nothing in this update.
        self.pool.slab.rollouts[grant.place].invalidate()
        self.counts.missing_rollouts += 1
        self.buffer.insert(Item(grant.worker, grant.version, grant.place, turn=grant.turn))

    def _count_restarts(self) -> None:
        restarts = self.pool.setup.policy.restarts
        self.counts.restarts += restarts - self._restarts_seen
        self._restarts_seen = restarts

    def _insert(self, grant: Grant, collected: Collected) -> None:
        self.counts.bad_values += collected.bad_values
        self.times.add(collected.times)
        self._latencies_s.append(time.perf_counter() - grant.granted_s)
        self._acknowledge(grant, collected)
        self._returns[grant.worker].extend(episode.episode_return for episode in collected.episodes)
        self.buffer.insert(Item(grant.worker, collected.version, grant.place, collected.episodes, grant.turn))

    def _acknowledge(self, grant: Grant, collected: Collected) -> None:
        """Which weights a worker says that it acted with; others than those published, or older ones, are counted."""
        self.held[grant.worker] = collected.version
        self.counts.stale_weights += collected.version < grant.version
        if self._published.get(collected.version, collected.digest) != collected.digest:
            self.counts.weight_mismatches += 1

    @property
    def worker_lag(self) -> int:
        """Updates by which the weights that some worker acted with last are behind the newest published ones."""
        held = [version for worker, version in self.held.items() if worker < self.pool.active]
        return self.version - min(held, default=self.version)

    @property
    def rollout_latency_s(self) -> float:
        """From the grant of a rollout to its arrival, mean of the latest; nan before the first."""
        return float(np.mean(self._latencies_s)) if self._latencies_s else float("nan")

    def _emphasis(self, batch: Batch) -> Array | None:
        """[N] what each column weighs by how its worker's latest episodes compare with everybody's."""
        if not self.config.emphasis or batch.workers is None:
            return None
        means = np.array([np.mean(returns) if returns else np.nan for returns in self._returns])
        if np.isnan(means).all():
            return None
        deviation = np.nanstd(means)
        above = (means - np.nanmean(means)) / deviation if deviation > 0 else np.zeros_like(means)
        above = np.clip(np.nan_to_num(above), -MOST_DEVIATIONS, MOST_DEVIATIONS)
        weight: Array = np.exp(self.config.emphasis * above)[batch.workers]
        return np.asarray(weight / weight.mean(), np.float32)

    def drain(self) -> int:
        """Drop what is ready or under way, for a stop; the environment steps that are lost, where known."""
        self._drop_stale(self.updates + 1)
        return self.counts.dropped_env_steps

    def save_state(self) -> list[dict[str, Any] | None] | None:
        """Every worker's collector at this update boundary; None where rollouts are under way or ready: no boundary."""
        if self._granted or self.buffer.waiting():
            return None
        return self.pool.save_states()

    def load_state(self, states: list[dict[str, Any] | None] | None) -> list[str]:
        """Continue the collectors; a sentence for each that begins anew instead."""
        if states is None:
            return ["rollouts were under way when it was saved: every worker begins new episodes"]
        if len(states) != self.config.workers:
            return [f"the checkpoint has {len(states)} workers, this run {self.config.workers}: all begin new episodes"]
        problems = self.pool.load_states(states)
        return problems + [f"worker {w}: no saved state" for w, state in enumerate(states) if state is None]

    def close(self) -> None:
        try:
            self.buffer.close()
        finally:  # a device that fails must not leave workers behind
            self.pool.close()
