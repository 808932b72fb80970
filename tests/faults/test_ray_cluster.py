"""A cluster of several nodes on this machine: nodes come and go, the store fills up, the driver is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from helpers import log_of, opened, rows_of
from millrace.rundir import RunDirectory
from toys import Clock

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Ray's own
    pytest.mark.timeout(240),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Ray starts several nodes on one machine there"),
]

QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 200,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}
STORE_BYTES = 100 * 2**20
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
            "_system_config": QUICK_TO_NOTICE,
        },
    )
    yield cluster
    cluster.shutdown()


@pytest.fixture
def connected(cluster) -> Iterator[object]:
    ray.init(cluster.address, log_to_driver=False, logging_level="error")
    yield cluster
    ray.shutdown()


ON_RAY = {"collect.backend": "ray", "collect.max_policy_lag": 1, "collect.restart_backoff_s": 0.1}


def go_on(run, updates: int = 1) -> None:
    for _ in range(updates):
        run.learner.update(run.source.next_batch(), 0)
        run.publish()
        run.record_faults()


def go_on_until(run, condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        go_on(run)


def test_workers_come_with_a_node_and_are_missed_without_it(connected, run_dir):
    """Two of three find a place; then a node is added, removed under load, and another one added."""
    with opened(Clock, run_dir, **ON_RAY, **{"collect.workers": 3}) as run:
        pool, counts = run.source.pool, run.source.counts
        assert "begins without worker 2: each wants 1 CPU, and the cluster of 1 node has 0 CPU of 2 free" in log_of(
            run_dir
        )
        go_on(run, 3)
        assert counts.restarts == 0

        node = connected.add_node(num_cpus=1)
        go_on_until(run, lambda: pool.is_up(2))
        assert "worker 2 found a place" in log_of(run_dir)
        go_on_until(run, lambda: run.source.held.get(2, -1) > 0)

        connected.remove_node(node, allow_graceful=False)
        go_on_until(run, lambda: not pool.is_up(2))
        assert "worker 2, step" in log_of(run_dir)
        assert "its node left the cluster" in log_of(run_dir)
        assert counts.restarts >= 1
        go_on(run, 3)

        another = connected.add_node(num_cpus=1)
        go_on_until(run, lambda: pool.is_up(2))
        held = run.source.held[2]
        go_on_until(run, lambda: run.source.held[2] > held)
    connected.remove_node(another)


def test_training_goes_on_beside_an_object_store_that_others_have_filled(connected, run_dir):
    hoard = [ray.put(np.ones(STORE_BYTES // 10, np.uint8)) for _ in range(12)]  # more than fits: some is on disk
    sizes = {"collect.rollout_steps": 256, "collect.envs_per_worker": 16}
    with opened(Clock, run_dir, **ON_RAY, **sizes) as run:
        go_on(run, 10)
        assert run.source.counts.lost_rollouts == 0
    assert all(int(ray.get(ref).sum()) == STORE_BYTES // 10 for ref in hoard[:2])


# Drivers of their own ---------------------------------------------------------------------------------------------


def driver(command: str, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-m", "millrace", command, *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def trained(run_dir: Path, process: subprocess.Popen, updates: int) -> None:
    """Return as soon as a run has made so many updates."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (run_dir / "metrics.jsonl").exists() or not any(row["updates"] >= updates for row in rows_of(run_dir)):
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def arguments(run_dir: Path) -> list[str]:
    sizes = "--workers 2 --envs-per-worker 4 --rollout-steps 32 --metrics.every-s 0.1 --checkpoint.every-s 0.2"
    return ["CartPole-v1", "--backend", "ray", *sizes.split(), "--run-dir", str(run_dir), "--quiet"]


def test_a_driver_that_is_killed_is_resumed_on_the_same_cluster(cluster, run_dir):
    first = driver("train", *arguments(run_dir), "--ray.address", cluster.address)
    trained(run_dir, first, 20)
    first.kill()
    first.wait()
    before, _ = RunDirectory(run_dir).newest_checkpoint()
    second = driver("resume", str(run_dir), "--quiet", "--total-env-steps", str(before.env_steps + 5000))
    assert second.wait(PATIENCE_S) == 0
    assert f"resumed at {before.env_steps:,} steps" in log_of(run_dir)
    assert rows_of(run_dir)[-1]["env_steps"] >= before.env_steps + 5000


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_cluster_of_a_run_ends_with_it(number, code, run_dir):
    process = driver("train", *arguments(run_dir))
    trained(run_dir, process, 3)
    family = psutil.Process(process.pid).children(recursive=True)
    assert any("raylet" in child.name() for child in family)
    if number == signal.SIGKILL:  # Ray's agents go by themselves, a minute after their raylet
        family = [child for child in family if "Agent" not in child.name()]
    os.kill(process.pid, number)
    assert process.wait(PATIENCE_S) == code
    deadline_s = time.monotonic() + PATIENCE_S
    while left := [child for child in family if is_running(child)]:
        assert time.monotonic() < deadline_s, left
        time.sleep(0.1)


def is_running(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
