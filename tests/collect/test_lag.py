"""The policy lag is bounded and measured; what is too old is dropped and counted."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import opened
from millrace.types import Rollout
from toys import Clock, Uneven


def lags(run, updates: int) -> list[int]:
    found = []
    for _ in range(updates):
        batch = run.source.next_batch()
        rows = (run.learner.updates - batch.rollout.policy_version)[batch.rollout.valid]
        assert rows.min() >= 0
        assert rows.max() == batch.lag
        found.append(batch.lag)
        run.learner.update(batch, run.env_steps)
        run.publish()
    return found


@pytest.mark.parametrize("on_stale", ["wait", "drop"])
@pytest.mark.parametrize("max_policy_lag", [0, 1, 2])
def test_the_lag_is_never_exceeded_by_uneven_workers(max_policy_lag, on_stale, run_dir):
    settings = {
        "collect.backend": "processes",
        "collect.workers": 3,
        "collect.rollout_steps": 4,
        "collect.max_policy_lag": max_policy_lag,
        "collect.on_stale": on_stale,
    }
    with opened(Uneven, run_dir, **settings) as run:
        found = lags(run, 25)
        assert max(found) <= max_policy_lag
        # Collecting while the learner works is what the lag is for.
        assert (max(found) > 0) == (max_policy_lag > 0)
        assert run.source.counts.lost_rollouts == 0
        if on_stale == "wait":
            assert run.source.counts.stale_rollouts == 0


@pytest.mark.parametrize("max_policy_lag", [0, 1, 2, 5])
def test_the_lag_is_bounded_in_one_process_too(max_policy_lag, run_dir):
    with opened(Clock, run_dir, **{"collect.max_policy_lag": max_policy_lag, "collect.workers": 3}) as run:
        found = lags(run, 20)
        assert max(found) <= max_policy_lag


def test_a_rollout_that_has_become_too_old_is_dropped_and_counted(run_dir):
    settings = {"collect.max_policy_lag": 1, "collect.on_stale": "drop", "collect.workers": 2}
    with opened(Clock, run_dir, **settings) as run:
        batch = run.source.next_batch()
        run.learner.update(batch, 0)
        for outcome in run.source.pool.poll(1.0):  # one more rollout is ready under version 0
            run.source._settle(outcome)
        ready = [item.version for item in run.source.buffer.waiting()]
        assert ready == [0]
        run.learner.updates = 5
        run.publish()
        batch = run.source.next_batch()
        assert batch.lag <= 1
        assert run.source.counts.stale_rollouts >= 1
        assert run.source.counts.dropped_env_steps > 0


def test_every_place_is_handed_out_once_and_poisoned_in_between(run_dir):
    with opened(Clock, run_dir, **{"collect.max_policy_lag": 2}) as run:
        for _ in range(6):
            batch = run.source.next_batch()
            source = run.source
            taken = {place for _, place in source._granted} | {item.place for item in source.buffer.waiting()}
            free = set(source.pool.slab._free)
            assert taken.isdisjoint(free)
            assert len(taken) + len(free) == len(source.pool.slab.rollouts)
            for place in free:
                rollout = source.pool.slab.rollouts[place]
                assert is_untouched(rollout) or np.isnan(rollout.reward).all()
            assert np.isfinite(batch.rollout.reward).all()
            run.learner.update(batch, 0)
            run.publish()


def is_untouched(rollout: Rollout) -> bool:
    return not any(array.any() for _, array in rollout.fields())


def test_releasing_a_place_twice_is_noticed(run_dir):
    with opened(Clock, run_dir) as run:
        slab = run.source.pool.slab
        place = slab.acquire()
        slab.release(place)
        with pytest.raises(AssertionError, match="released twice"):
            slab.release(place)
