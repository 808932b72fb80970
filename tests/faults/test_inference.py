"""The inference process dies, hangs, raises or never starts; a worker dies while it waits for it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import log_of, opened
from millrace.config import Config
from millrace.envs.make import EnvMaker
from millrace.errors import WorkerError
from millrace.run import Run
from toys import Clock

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

CENTRAL = {"collect.backend": "processes", "collect.inference": "central", "collect.max_wait_ms": 0.0}


def go_on(run, batches: int) -> list[np.ndarray]:
    """Collect in lock-step under the same weights; the actions of each batch."""
    actions = []
    for _ in range(batches):
        actions.append(run.source.next_batch().rollout.action.copy())
        run.publish()
    return actions


def collected(run_dir, signals: list[tuple[int, int]], **settings) -> list[np.ndarray]:
    """Actions of six batches, the inference process having got some signals (batch, number) on the way."""
    settings = {**CENTRAL, "collect.workers": 1, "collect.double_buffering": False, **settings}
    with opened(Clock, run_dir, **settings) as run:
        actions = []
        for batch in range(6):
            for when, number in signals:
                if when == batch:
                    os.kill(run.source.pool.pids()[-1], number)
            actions += go_on(run, 1)
        assert run.source.counts.lost_rollouts == 0
        assert run.source.pool.setup.policy.restarts == len(signals)
        assert run.source.counts.restarts == len(signals)
        run.record_faults()
    return actions


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, "inference process: the process ended by signal 9 (died)"),
        (signal.SIGSTOP, "inference process: no sign of life within collect.step_timeout_s=1 (hung)"),
    ],
)
def test_nothing_is_lost_with_an_inference_process_that_dies_or_hangs(number, reason, run_dir):
    """What it was asked waits for its successor: the run is the same as without."""
    undisturbed = collected(run_dir / "undisturbed", [])
    disturbed = collected(run_dir / "disturbed", [(2, number)], **{"collect.step_timeout_s": 1.0})
    assert reason in log_of(run_dir / "disturbed")
    assert not list((run_dir / "disturbed").glob("crashes/*"))  # there is no episode to play again
    for expected, actions in zip(undisturbed, disturbed, strict=True):
        np.testing.assert_array_equal(actions, expected)


def test_training_goes_on_with_several_workers_in_halves_and_a_lag(run_dir):
    with opened(Clock, run_dir, **CENTRAL, **{"collect.max_policy_lag": 1}) as run:
        for update in range(9):
            if update in (2, 5):
                os.kill(run.source.pool.pids()[-1], signal.SIGKILL)
            batch = run.source.next_batch()
            assert batch.rollout.valid.any()
            run.learner.update(batch, 0)
            run.publish()
        counts = run.source.counts
        assert (counts.restarts, counts.lost_rollouts, counts.weight_mismatches) == (2, 0, 0)


def test_a_worker_that_dies_while_it_waits_holds_up_nobody(run_dir):
    with opened(Clock, run_dir, **CENTRAL) as run:
        pool = run.source.pool
        go_on(run, 1)
        first, second, inference = pool.pids()
        os.kill(inference, signal.SIGSTOP)
        run.source._grant(0)
        while not (pool.host._exchange.is_waiting(0) and pool.host._exchange.is_waiting(1)):
            pool.poll(0.01)
        os.kill(first, signal.SIGKILL)
        while pool.setup.policy.restarts == 0:
            run.source._poll(0.01)
        os.kill(inference, signal.SIGCONT)
        while not pool.is_up(0):
            go_on(run, 1)
        assert run.source.next_batch().rollout.valid.any(0).all()
        assert pool.pids()[1:] == [second, inference]
        assert run.source.counts.restarts == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /dev/shm")
def test_no_semaphore_is_left_behind(run_dir):
    with opened(Clock, run_dir, **CENTRAL) as run:
        exchange = run.source.pool.host._exchange
        files = [Path(f"/dev/shm/sem.{wake._semlock.name[1:]}") for wake in (exchange.questions, *exchange.answers)]
        assert all(file.exists() for file in files)
    assert not any(file.exists() for file in files)


class Fragile(torch.nn.Module):
    """A network that cannot be loaded in another process."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 4)

    def forward(self, observation):
        y = self.layer(observation["obs"])
        return y[:, :3], y[:, 3]

    def __reduce__(self):
        return _load_fragile, ()


def _load_fragile():
    if multiprocessing.parent_process() is not None:
        raise OSError("the network's file is missing")
    return Fragile()


def test_a_run_whose_inference_process_cannot_start_ends_with_the_reason(run_dir):
    settings = {**CENTRAL, "collect.workers": 1, "collect.envs_per_worker": 1, "collect.rollout_steps": 4}
    settings |= {"collect.restart_backoff_s": 0.01, "run_dir": str(run_dir), "metrics.console": "off"}
    config = Config().replace(settings)
    with pytest.raises(WorkerError, match="no inference process could be started in 3 attempts") as caught:
        Run(config, EnvMaker(config.env, Clock), Fragile()).__enter__()
    assert 'raise OSError("the network\'s file is missing")' in str(caught.value)
