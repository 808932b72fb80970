"""What a run says about its episodes, workers and checkpoints is true."""

from __future__ import annotations

import functools
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

import millrace
from helpers import differences, learned, log_of, opened, quick_train, rows_of
from millrace.rundir import RunDirectory
from millrace.types import EpisodeRecord
from toys import Clock, Faulty, OneStep, PileRounds, Treacherous, tokens


def replayed(record: EpisodeRecord) -> tuple[int, int]:
    """Length and tag of the episode with the record's seed."""
    env = Clock()
    env.reset(seed=record.seed)
    return env.length, env.tag


@pytest.mark.parametrize("rollout_steps", [1, 2, 16, 40])
def test_every_episode_is_recorded_once_with_its_own_seed_length_and_return(rollout_steps, run_dir):
    with opened(Clock, run_dir, **{"collect.rollout_steps": rollout_steps}) as run:
        records, dones = [], 0
        for _ in range(160 // rollout_steps):
            batch = run.source.next_batch()
            records += batch.episodes
            dones += int((batch.rollout.terminated | batch.rollout.truncated).sum())
            run.learner.update(batch, 0)
            run.publish()
    assert len(records) == dones > 100
    assert len({record.seed for record in records}) == len(records)
    for record in records:
        length, _ = replayed(record)
        assert record.length_steps == length
        assert record.figures["ticks"] == length
        rewards = sum(range(1, length + 1))
        assert rewards <= record.episode_return <= rewards + length


def test_environment_steps_are_transitions_without_resets(run_dir):
    with opened(Clock, run_dir) as run:
        total = 0
        for _ in range(4):
            batch = run.source.next_batch()
            done = batch.rollout.terminated | batch.rollout.truncated
            total += batch.env_steps
            assert batch.env_steps == batch.rollout.valid.sum() <= batch.rollout.valid.size
            # Of what follows a done row inside the rollout, nothing is valid.
            assert not batch.rollout.valid[1:][done[:-1]].any()
            run.learner.update(batch, 0)
            run.publish()


def test_resuming_after_restarts_equals_never_having_stopped(tmp_path: Path):
    """In one process and without a pause, restarts come at the same steps, so even these can be compared."""
    settings = {"collect.max_restarts": 10_000, "collect.restart_backoff_s": 0.0, "metrics.every_s": 10.0}
    quick_train(Treacherous, tmp_path / "whole", {"stop.updates": 60, **settings}, backend="serial")
    quick_train(Treacherous, tmp_path / "stopped", {"stop.updates": 30, **settings}, backend="serial")
    assert list((tmp_path / "stopped" / "crashes").iterdir())
    millrace.resume(tmp_path / "stopped", env=Treacherous, settings={"stop.updates": 60}, quiet=True)
    assert not differences(learned(tmp_path / "whole"), learned(tmp_path / "stopped"))


def test_restarts_are_counted_over_the_whole_run(tmp_path: Path):
    env = functools.partial(Faulty, "raises", tokens(tmp_path / "tokens", 2))
    quick_train(env, tmp_path / "run", {"stop.updates": 10}, backend="serial")
    assert rows_of(tmp_path / "run")[-1]["restarts"] == 2
    millrace.resume(tmp_path / "run", env=Clock, settings={"stop.updates": 14}, quiet=True)
    assert rows_of(tmp_path / "run")[-1]["restarts"] == 2


def test_a_worker_that_is_down_at_resume_is_not_said_to_continue_exactly(tmp_path: Path):
    run_dir = tmp_path / "run"
    quick_train(Clock, run_dir, {"stop.updates": 3}, backend="processes")
    env = functools.partial(Faulty, "refuses to start", tokens(tmp_path / "tokens", 1))
    settings = {"stop.updates": 6, "collect.restart_backoff_s": 1.0}
    result = millrace.resume(run_dir, env=env, settings=settings, quiet=True)
    assert result.updates == 6
    assert "exactly where it stopped" not in log_of(run_dir)
    assert "2 episodes cut and begun anew" in log_of(run_dir)


def test_the_best_checkpoint_by_evaluation_is_still_kept_after_a_resume(run_dir):
    settings = {"eval.every_env_steps": 1, "eval.episodes": 5, "checkpoint.keep_last": 1, "ppo.learning_rate": 0.02}
    quick_train("CartPole-v1", run_dir, {"stop.updates": 8, **settings}, backend="serial")
    millrace.resume(run_dir, settings={"stop.updates": 16}, quiet=True)
    scores = {int(row["env_steps"]): row["eval_return"] for row in rows_of(run_dir) if "eval_return" in row}
    trainer = RunDirectory(run_dir).newest_checkpoint()[0].read_trainer()
    best = trainer["best_env_steps"]
    kept = {int(path.name.removeprefix("step_")) for path in (run_dir / "checkpoints").glob("step_*")}
    assert best in kept
    assert trainer["best_score"] == max(scores.values())


def test_resuming_an_older_checkpoint_leaves_no_newer_one_of_the_undone_future(run_dir):
    settings = {"checkpoint.every_env_steps": 1, "checkpoint.keep_last": 0}
    quick_train("CartPole-v1", run_dir, {"stop.updates": 6, **settings}, backend="serial")
    second = sorted((run_dir / "checkpoints").glob("step_*"))[1]
    result = millrace.resume(second, settings={"stop.updates": 3, "ppo.learning_rate": 0.01}, quiet=True)
    assert result.updates == 3
    newest, _ = RunDirectory(run_dir).newest_checkpoint()
    assert newest.env_steps == result.env_steps
    assert result.policy.checkpoint == newest.path


def test_a_crisis_in_one_worker_still_leaves_a_checkpoint_while_others_are_busy(tmp_path: Path):
    """The failing worker must not be revived, and fail once more, while the last checkpoint is being made."""
    env = functools.partial(Faulty, "raises", tokens(tmp_path / "tokens", 10_000), step_s=0.02)
    with pytest.raises(millrace.MillraceError, match=r"more than collect\.max_restarts=3"):
        quick_train(
            env,
            tmp_path / "run",
            {"collect.max_restarts": 3, "collect.restart_backoff_s": 0.001},
            backend="processes",
            workers=3,
            rollout_steps=16,
        )
    assert not RunDirectory(tmp_path / "run").newest_checkpoint()[1]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "worker failures"


def test_a_vector_environment_of_the_users_own_can_be_evaluated(run_dir):
    result = quick_train(PileRounds, run_dir, {"stop.updates": 1}, backend="serial")
    assert len(millrace.evaluate(result.policy, PileRounds, episodes=6).returns) == 6


@pytest.mark.parametrize(
    ("stop", "reason"),
    [
        ({"stop.updates": 3}, "stop.updates=3"),
        ({"stop.episodes": 9}, "stop.episodes=9"),
        ({"stop.wall_s": 0.01}, "wall_s"),
    ],
)
def test_a_run_stops_for_the_reason_that_it_gives(stop, reason, run_dir):
    result = quick_train(OneStep, run_dir, stop, backend="serial")
    assert reason in result.reason
    assert result.env_steps == rows_of(run_dir)[-1]["env_steps"]


def test_a_run_stops_at_its_total_of_environment_steps(run_dir):
    result = quick_train("CartPole-v1", run_dir, backend="serial", total_env_steps=100)
    assert result.reason == "complete"
    assert 100 <= result.env_steps < 100 + 32


def test_initial_weights_come_from_another_run_and_its_counters_do_not(tmp_path: Path):
    normalized = {"ppo.normalize_observation": True}
    quick_train("CartPole-v1", tmp_path / "old", {"stop.updates": 4, **normalized}, backend="serial")
    result = quick_train(
        "CartPole-v1",
        tmp_path / "new",
        {"stop.updates": 1, "ppo.learning_rate": 1e-12, **normalized},
        backend="serial",
        init_from=tmp_path / "old",
    )
    old, new = learned(tmp_path / "old")["policy"], learned(tmp_path / "new")["policy"]
    assert result.updates == 1
    for name in old:
        if name.startswith("network"):
            np.testing.assert_allclose(new[name], old[name], atol=1e-9)
    rows = "normalizer.[obs].row_count"
    assert new[rows] == old[rows] + result.env_steps


def test_a_trainer_survives_workers_that_are_killed_again_and_again(run_dir):
    with opened(Clock, run_dir, **{"collect.backend": "processes", "collect.max_policy_lag": 1}) as run:
        pool = run.source.pool
        for number in range(5):
            os.kill(pool.pids()[0], signal.SIGKILL)
            while run.source.counts.restarts <= number or not all(pool.is_up(worker) for worker in range(2)):
                batch = run.source.next_batch()
                assert batch.lag <= 1
                run.learner.update(batch, 0)
                run.publish()
        assert run.source.counts.restarts == 5
