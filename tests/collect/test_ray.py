"""Collectors as Ray actors: the same rollouts and supervision as elsewhere, nothing left in the object store."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import millrace
from helpers import differences, learned, libraries_of, log_of, opened, quick_train, rows_of
from millrace.collect.ray_inference import RayInference
from millrace.collect.ray_session import _directory_of
from millrace.config import Config
from millrace.errors import ConfigError, MissingExtraError, WorkerError
from toys import Clock, Faulty, Pixels, Recall, Uneven, tokens

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Ray's own
    pytest.mark.timeout(180),
]

RAY = {"collect.backend": "ray"}
CENTRAL = {**RAY, "collect.inference": "central"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One for all tests of this file, which runs use because they find it connected."""
    often = {"metrics_report_interval_ms": 200}
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    ray.init("local", num_cpus=4, _system_config=often, **quiet)
    yield
    ray.shutdown()


def go_on(run, updates: int) -> None:
    for _ in range(updates):
        run.learner.update(run.source.next_batch(), 0)
        run.publish()


# What is collected ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", [Clock, "millrace/RealmMini-v0"])
def test_lock_step_on_ray_is_bit_for_bit_what_it_is_in_one_process(env, cluster, run_dir):
    for backend in ("serial", "ray"):
        quick_train(env, run_dir / backend, {"stop.updates": 5}, backend=backend)
    assert not differences(learned(run_dir / "serial"), learned(run_dir / "ray"))


def test_deterministic_asynchronous_collecting_repeats_itself(cluster, run_dir):
    settings = {"stop.updates": 6, "collect.deterministic": True}
    for backend in ("serial", "ray"):
        quick_train(Uneven, run_dir / backend, settings, backend=backend, max_policy_lag=2)
    first, second = (learned(run_dir / backend) for backend in ("serial", "ray"))
    assert not differences(first["policy"], second["policy"])


def test_a_run_is_resumed_exactly_where_it_stopped(cluster, run_dir):
    quick_train(Clock, run_dir / "whole", {"stop.updates": 6}, backend="ray")
    quick_train(Clock, run_dir / "parts", {"stop.updates": 3}, backend="ray")
    millrace.resume(run_dir / "parts", env=Clock, settings={"stop.updates": 6}, quiet=True)
    assert "exactly where it stopped" in log_of(run_dir / "parts")
    assert not differences(learned(run_dir / "whole"), learned(run_dir / "parts"))


def test_replay_draws_from_rollouts_that_came_through_the_object_store(cluster, run_dir):
    settings = {"stop.updates": 8, "replay.sampler": "uniform", "replay.samples_per_insert": 2.0}
    result = quick_train(Clock, run_dir, settings, backend="ray", max_policy_lag=-1)
    assert result.updates == 8
    assert rows_of(run_dir)[-1]["lost_rollouts"] == 0


def test_options_reach_live_workers(cluster, run_dir):
    with opened("millrace/RealmMini-v0", run_dir, **RAY, **{"env.kwargs": {"max_step": 5}}) as run:
        lengths = []
        for options in ({}, {"max_step": 3}, {"max_step": 3}):
            run.source.pool.options.current = options
            batch = run.source.next_batch()
            lengths.append(max(episode.length_steps for episode in batch.episodes))
            run.learner.update(batch, 0)
            run.publish()
    assert (lengths[0], lengths[2]) == (5, 3)


# The object store -------------------------------------------------------------------------------------------------


def references() -> int:
    """Objects that this process refers to, in the object store or on their way."""
    return len(ray._private.worker.global_worker.core_worker.get_all_reference_counts())


def test_large_rollouts_are_read_where_they_lie_and_let_go_afterwards(cluster, run_dir):
    sizes = {"collect.rollout_steps": 128, "collect.envs_per_worker": 32, "collect.max_policy_lag": 1}
    with opened(Clock, run_dir, **RAY, **sizes) as run:
        source, slab = run.source, run.source.pool.slab
        while not source.buffer.can_take():
            source._grant(0)
            source._poll(0.1)
        rollout = slab.rollouts[source.buffer.waiting()[0].place]
        assert rollout.num_steps * rollout.num_slots == 4096
        assert not rollout.reward.flags.writeable  # in the object store itself
        del rollout
        go_on(run, 3)
        before = references()
        go_on(run, 12)
        assert references() <= before + 2 * len(slab.rollouts)
    assert references() <= 2


