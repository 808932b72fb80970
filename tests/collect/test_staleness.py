"""Which policy acts, when it is replaced, and who says so."""

from __future__ import annotations

import numpy as np
import pytest

import millrace
from helpers import differences, learned, opened, quick_train
from millrace.composer import refuse_beyond_memory
from millrace.config import Config
from millrace.envs.make import EnvMaker
from millrace.errors import ConfigError
from millrace.nets.actor import ActorMaker
from millrace.ops.sampling import sample_actions, tempered
from millrace.resolve import probe_env, resolve
from millrace.types import ActionSpec
from toys import Clock, Uneven

REPLAY = {"replay.sampler": "uniform", "replay.samples_per_insert": 2.0, "collect.max_policy_lag": -1}


def turn(run, updates):
    for _ in range(updates):
        batch = run.source.next_batch()
        stats = run.learner.update(batch, run.env_steps)
        run.publish()
        run.source.feedback(batch)
        yield batch, stats


@pytest.mark.parametrize("backend", ["serial", "processes"])
@pytest.mark.parametrize("lag", [0, 1, 3])
def test_deterministic_updates_learn_wholly_from_the_policy_of_that_many_updates_before(backend, lag, run_dir) -> None:
    settings = {"collect.deterministic": True, "collect.max_policy_lag": lag, "collect.backend": backend}
    with opened(Uneven, run_dir, **settings, **{"collect.rollout_steps": 4}) as run:
        for update, (batch, _) in enumerate(turn(run, 8)):
            assert (batch.rollout.policy_version == max(0, update - lag)).all()


def test_deterministic_runs_repeat_bit_for_bit_wherever_they_run(tmp_path) -> None:
    settings = {"collect.deterministic": True, "stop.updates": 12}
    for name, backend in (("serial", "serial"), ("once", "processes"), ("again", "processes")):
        quick_train(Uneven, tmp_path / name, settings, backend=backend, max_policy_lag=2, rollout_steps=4)
    parts = [learned(tmp_path / name) for name in ("serial", "once", "again")]
    for other in parts[1:]:
        for part in ("policy", "learner", "env_steps"):
            assert differences(parts[0][part], other[part]) == []


def test_new_weights_come_only_after_so_many_updates(run_dir) -> None:
    settings = {"collect.publish_every_updates": 3, "collect.max_policy_lag": 2}
    with opened(Clock, run_dir, **settings) as run:
        found = []
        for batch, _ in turn(run, 9):
            found.append(set(np.unique(batch.rollout.policy_version)))
            assert batch.lag <= 2
        assert set().union(*found) == {0, 3, 6}


def test_new_weights_come_only_after_so_many_seconds(run_dir) -> None:
    with opened(Clock, run_dir, **REPLAY, **{"collect.publish_every_s": 3600.0}) as run:
        for batch, _ in turn(run, 5):
            assert (batch.rollout.policy_version == 0).all()
        assert run.source.version == 0


def test_a_worker_with_other_or_older_weights_than_it_should_have_is_counted(run_dir) -> None:
    with opened(Clock, run_dir) as run:
        for _ in turn(run, 2):
            pass
        assert (run.source.counts.weight_mismatches, run.source.counts.stale_weights) == (0, 0)
        board = run.source.pool.board
        next(turn(run, 1))
        weights = run.learner.weights() + 1
        board.publish(weights, board.version)  # not what the source published
        next(turn(run, 1))
        assert run.source.counts.weight_mismatches == 2
        newest = run.source.version
        board._held[:, 0] -= 1  # as if workers never saw the last version
        run.source._published.clear()
        run.source._granted.clear()
        grant = type("Grant", (), {"worker": 0, "version": newest})()
        collected = type("Collected", (), {"version": newest - 1, "digest": 0})()
        run.source._acknowledge(grant, collected)
        assert run.source.counts.stale_weights == 1


