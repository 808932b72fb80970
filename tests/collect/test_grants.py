"""The grant rule against workers of any speed: nothing older than allowed is learned from, nobody waits for ever."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.buffer.queue import RolloutQueue
from millrace.buffer.slab import LooseSlab
from millrace.collect.collector import Collected
from millrace.collect.pool import Outcome
from millrace.collect.source import RolloutSource
from millrace.config import CollectConfig
from millrace.types import ActionSpec, ArraySpec, CollectorTimes, RolloutLayout, SlotSpec

LAYOUT = RolloutLayout(SlotSpec({"obs": ArraySpec((1,), "float32")}, ActionSpec(nvec=(2,))), 1, 1)


class Pool:
    """Finishes somebody's oldest rollout at each look; acts with the weights of the grant, as late as is possible."""

    def __init__(self, workers: int, lag: int, rng: np.random.Generator, slowness: float) -> None:
        self.setup: Any = SimpleNamespace(policy=SimpleNamespace(restarts=0))
        self.board: Any = SimpleNamespace(version=0)
        self.slab = LooseSlab(LAYOUT, workers * (lag + 1) + 1)
        self.active = workers
        self.under_way: list[list[tuple[int, int]]] = [[] for _ in range(workers)]
        self.most_under_way = 0
        self._rng = rng
        # Some workers get a turn far more rarely than others.
        self._weights = np.where(np.arange(workers) < (workers + 1) // 2, slowness, 1.0)

    def is_up(self, worker: int) -> bool:
        return True

    def grant(self, worker: int, place: int, version: int | None = None) -> None:
        self.under_way[worker].append((place, self.board.version))
        self.most_under_way = max(self.most_under_way, len(self.under_way[worker]))

    def poll(self, timeout_s: float) -> list[Outcome]:
        weights = self._weights * [bool(grants) for grants in self.under_way]
        assert weights.any(), "the source waits for rollouts, and has granted none"
        worker = int(self._rng.choice(len(weights), p=weights / weights.sum()))
        place, version = self.under_way[worker].pop(0)
        return [Outcome(worker, place, Collected(version, (), CollectorTimes(), 0))]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    workers=st.sampled_from([1, 2, 4, 9]),
    lag=st.integers(0, 5),
    slowness=st.sampled_from([1.0, 0.1, 0.01]),
    publish_every=st.integers(1, 3),
)
def test_no_rollout_is_learned_from_older_than_allowed(seed, workers, lag, slowness, publish_every):
    if publish_every > lag + 1:
        return  # refused: the acting policy alone would be too old
    pool = Pool(workers, lag, np.random.default_rng(seed), slowness)
    config = CollectConfig(workers=workers, max_policy_lag=lag, rollout_steps=1, envs_per_worker=1)
    source = RolloutSource(pool, config, RolloutQueue(pool.slab, workers, lag))
    for update in range(40):
        batch = source.next_batch()
        assert max(update - item.version for item in batch.items) <= lag
        source.updates = update + 1
        if source.updates % publish_every == 0:
            pool.board.version = source.updates
    assert pool.most_under_way <= lag + 1
    assert source.counts.stale_rollouts == 0


@pytest.mark.parametrize("lag", [1, 3])
def test_whoever_waits_longest_is_granted_the_next_rollout(lag):
    pool = Pool(5, lag, np.random.default_rng(0), 1.0)
    config = CollectConfig(workers=5, max_policy_lag=lag, rollout_steps=1, envs_per_worker=1)
    source = RolloutSource(pool, config, RolloutQueue(pool.slab, 5, lag))
    source._grant(0)
    assert [len(grants) for grants in pool.under_way] == [lag + 1] * 5
    for worker in (3, 1, 4):
        place, version = pool.under_way[worker].pop(0)
        source._settle(Outcome(worker, place, Collected(version, (), CollectorTimes(), 0)))
    assert [source._next_worker() for _ in range(2)] == [3, 3]