# Central inference ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"net.memory": "lstm", "net.memory_size": 6}])
def test_one_actor_acts_for_all_others(settings, cluster, run_dir):
    with opened(functools.partial(Recall, 1), run_dir, **CENTRAL, **{"collect.max_policy_lag": 1}, **settings) as run:
        go_on(run, 4)
        for _ in range(3):
            batch = run.source.next_batch()
            stats = run.learner.update(batch, 0)
            run.publish()
        assert stats["clip_share"] < 1
        assert np.isfinite(batch.rollout.log_prob).all()
        counts = run.source.counts
        assert (counts.restarts, counts.weight_mismatches, counts.stale_weights) == (0, 0, 0)


def test_central_answers_are_those_of_a_copy_in_each_worker(cluster, run_dir):
    for inference in ("local", "central"):
        settings = {"stop.updates": 2, "collect.inference": inference, "collect.double_buffering": False}
        quick_train(Clock, run_dir / inference, settings, backend="ray")
    local, central = (learned(run_dir / inference)["policy"] for inference in ("local", "central"))
    for name, array in local.items():
        np.testing.assert_allclose(central[name], array, atol=1e-5)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_workers_of_central_inference_load_no_torch(cluster, run_dir):
    with opened(Pixels, run_dir, **CENTRAL) as run:
        go_on(run, 1)
        *workers, inference = [worker.link.pid for worker in (*run.source.pool._workers, *run.source.pool._helpers)]
        assert libraries_of(inference, "torch")
        assert not any(libraries_of(pid, "torch") for pid in workers)


@pytest.mark.parametrize(("env", "wanted", "gpus"), [(Clock, -1.0, 0.0), (Pixels, -1.0, 1.0), (Pixels, 0.5, 0.5)])
def test_central_inference_asks_for_a_gpu_where_there_is_one_and_torch_acts(
    env, wanted, gpus, cluster, run_dir, monkeypatch
):
    with opened(env, run_dir, **RAY, **{"collect.inference": "local", "ray.inference_gpus": wanted}) as run:
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
        inference = RayInference(run.source.pool.setup, run.config.ray, run.source.pool.board, [])
        assert inference.gpus == gpus


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_nothing_is_lost_with_an_inference_actor_that_dies_or_hangs(number, cluster, run_dir):
    settings = {"collect.step_timeout_s": 2.0, "collect.restart_backoff_s": 0.1}
    with opened(Clock, run_dir, **CENTRAL, **settings) as run:
        go_on(run, 2)
        os.kill(run.source.pool._helpers[0].link.pid, number)
        go_on(run, 3)
        counts = run.source.counts
        assert (counts.restarts, counts.lost_rollouts, counts.missing_rollouts) == (1, 0, 0)


def test_weights_published_while_inference_starts_again_reach_it(cluster, run_dir):
    settings = {"collect.max_policy_lag": 1, "collect.restart_backoff_s": 0.1}
    with opened(Clock, run_dir, **CENTRAL, **settings) as run:
        go_on(run, 2)
        helper, source = run.source.pool._helpers[0], run.source
        os.kill(helper.link.pid, signal.SIGKILL)
        while helper.generation == 0 or helper.state == "down":
            source._poll(0.01)
        assert helper.state == "starting"
        source.updates += 1
        source.publish(run.learner.weights())
        assert helper.state == "starting"  # nobody waited for it
        batches = [source.next_batch() for _ in range(4)]
        assert batches[-1].rollout.policy_version.max() == source.version
        assert source.counts.stale_weights == 0


# Faults -----------------------------------------------------------------------------------------------------------

DEADLY = {
    "raises": "ValueError: the dragon has no head",
    "kills itself": "the actor's process ended",
    "hangs": "no step finished within collect.step_timeout_s=2",
}


@pytest.mark.parametrize("kind", DEADLY)
def test_training_survives_an_actor_that(kind, cluster, run_dir, tmp_path):
    env = functools.partial(Faulty, kind, tokens(tmp_path / "tokens", 1))
    result = quick_train(env, run_dir, {"stop.updates": 12, "collect.step_timeout_s": 2.0}, backend="ray")
    assert result.updates == 12
    assert (rows_of(run_dir)[-1]["restarts"], rows_of(run_dir)[-1]["missing_rollouts"] >= 1) == (1, True)
    assert DEADLY[kind] in log_of(run_dir)
    (file,) = (run_dir / "crashes").glob("*.json")
    crash = json.loads(file.read_text())
    assert DEADLY[kind] in crash["message"]
    # What an actor has done is with it: one that is gone cannot tell any more.
    assert bool(crash["slots"]) == (kind != "kills itself")


def test_an_environment_that_cannot_be_made_is_told_about_and_not_tried_for_ever(cluster, run_dir):
    with pytest.raises(WorkerError, match=r"no worker could be started in 3 attempts each; .*no such simulator"):
        quick_train(unmakeable_elsewhere(os.getpid()), run_dir, {"collect.restart_backoff_s": 0.1}, backend="ray")


