"""Replay under fire: no place of the buffer is lost with a worker, and a learner that stands still costs nothing."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from helpers import opened
from toys import Clock, Uneven

REPLAY = {
    "replay.sampler": "prioritized",
    "replay.samples_per_insert": 2.0,
    "collect.max_policy_lag": -1,
    "collect.backend": "processes",
    "collect.rollout_steps": 8,
}


def turn(run) -> None:
    batch = run.source.next_batch()
    run.learner.update(batch, run.env_steps)
    run.publish()
    run.source.feedback(batch)


def settle(run) -> None:
    """Let whatever is under way end."""
    source = run.source
    deadline_s = time.monotonic() + 60
    while source._granted and time.monotonic() < deadline_s:
        source._poll(0.1)
    assert not source._granted


def assert_whole(run) -> None:
    """Every place of the slab is free or holds a rollout of the buffer, once."""
    slab, held = run.source.pool.slab, set(run.source.buffer._held)
    assert held.isdisjoint(slab._free)
    assert len(held) + slab.num_free == len(slab.rollouts)


def test_twenty_workers_killed_in_the_middle_of_a_rollout_lose_no_place(run_dir) -> None:
    settings = {"collect.max_restarts": 1000, "collect.restart_backoff_s": 0.001, "collect.workers": 4}
    with opened(Uneven, run_dir, **REPLAY, **settings) as run:
        killed = 0
        while killed < 20:
            turn(run)
            # Only those that have a place to lose: told to collect, and without an answer so far.
            for worker in run.source.pool._workers:
                if worker.state == "up" and worker.places and killed < 20:
                    os.kill(worker.link.process.pid, signal.SIGKILL)
                    killed += 1
            while run.source.pool.setup.policy.restarts < killed:
                run.source._poll(0.1)
        settle(run)
        assert_whole(run)
        run.source._count_restarts()
        assert run.source.counts.restarts == 20
        assert run.source.counts.lost_rollouts >= 10  # some answered before they died
        assert not run.source.counts.dropped_env_steps


def stand_still(run, seconds: float) -> None:
    """Stop this process as a whole, for so long; a child sends the signals."""
    pid = os.getpid()
    waker = os.spawnlp(os.P_NOWAIT, "sh", "sh", "-c", f"sleep 0.2; kill -STOP {pid}; sleep {seconds}; kill -CONT {pid}")
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        turn(run)
    os.waitpid(waker, 0)


@pytest.mark.parametrize("seconds", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_a_learner_that_stood_still_goes_on_where_it_was(seconds, run_dir) -> None:
    """Longer than workers may take for a step: it was not they who hung."""
    with opened(Clock, run_dir, **REPLAY, **{"collect.step_timeout_s": 1.5}) as run:
        turn(run)
        before = run.source.pool.pids()
        stand_still(run, seconds)
        turn(run)
        assert run.source.pool.pids() == before
        assert (run.source.counts.lost_rollouts, run.source.counts.restarts) == (0, 0)
        assert threading.active_count() < 10
        settle(run)
        assert_whole(run)
