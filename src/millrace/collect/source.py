"""The stream of batches: grants collectors their next rollouts, bounds the policy lag, counts what is lost.

Lock-step and asynchronous collecting are one rule. A rollout granted now, with `ahead` others granted or ready
before it, is learned from after `ahead // batch` more updates, plus the one that may be under way. It is granted
if that is at most `max_policy_lag`. With lag 0 nothing may be granted during an update: lock-step.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from millrace.buffer.queue import Batch, Item, RolloutQueue
from millrace.collect.collector import Collected
from millrace.collect.pool import CollectorPool, Outcome
from millrace.config import CollectConfig
from millrace.types import CollectorTimes

POLL_S = 0.25


@dataclass
class SourceCounts:
    """What happened to rollouts and workers so far; each loss has its own name."""

    lost_rollouts: int = 0
    stale_rollouts: int = 0
    missing_rollouts: int = 0
    bad_values: int = 0
    restarts: int = 0
    dropped_env_steps: int = 0


@dataclass
class RolloutSource:
    """Batches from a pool of collectors, by way of the queue."""

    pool: CollectorPool
    config: CollectConfig
    counts: SourceCounts = field(default_factory=SourceCounts)
    times: CollectorTimes = field(default_factory=CollectorTimes)
    learner_wait_s: float = 0.0

    def __post_init__(self) -> None:
        self._queue = RolloutQueue(self.pool.setup.layout, self.config.workers)
        self._restarts_seen = 0  # of this process; the counts go on over resumes
        self._granted: list[tuple[int, int, int]] = []  # worker, place, version at the grant

    @property
    def version(self) -> int:
        """Updates made when the newest weights were published."""
        return self.pool.board.version

    def next_batch(self, should_stop: Any = None) -> Batch | None:
        """The next batch, or None once `should_stop()` says so.

        Raises:
            WorkerError: the restart budget is used up.
        """
        begin = time.perf_counter()
        while not self._is_ready():
            if should_stop is not None and should_stop():
                return None
            self._grant(updates_under_way=0)
            for outcome in self.pool.poll(POLL_S):
                self._settle(outcome)
        batch = self._queue.take(self.pool.slab.rollouts, self.version)
        for item in batch.items:
            self.pool.slab.release(item.place)
        # Collectors go on under the present weights while the learner works.
        self._grant(updates_under_way=1)
        self.learner_wait_s += time.perf_counter() - begin
        return batch

    def feedback(self, batch: Batch, stats: dict[str, float]) -> None:
        """What learning found out about the batch; a queue, which uses each item once, has no use for it."""

    def _is_ready(self) -> bool:
        if self.config.on_stale == "drop":
            for item in self._queue.drop_stale(self.version - self.config.max_policy_lag):
                self._drop(item)
        elif self._must_wait():
            return False
        return len(self._queue) >= self._queue.batch_size_rollouts

    def _must_wait(self) -> bool:
        """Some rollout under way would be too old for the batch after this one."""
        oldest_allowed = self.version + 1 - self.config.max_policy_lag
        return any(version < oldest_allowed for _, _, version in self._granted)

    def _drop(self, item: Item) -> None:
        rollout = self.pool.slab.rollouts[item.place]
        self.counts.stale_rollouts += 1
        self.counts.dropped_env_steps += int(rollout.valid.sum())
        self.pool.slab.release(item.place)

    def _grant(self, updates_under_way: int) -> None:
        """Hand out as many rollouts as the lag allows, one after another to whoever has fewest."""
        batch, lag = self._queue.batch_size_rollouts, self.config.max_policy_lag
        while self.pool.slab.num_free:
            ahead = len(self._granted) + len(self._queue)
            if updates_under_way + ahead // batch > lag:
                return
            worker = self._next_worker(lag)
            if worker is None:
                return
            place = self.pool.slab.acquire()
            self._granted.append((worker, place, self.version))
            self.pool.grant(worker, place)

    def _next_worker(self, lag: int) -> int | None:
        """Lock-step wants one rollout of each worker, up or not; otherwise workers that are down are passed over."""
        load = [0] * self.config.workers
        for worker, _, _ in self._granted:
            load[worker] += 1
        if lag == 0:
            if not any(self.pool.is_up(worker) for worker in range(self.config.workers)):
                return None  # nobody to wait with: the pool is bringing them back
            ready = self._queue.workers()
            waiting = [w for w in range(self.config.workers) if load[w] == 0 and w not in ready]
            return waiting[0] if waiting else None
        up = [w for w in range(self.config.workers) if self.pool.is_up(w) and load[w] <= lag]
        return min(up, key=lambda w: load[w], default=None)

    def _settle(self, outcome: Outcome) -> None:
        index = next(
            i for i, (w, place, _) in enumerate(self._granted) if (w, place) == (outcome.worker, outcome.place)
        )
        _, place, version = self._granted.pop(index)
        self._count_restarts()
        if outcome.collected is not None:
            self._insert(outcome.worker, place, outcome.collected)
            return
        self.counts.lost_rollouts += 1
        if self.config.max_policy_lag > 0:
            self.pool.slab.release(place)
            return
        # Lock-step keeps its shape: the rows of a worker that is gone count for nothing in this update.
        self.pool.slab.rollouts[place].invalidate()
        self.counts.missing_rollouts += 1
        self._queue.insert(Item(outcome.worker, version, place))

    def _count_restarts(self) -> None:
        restarts = self.pool.setup.policy.restarts
        self.counts.restarts += restarts - self._restarts_seen
        self._restarts_seen = restarts

    def _insert(self, worker: int, place: int, collected: Collected) -> None:
        self.counts.bad_values += collected.bad_values
        self.times.add(collected.times)
        self._queue.insert(Item(worker, collected.version, place, collected.episodes))

    def drain(self) -> int:
        """Drop what is ready or under way, for a stop; the environment steps that are lost, where known."""
        for item in self._queue.drop_stale(self.version + 1):
            self._drop(item)
        return self.counts.dropped_env_steps

    def save_state(self) -> list[dict[str, Any] | None] | None:
        """Every worker's collector at this update boundary; None where rollouts are under way or ready: no boundary."""
        if self._granted or len(self._queue):
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
        self.pool.close()
