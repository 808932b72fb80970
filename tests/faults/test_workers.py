"""Workers that raise, die, hang or never start: counted, restarted, told about, and never waited for without end."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from pathlib import Path

import pytest

import millrace
from helpers import learned, log_of, opened, quick_train, rows_of
from millrace.errors import WorkerError
from millrace.rundir import RunDirectory
from toys import Clock, Faulty, Treacherous, Uneven, tokens

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

DEADLY = {
    "raises": "ValueError: the dragon has no head",
    "exits": "ended with exit code 7",
    "leaves": "ended with exit code 1",
    "kills itself": "ended by signal 9",
    "hangs": "no step finished within collect.step_timeout_s=1",
    "segfaults": "ended by signal 11",
}


def crashes(run_dir: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((run_dir / "crashes").glob("*.json"))]


@pytest.mark.parametrize("kind", DEADLY)
def test_training_survives_a_worker_that(kind, run_dir, tmp_path):
    env = functools.partial(Faulty, kind, tokens(tmp_path / "tokens", 1))
    result = quick_train(env, run_dir, {"stop.updates": 12, "collect.step_timeout_s": 1.0}, backend="processes")
    assert result.updates == 12
    last = rows_of(run_dir)[-1]
    assert last["restarts"] == 1
    assert last["lost_rollouts"] >= 1
    (crash,) = crashes(run_dir)
    assert DEADLY[kind] in crash["message"]
    assert DEADLY[kind] in log_of(run_dir)
    assert "restarted; reproduce: millrace replay" in log_of(run_dir)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("max_policy_lag", [0, 1])
@pytest.mark.parametrize("kind", ["raises", "kills itself"])
def test_training_survives_with_any_number_of_workers_and_any_lag(kind, max_policy_lag, workers, run_dir, tmp_path):
    env = functools.partial(Faulty, kind, tokens(tmp_path / "tokens", 2))
    settings = {"stop.updates": 12, "collect.restart_backoff_s": 0.1}
    result = quick_train(env, run_dir, settings, backend="processes", workers=workers, max_policy_lag=max_policy_lag)
    assert result.updates == 12
    assert rows_of(run_dir)[-1]["restarts"] == 2


def test_training_in_one_process_survives_an_environment_that_raises(run_dir, tmp_path):
    env = functools.partial(Faulty, "raises", tokens(tmp_path / "tokens", 2))
    result = quick_train(env, run_dir, {"stop.updates": 12}, backend="serial")
    assert result.updates == 12
    assert rows_of(run_dir)[-1]["restarts"] == 2
    assert len(crashes(run_dir)) == 2


def test_the_rows_of_a_lost_worker_count_for_nothing(run_dir, tmp_path):
    env = functools.partial(Faulty, "raises", tokens(tmp_path / "tokens", 1))
    with opened(env, run_dir, **{"collect.backend": "processes"}) as run:
        steps = 0
        while not run.source.counts.missing_rollouts:
            batch = run.source.next_batch()
            run.learner.update(batch, steps)
            run.publish()
        lost = [i for i, (_, block) in enumerate(batch.blocks()) if not block.valid.any()]
        assert len(lost) == 1
        block = batch.blocks()[lost[0]][1]
        assert not block.reward.any()
        assert batch.blocks()[1 - lost[0]][1].valid.any()
        assert batch.env_steps == batch.rollout.valid.sum()


def test_a_worker_killed_from_outside_is_replaced_and_the_others_go_on(run_dir):
    with opened(Clock, run_dir, **{"collect.backend": "processes", "collect.workers": 3}) as run:
        pool = run.source.pool
        before = pool.pids()
        assert len(before) == 3
        os.kill(before[1], signal.SIGKILL)
        versions = []
        while run.source.counts.restarts < 1 or not all(pool.is_up(worker) for worker in range(3)):
            batch = run.source.next_batch()
            versions.append(batch.rollout.valid.any())
            run.learner.update(batch, 0)
            run.publish()
        after = pool.pids()
        assert set(before) - set(after) == {before[1]}
        assert all(versions)  # the others never stopped
        (fault,) = pool.setup.faults
        assert fault.worker == 1
        assert "signal 9" in fault.message


def test_a_restarted_worker_does_not_repeat_what_it_has_collected_before(run_dir):
    with opened(Clock, run_dir, **{"collect.backend": "processes", "collect.workers": 1}) as run:

        def first_tags():
            return run.source.next_batch().rollout.observation["obs"][0, :, 0].tolist()

        first = first_tags()
        os.kill(run.source.pool.pids()[0], signal.SIGKILL)
        later = first_tags()
        while not any(later):  # updates without a row
            later = first_tags()
        assert set(first).isdisjoint(later)


@pytest.mark.parametrize("backend", ["serial", "processes"])
def test_a_used_up_budget_ends_the_run_with_a_checkpoint_and_the_workers_traceback(backend, run_dir, tmp_path):
    env = functools.partial(Faulty, "raises", tokens(tmp_path / "tokens", 1000), at_tick=6)
    with pytest.raises(WorkerError) as caught:
        quick_train(env, run_dir, {"collect.max_restarts": 2}, backend=backend)
    text = str(caught.value)
    assert "more than collect.max_restarts=2 allows" in text
    assert "The worker's own traceback" in text
    assert 'raise ValueError("the dragon has no head")' in text
    assert "toys.py" in text
    assert len(crashes(run_dir)) == 3
    checkpoint, problems = RunDirectory(run_dir).newest_checkpoint()
    assert not problems
    assert json.loads((run_dir / "status.json").read_text())["state"] == "worker failures"
    # With the environment repaired, the run goes on from there.
    updates = learned(run_dir)["learner"]["updates"]
    result = millrace.resume(run_dir, env=Clock, settings={"stop.updates": updates + 2}, quiet=True)
    assert result.updates == updates + 2
    assert result.env_steps > checkpoint.env_steps


def test_the_run_begins_with_the_workers_that_start_and_keeps_trying_the_others(run_dir, tmp_path):
    env = functools.partial(Faulty, "refuses to start", tokens(tmp_path / "tokens", 2))
    with opened(env, run_dir, **{"collect.backend": "processes", "collect.workers": 3}) as run:
        pool = run.source.pool
        while not all(pool.is_up(worker) for worker in range(3)):
            batch = run.source.next_batch()
            assert batch.rollout.valid.any()
            run.learner.update(batch, 0)
            run.publish()
        run.record_faults()
        assert pool.setup.policy.restarts == 2
    assert log_of(run_dir).count("the level file is missing (failed to start)") == 2


@pytest.mark.parametrize("settings", [{"collect.max_restarts": 3}, {"collect.restart_backoff_s": 0.5}])
def test_a_run_of_which_no_worker_can_start_ends_with_the_reason(settings, run_dir, tmp_path):
    """Also with the default budget, whose pauses would add up to minutes."""
    env = functools.partial(Faulty, "refuses to start", tokens(tmp_path / "tokens", 1000))
    with pytest.raises(WorkerError, match="the level file is missing") as caught:
        quick_train(env, run_dir, settings, backend="processes")
    assert 'raise OSError("the level file is missing")' in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        ("reward is nan", "serial"),
        ("observation is nan", "serial"),
        ("observation is None", "serial"),
        ("reward is None", "serial"),
        ("reward is None", "processes"),
    ],
)
def test_a_bad_value_is_counted_and_restarts_nobody(kind, backend, run_dir, tmp_path):
    env = functools.partial(Faulty, kind, tokens(tmp_path / "tokens", 2))
    result = quick_train(env, run_dir, {"stop.updates": 12}, backend=backend)
    last = rows_of(run_dir)[-1]
    assert result.updates == 12
    assert last["bad_values"] == 2
    assert last["restarts"] == 0
    assert last["skipped_steps"] == 0


@pytest.mark.parametrize("backend", ["serial", "processes"])
def test_a_bad_value_ends_the_run_where_that_is_asked(backend, run_dir, tmp_path):
    env = functools.partial(Faulty, "reward is None", tokens(tmp_path / "tokens", 1000))
    settings = {"env.on_bad_value": "refuse"}
    with pytest.raises(
        millrace.MillraceError, match=r"worker \d, step \d+.*slot \d, episode seed \d+: the reward is None"
    ) as caught:
        quick_train(env, run_dir, settings, backend=backend)
    assert "collect.max_restarts" not in str(caught.value)  # at once, not when the budget is used up


# A crash file reproduces the crash --------------------------------------------------------------------------------


def reproduces(slot: dict) -> bool:
    """Whether the last of the logged actions springs the trap, and none before it does."""
    env = Treacherous()
    env.reset(seed=slot["seed"])
    for i, action in enumerate(slot["actions"]):
        try:
            _, _, terminated, truncated, _ = env.step(action[0])
        except ZeroDivisionError:
            return i == len(slot["actions"]) - 1
        if terminated or truncated:
            return False
    return False


@pytest.mark.parametrize("backend", ["serial", "processes"])
@pytest.mark.parametrize("rollout_steps", [1, 3, 16])
def test_every_crash_file_reproduces_its_crash(rollout_steps, backend, run_dir):
    """Small rollouts, so that episodes begin and crash at each place of one."""
    steps = 480 if backend == "serial" else 240
    settings = {
        "stop.updates": steps // rollout_steps,
        "collect.max_restarts": 10_000,
        "metrics.every_s": 10.0,
        "collect.restart_backoff_s": 0.001,
        "ppo.epochs": 1,
        "ppo.minibatch_size": rollout_steps,
    }
    quick_train(Treacherous, run_dir, settings, backend=backend, rollout_steps=rollout_steps)
    files = crashes(run_dir)
    assert files
    for crash in files:
        assert "ZeroDivisionError: a trap" in crash["message"]
        assert 'raise ZeroDivisionError("a trap")' in crash["traceback"]
        assert [slot["slot"] for slot in crash["slots"]] == [0, 1]
        assert all(slot["complete"] for slot in crash["slots"])
        assert any(reproduces(slot) for slot in crash["slots"]), crash["slots"]


def test_a_crash_file_of_a_worker_in_halves_reproduces_its_crash(run_dir):
    """One half is a step ahead of the other, and each has seeds of its own."""
    settings = {
        "stop.updates": 80,
        "collect.inference": "central",
        "collect.max_restarts": 10_000,
        "metrics.every_s": 10.0,
        "collect.restart_backoff_s": 0.001,
        "ppo.epochs": 1,
        "ppo.minibatch_size": 3,
    }
    quick_train(Treacherous, run_dir, settings, backend="processes", rollout_steps=3)
    culprits = set()
    for crash in crashes(run_dir):
        assert [slot["slot"] for slot in crash["slots"]] == [0, 1]
        assert any(reproduces(slot) for slot in crash["slots"]), crash["slots"]
        culprits |= {slot["slot"] for slot in crash["slots"] if reproduces(slot)}
    assert culprits == {0, 1}


def test_an_episode_begun_before_a_resume_is_marked_as_incomplete_in_a_crash_file(run_dir):
    quick_train(functools.partial(Clock, 200, True), run_dir, {"stop.updates": 1}, backend="serial", workers=1)
    env = functools.partial(LateTrap, 200, True)
    millrace.resume(run_dir, env=env, settings={"stop.updates": 9, "collect.max_restarts": 100}, quiet=True)
    complete = [crash["slots"][0]["complete"] for crash in crashes(run_dir)]
    assert complete.count(False) == 1
    assert complete.count(True) >= 1  # the episodes begun after it


class LateTrap(Clock):
    def step(self, action):
        if self.ticks == 20:
            raise ZeroDivisionError("a late trap")
        return super().step(action)


def test_uneven_workers_do_not_starve_each_other(run_dir):
    result = quick_train(Uneven, run_dir, {"stop.updates": 15}, backend="processes", workers=2, max_policy_lag=1)
    last = rows_of(run_dir)[-1]
    assert result.updates == 15
    assert last["lost_rollouts"] == last["restarts"] == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_workers_share_no_descriptor_of_each_others_pipes(run_dir):
    """A worker that kept another's pipe open would hide its death."""
    with opened(Clock, run_dir, **{"collect.backend": "processes", "collect.workers": 3}) as run:
        sockets = []
        for pid in run.source.pool.pids():
            links = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
            sockets.append({link for link in links if link.startswith("socket:")})
        assert all(sockets)
        for i, mine in enumerate(sockets):
            for theirs in sockets[i + 1 :]:
                assert mine.isdisjoint(theirs)
