"""The trainer itself is interrupted or killed: what a second process finds, and what it must not find."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import millrace
from helpers import opened, quick_train, rows_of
from millrace.errors import CheckpointError, RunLockedError
from millrace.rundir import RunDirectory
from toys import Clock

TESTS = Path(__file__).parent.parent
SCRIPT = """
import functools, sys
import millrace, millrace.stop_signal, toys
from helpers import quick_train
if __name__ == "__main__":
    run_dir, updates, step_s, grace_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    millrace.stop_signal.STOP_GRACE_S = grace_s
    env = functools.partial(toys.Faulty, step_s=step_s)
    settings = {"stop.updates": updates, "checkpoint.every_env_steps": 64, "checkpoint.keep_last": 3}
    result = quick_train(env, run_dir, settings, backend="processes", auto_resume=True)
    print("reason:", result.reason, flush=True)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    """Starts a trainer in a process of its own; whatever is left of it at the end is killed."""
    started: list[subprocess.Popen] = []
    script = tmp_path / "trainer.py"
    script.write_text(SCRIPT)

    def start(run_dir: Path, updates: int = 10**6, step_s: float = 0.0, grace_s: float = 10.0) -> subprocess.Popen:
        path = os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])
        command = [sys.executable, str(script), str(run_dir), str(updates), str(step_s), str(grace_s)]
        process = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            for child in [*workers_of(process), process]:
                child.kill()
        process.communicate()


def wait_for(condition, process: subprocess.Popen | None = None) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s, "waited a minute in vain"
        assert process is None or process.poll() is None, process.stderr.read()
        time.sleep(0.02)


def has_rows(run_dir: Path, count: int):
    def condition() -> bool:
        try:
            return len(rows_of(run_dir)) >= count
        except (OSError, ValueError):
            return False

    return condition


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def all_gone(processes: list[psutil.Process]):
    return lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