def unmakeable_elsewhere(pid: int):
    def make():
        if os.getpid() != pid:
            raise OSError("no such simulator")
        return Clock()

    return make


def test_resources_that_are_not_there_are_named(cluster, run_dir):
    settings = {"ray.worker_cpus": 16.0, "collect.start_timeout_s": 1.0}
    expected = (
        r"workers 0, 1 found no place within collect.start_timeout_s=1: each wants 16 CPU, and the cluster of 1 node "
        r"has \d CPU of 4 free, and no node has that much at all; add nodes, or lower ray.worker_cpus"
    )
    with pytest.raises(WorkerError, match=expected):
        quick_train(Clock, run_dir, settings, backend="ray")


def test_training_begins_with_the_workers_that_found_a_place(cluster, run_dir):
    settings = {"stop.updates": 3, "ray.worker_cpus": 3.0}
    result = quick_train(Clock, run_dir, settings, backend="ray", max_policy_lag=1)
    assert result.updates == 3
    assert "begins without worker 1: each wants 3 CPU, and the cluster of 1 node has 1 CPU of 4 free" in log_of(run_dir)


def test_rollouts_that_the_object_store_cannot_hold_are_refused(cluster, run_dir, monkeypatch):
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"object_store_memory": 1e6}}])
    with pytest.raises(
        ConfigError, match=r"take 15 MiB and Ray's object store has 1 MiB; raise ray.object_store_memory"
    ):
        quick_train(Pixels, run_dir, backend="ray", rollout_steps=128, envs_per_worker=8)


# Figures ----------------------------------------------------------------------------------------------------------


def test_figures_stand_at_the_prometheus_endpoint_of_the_node(cluster, run_dir):
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with opened("CartPole-v1", run_dir, **RAY, **{"metrics.every_s": 0.001}) as run:
        deadline_s, text = time.monotonic() + 60, ""
        while "ray_millrace_episode_return" not in text:
            assert time.monotonic() < deadline_s
            batch = run.source.next_batch()
            run.record(batch, run.learner.update(batch, run.env_steps))
            run.publish()
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as page:
                text = page.read().decode()
    names = ["policy_loss", "steps_per_second", "rollout_latency_s", "policy_lag", "restarts", "worker_memory_mb"]
    assert [name for name in names if f"ray_millrace_{name}{{" not in text] == []
    assert f'run="{run_dir.name}"' in text


# The way there ----------------------------------------------------------------------------------------------------


def test_a_missing_ray_says_how_to_get_it(run_dir, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"collecting on a cluster needs Ray.*pip install 'millrace\[ray\]'"):
        quick_train(Clock, run_dir, backend="ray")


def test_whoever_has_connected_to_ray_is_left_connected(cluster, run_dir, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.9:6379")
    quick_train(Clock, run_dir, {"stop.updates": 1}, backend="ray")
    assert ray.is_initialized()


def test_a_number_of_workers_that_follows_this_machine_is_refused(cluster, run_dir):
    settings = {"collect.scaling": "machine"}
    with pytest.raises(ConfigError, match="goes by the cores of this machine, and Ray by those of the cluster"):
        quick_train(Clock, run_dir, settings, backend="ray", max_policy_lag=1)


def test_a_schedule_lets_actors_come_and_go(cluster, run_dir):
    with opened(Clock, run_dir, **RAY, **{"collect.workers": 3, "collect.max_policy_lag": 1}) as run:
        pool = run.source.pool
        for active in (1, 3, 2):
            pool.active, deadline_s = active, time.monotonic() + 60
            while [pool.is_up(worker) for worker in range(3)] != [worker < active for worker in range(3)]:
                assert time.monotonic() < deadline_s
                go_on(run, 1)
        assert run.source.counts.lost_rollouts == 0


def test_rays_client_is_refused():
    with pytest.raises(ConfigError, match="Ray's client would carry every rollout twice"):
        Config().replace({"ray.address": "ray://head:10001"})


def test_only_code_that_is_not_installed_is_carried_to_the_nodes(tmp_path, monkeypatch):
    (tmp_path / "my_game_here.py").write_text("")
    (tmp_path / "my_games_here").mkdir()
    (tmp_path / "my_games_here" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert _directory_of("my_game_here:make") == _directory_of("my_games_here.deep:make") == str(tmp_path)
    assert _directory_of("json:make") == _directory_of("numpy:make") == _directory_of("CartPole-v1") == ""
    assert _directory_of("not_there_at_all:make") == ""