def test_tiers_act_at_their_temperature_and_store_the_tempered_probability(run_dir) -> None:
    settings = {"collect.exploration_tiers": [1.0, 3.0], "collect.rollout_steps": 64, "net.log_std_init": 0.0}
    with opened(lambda: Clock(40, True), run_dir, **settings) as run:
        assert run.config.ppo.objective == "decoupled"
        for parameter in run.learner.policy.network.policy_head.parameters():
            parameter.data.mul_(300.0)  # a policy that has its mind made up
        run.source.publish(run.learner.weights())
        batch, stats = next(turn(run, 1))
        width = run.config.collect.envs_per_worker
        surprise = -batch.rollout.log_prob.mean(0)
        assert surprise[width:].mean() > 1.2 * surprise[:width].mean()
        assert stats["effective_sample_share"] < 0.99


@pytest.mark.parametrize("spec", [ActionSpec((4, 3)), ActionSpec((2,), (-1.0,), (1.0,))], ids=["many", "mixed"])
def test_a_temperature_divides_logits_and_multiplies_deviations(spec) -> None:
    rng = np.random.default_rng(0)
    params = rng.normal(size=(1, spec.num_params)).astype(np.float32)
    hot = tempered(spec, params, 2.0)
    np.testing.assert_allclose(hot[:, : spec.num_logits], params[:, : spec.num_logits] / 2, rtol=1e-6)
    box = spec.num_box
    np.testing.assert_allclose(
        hot[:, spec.num_params - box :], params[:, spec.num_params - box :] + np.log(2) * (box > 0)
    )
    action, log_prob = np.zeros((20_000, spec.num_columns), spec.dtype), np.zeros(20_000, np.float32)
    sample_actions(spec, np.repeat(hot, 20_000, 0), None, rng, action, log_prob)
    first = spec.nvec[0]
    chances = np.exp(params[0, :first] / 2) / np.exp(params[0, :first] / 2).sum()
    counts = np.bincount(action[:, 0].astype(int), minlength=first)
    np.testing.assert_allclose(counts / 20_000, chances, atol=0.02)


def test_emphasis_weighs_the_columns_of_workers_whose_episodes_go_better(run_dir) -> None:
    with opened(Clock, run_dir, **{"collect.emphasis": 1.0, "collect.workers": 3}) as run:
        next(turn(run, 1))
        for worker, returns in enumerate([1.0, 2.0, 9.0]):
            run.source._returns[worker].clear()
            run.source._returns[worker].append(returns)
        weight = run.source._emphasis(type("Batch", (), {"workers": np.repeat([0, 1, 2], 4)})())
        assert weight.mean() == pytest.approx(1.0, rel=1e-6)
        above = (np.array([1.0, 2.0, 9.0]) - 4.0) / np.std([1.0, 2.0, 9.0])
        np.testing.assert_allclose(weight[::4] / weight[0], np.exp(above - above[0]), rtol=1e-5)
        following, _ = next(turn(run, 1))
        assert following.emphasis.shape == (12,)


def resolved(**settings) -> Config:
    config = Config().replace({"collect.workers": 2, "collect.envs_per_worker": 4, **settings})
    maker = EnvMaker(config.env)
    return resolve(config, probe_env(maker))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"collect.max_policy_lag": 1}, ("gae", "clip", "actor")),
        ({"collect.max_policy_lag": 5}, ("vtrace", "clip", "learner")),
        ({"collect.max_policy_lag": 1, "ppo.targets": "vtrace"}, ("vtrace", "clip", "learner")),
        (REPLAY, ("vtrace", "clip", "learner")),
        ({**REPLAY, "ppo.targets": "gae", "ppo.values": "actor"}, ("gae", "clip", "actor")),
        ({"collect.exploration_tiers": [1.0, 2.0]}, ("gae", "decoupled", "actor")),
    ],
)
def test_the_correction_follows_lag_and_reuse_unless_it_is_named(settings, expected) -> None:
    ppo = resolved(**settings).ppo
    assert (ppo.targets, ppo.objective, ppo.values) == expected


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({**REPLAY, "collect.deterministic": True}, "collect.deterministic=true wants each rollout used once"),
        ({"collect.publish_every_s": 1.0}, "publish_every_s=1.0 is for replay"),
        ({"collect.publish_every_updates": 4, "collect.max_policy_lag": 1}, "use collect.max_policy_lag=3 or more"),
        ({**REPLAY, "replay.item": "step", "net.memory": "gru"}, 'use replay.item="column"'),
        ({**REPLAY, "collect.max_policy_lag": 0}, "leave it out"),
        ({**REPLAY, "rnd.coef": 0.1}, "use rnd.coef=0"),
        ({**REPLAY, "replay.burn_in_steps": 2}, "set net.memory, or 0"),
        ({"collect.exploration_tiers": [1.0, 2.0], "ppo.objective": "clip"}, 'use "decoupled"'),
        (
            {**REPLAY, "replay.when_full": "block", "replay.samples_per_insert": float("inf")},
            'never is; use "overwrite"',
        ),
        ({**REPLAY, "replay.error_items": 1.0}, "inserting and sampling could wait for each other for ever; use 8"),
        ({**REPLAY, "replay.min_size_items": 1000}, "must lie between replay.batch_size_items=8"),
        ({"replay.samples_per_insert": 0.5}, 'use replay.sampler="uniform"'),
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_a_way_out(settings, sentence) -> None:
    with pytest.raises(ConfigError, match=sentence):
        resolved(**settings)


