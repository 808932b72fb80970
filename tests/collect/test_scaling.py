"""The number of workers follows the machine or a schedule, and every change is told."""

from __future__ import annotations

import time

import pytest

from helpers import opened
from millrace.collect.scaling import Load, workers_scheduled, workers_wanted
from millrace.errors import ConfigError
from toys import Clock

WELL = Load(learner_wait=0.1, collector_wait=0.2, memory=0.3, idle_cores=1.0)


@pytest.mark.parametrize(
    ("active", "load", "wanted", "reason"),
    [
        (2, WELL, 2, ""),
        (2, Load(0.6, 0.0, 0.3, 1.2), 3, "the learner waited 60% of the time and 1.2 cores were idle"),
        (2, Load(0.6, 0.0, 0.3, 0.1), 2, ""),
        (4, Load(0.6, 0.0, 0.3, 1.2), 4, ""),
        (2, Load(0.6, 0.0, 0.85, 1.2), 1, "85% of memory is in use"),
        (1, Load(0.6, 0.0, 0.85, 1.2), 1, ""),
        (3, Load(0.05, 0.7, 0.3, 1.2), 2, "collectors waited 70% of the time for the learner"),
    ],
)
def test_a_worker_comes_where_cores_idle_and_goes_where_memory_or_the_learner_is_the_limit(
    active, load, wanted, reason
) -> None:
    assert workers_wanted(active, 1, 4, load) == (wanted, reason)


def test_a_schedule_has_stages_of_equal_length() -> None:
    found = [workers_scheduled([1, 3, 9], progress, most=4) for progress in (0.0, 0.33, 0.34, 0.66, 0.67, 1.0)]
    assert found == [1, 1, 3, 3, 4, 4]


def turn(run, updates):
    for _ in range(updates):
        batch = run.source.next_batch()
        stats = run.learner.update(batch, run.env_steps)
        run.publish()
        run.source.feedback(batch)
        run.record(batch, stats)


def test_workers_come_and_go_along_a_schedule_without_a_fault(run_dir) -> None:
    settings = {
        "collect.backend": "processes",
        "collect.workers": 2,
        "collect.workers_schedule": [1, 2, 1],
        "collect.max_policy_lag": 1,
        "total_env_steps": 3000,
    }
    with opened(lambda: Clock(40, True), run_dir, **settings) as run:
        pool, seen = run.source.pool, set()
        assert len(pool.pids()) == 1
        while not run.is_complete:
            turn(run, 1)
            seen.add((pool.active, len(pool.pids())))
        assert {(1, 1), (2, 2)} <= seen
        deadline_s = time.monotonic() + 30.0
        while len(pool.pids()) > 1 and time.monotonic() < deadline_s:  # it may have been starting when it was let go
            run.source._poll(0.1)
        assert len(pool.pids()) == 1
        assert (run.source.counts.lost_rollouts, run.source.counts.restarts) == (0, 0)
    notes = (run_dir / "log.txt").read_text()
    assert "2 workers instead of 1: 33% of the run is done" in notes
    assert "1 workers instead of 2: 67% of the run is done" in notes


def test_the_machine_decides_where_it_is_asked(run_dir, monkeypatch) -> None:
    settings = {"collect.workers": 3, "collect.scaling": "machine", "collect.max_policy_lag": 1}
    with opened(Clock, run_dir, **settings) as run:
        loads = iter([Load(0.6, 0.0, 0.3, 1.2), None, Load(0.6, 0.0, 0.3, 1.2), WELL, Load(0.0, 0.9, 0.3, 1.2)])
        monkeypatch.setattr(run.scaler.meter, "since_last", lambda source: next(loads))
        found = []
        for _ in range(5):
            turn(run, 1)
            found.append(run.source.pool.active)
        assert found == [2, 2, 3, 3, 2]


def test_the_load_is_measured_over_windows(run_dir) -> None:
    with opened(Clock, run_dir, **{"collect.max_policy_lag": 1}) as run:
        run.scaler.meter._every_s = 0.0
        assert run.scaler.meter.since_last(run.source) is None
        turn(run, 3)
        load = run.scaler.meter.since_last(run.source)
        assert 0 < load.learner_wait <= 1
        assert 0 <= load.collector_wait <= 1
        assert 0 < load.memory < 1
        assert load.idle_cores >= 0


def test_a_changing_number_is_refused_where_every_batch_wants_every_worker(run_dir) -> None:
    settings = {"collect.workers_schedule": [1, 2], "collect.max_policy_lag": 0}
    with pytest.raises(ConfigError, match=r"use collect.max_policy_lag=1 or more"), opened(Clock, run_dir, **settings):
        pass