def kill_and_resume(start, run_dir: Path, kills: int, seed: int) -> None:
    """After each kill the newest whole checkpoint is at most two updates behind; the next process starts from it."""
    rng = random.Random(seed)
    steps_an_update = 2 * 2 * 8
    for _ in range(kills):
        process = start(run_dir)
        time.sleep(rng.uniform(0.0, 3.0))
        children = workers_of(process)
        process.kill()
        process.communicate()
        wait_for(all_gone(children))
        if not (run_dir / "metrics.jsonl").exists() or not list((run_dir / "checkpoints").glob("step_*")):
            continue
        saved, problems = RunDirectory(run_dir).newest_checkpoint()
        assert not problems
        whole_lines = (run_dir / "metrics.jsonl").read_text().rpartition("\n")[0]
        done = json.loads(whole_lines.splitlines()[-1])["env_steps"]
        assert done - saved.env_steps <= 64 + 2 * steps_an_update
    process = start(run_dir)
    saved_steps = 0
    with contextlib.suppress(CheckpointError):  # killed before the first one
        saved_steps = RunDirectory(run_dir).newest_checkpoint()[0].env_steps
    if saved_steps:
        told = f"resumed at {saved_steps:,} steps, exactly where it stopped"
        wait_for(lambda: told in (run_dir / "log.txt").read_text(), process)
    rows = len(whole_rows(run_dir))
    wait_for(lambda: len(whole_rows(run_dir)) > rows, process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert "reason: stopped by SIGINT" in output, errors


def whole_rows(run_dir: Path) -> list[dict]:
    try:
        lines = (run_dir / "metrics.jsonl").read_text().rpartition("\n")[0].splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # cut off by a kill, with the next process's first row behind it
    return found


def test_a_killed_trainer_loses_at_most_the_work_since_the_last_checkpoint(start, run_dir):
    kill_and_resume(start, run_dir, kills=4, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_kills_lose_at_most_the_work_since_the_last_checkpoint_each(start, run_dir):
    kill_and_resume(start, run_dir, kills=20, seed=1)


def test_workers_do_not_outlive_a_killed_trainer_even_in_a_step_that_takes_long(start, run_dir):
    process = start(run_dir, step_s=0.2)
    wait_for(has_rows(run_dir, 1), process)
    children = workers_of(process)
    assert len(children) >= 2
    process.kill()
    process.communicate()
    wait_for(all_gone(children))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_at_the_update_boundary_with_a_checkpoint(number, start, run_dir):
    process = start(run_dir)
    wait_for(has_rows(run_dir, 3), process)
    children = workers_of(process)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert f"reason: stopped by {number.name}" in output
    assert "once more leaves at once" in errors
    wait_for(all_gone(children))
    last = rows_of(run_dir)[-1]
    assert RunDirectory(run_dir).newest_checkpoint()[0].env_steps == last["env_steps"]
    assert json.loads((run_dir / "status.json").read_text())["state"] == f"stopped by {number.name}"
    # Nothing was dropped: it goes on exactly where it stopped.
    result = millrace.resume(run_dir, env=Clock, settings={"stop.updates": last["updates"] + 1}, quiet=True)
    assert result.updates == last["updates"] + 1
    assert "exactly where it stopped" in (run_dir / "log.txt").read_text()


def test_a_boundary_too_far_away_is_not_waited_for(start, run_dir):
    """The rollouts in hand are dropped, the last boundary is saved, and the next process hears of the episodes cut."""
    process = start(run_dir, step_s=1.0, grace_s=0.5)  # sixteen seconds a rollout
    wait_for(lambda: (run_dir / "status.json").exists(), process)
    time.sleep(1.5)
    children = workers_of(process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=9)
    assert "reason: stopped by SIGINT" in output, errors
    wait_for(all_gone(children))
    assert RunDirectory(run_dir).newest_checkpoint()[0].env_steps == 0
    result = millrace.resume(run_dir, env=Clock, settings={"stop.updates": 2}, quiet=True)
    assert result.updates == 2
    assert "begun anew" in (run_dir / "log.txt").read_text()


def test_a_second_signal_leaves_at_once(start, run_dir):
    process = start(run_dir, step_s=1.0)
    wait_for(lambda: (run_dir / "status.json").exists(), process)
    children = workers_of(process)
    process.send_signal(signal.SIGINT)
    assert "once more leaves at once" in next(line for line in process.stderr if "leaves" in line)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=9)  # its first rollout would take sixteen seconds, its grace ten
    assert process.returncode == 130
    wait_for(all_gone(children))


def test_a_run_directory_has_one_trainer_at_a_time(start, run_dir):
    process = start(run_dir)
    wait_for(has_rows(run_dir, 5), process)
    with pytest.raises(RunLockedError, match=f"is being trained by process {process.pid}"):
        millrace.resume(run_dir, env=Clock, quiet=True)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    # Its lock went with it.
    millrace.resume(run_dir, env=Clock, settings={"stop.updates": 1}, quiet=True)


def test_the_lock_holds_within_one_process_and_is_released_after_a_failure(run_dir):
    with opened(Clock, run_dir), pytest.raises(RunLockedError, match=f"process {os.getpid()}"):
        quick_train(Clock, run_dir, {"stop.updates": 1}, backend="serial")
    with pytest.raises(millrace.MillraceError, match="does not divide"):
        quick_train(Clock, run_dir, {"ppo.minibatch_size": 7}, backend="serial")
    assert quick_train(Clock, run_dir, {"stop.updates": 1}, backend="serial").updates == 1


def test_a_run_that_holds_checkpoints_is_not_overwritten(run_dir):
    quick_train(Clock, run_dir, {"stop.updates": 1}, backend="serial")
    with pytest.raises(millrace.MillraceError, match="already holds a run"):
        quick_train(Clock, run_dir, {"stop.updates": 1}, backend="serial")
    again = quick_train(Clock, run_dir, {"stop.updates": 2}, backend="serial", auto_resume=True)
    assert again.updates == 2