def test_a_buffer_larger_than_memory_is_refused_before_anything_starts(run_dir) -> None:
    with pytest.raises(ConfigError, match=r"GiB left; lower replay.capacity_items"):
        quick_train(Clock, run_dir, {**REPLAY, "replay.capacity_items": 10**12}, max_policy_lag=-1)
    refuse_beyond_memory(10**6, "a megabyte")


def test_the_start_tells_what_is_held_how_often_it_is_learned_from_and_what_corrects_for_it(run_dir) -> None:
    with opened(Clock, run_dir, **REPLAY, **{"ppo.epochs": 3}) as run:
        text = "\n".join(run.describe())
    assert "uniform, 80 columns (0 MiB)" in text
    assert "each drawn 2 times on average and learned from 3 times a draw" in text
    assert "vtrace targets, clip objective, learner's values (replay;" in text


def test_recent_policies_lie_in_the_pool_for_other_programs(run_dir) -> None:
    settings = {"checkpoint.pool_versions": 3, "checkpoint.pool_every_updates": 2, "stop.updates": 9}
    quick_train(Clock, run_dir, settings, backend="serial")
    files = sorted((run_dir / "pool").iterdir())
    assert [file.name for file in files] == [f"update_{n:012d}.millrace" for n in (4, 6, 8)]
    policy = millrace.load_policy(files[-1])
    assert policy.act(np.zeros(3, np.float32)) in (0, 1, 2)


@pytest.mark.parametrize("backend", ["serial", "processes"])
@pytest.mark.parametrize("replay", [REPLAY, {**REPLAY, "replay.item": "step", "replay.sampler": "prioritized"}])
def test_replay_keeps_to_its_ratio_and_counts_only_what_is_new(backend, replay, run_dir) -> None:
    with opened(Clock, run_dir, **replay, **{"collect.backend": backend, "ppo.normalize_observation": True}) as run:
        steps = sum(batch.env_steps for batch, _ in turn(run, 60))
        figures = run.source.buffer.figures()
        assert figures["samples_per_insert"] == pytest.approx(2.0, rel=0.35)
        rows = run.learner.policy.normalizers()[0][1].row_count
        assert int(rows) == steps
        assert run.source.counts.weight_mismatches == 0


def test_the_acting_policy_is_a_numpy_one_also_under_replay() -> None:
    config = resolved(**REPLAY)
    assert not ActorMaker(probe_env(EnvMaker(config.env)).spec, config.net).needs_torch


def test_a_resumed_run_says_that_its_buffer_begins_empty(run_dir) -> None:
    quick_train(Clock, run_dir, {**REPLAY, "stop.updates": 4}, backend="serial", max_policy_lag=-1)
    millrace.resume(run_dir, settings={"stop.updates": 8}, env=Clock, quiet=True)
    assert "the replay buffer begins empty" in (run_dir / "log.txt").read_text()
