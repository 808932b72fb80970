"""Disks that fill up and files that rot: training goes on, and the last good checkpoint stays good."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import millrace
from helpers import differences, learned, log_of, quick_train, rows_of
from millrace.checkpoints import store
from millrace.checkpoints.store import Checkpoint, find_checkpoints
from millrace.errors import CheckpointError
from millrace.rundir import RunDirectory

FILES = ["policy.json", "policy.safetensors", "trainer.json", "trainer.safetensors", "manifest.json"]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six updates with a checkpoint after each."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    settings = {"stop.updates": 6, "checkpoint.every_env_steps": 1, "checkpoint.keep_last": 0}
    quick_train("CartPole-v1", directory, settings, backend="serial")
    return directory


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def checkpoints(run: Path) -> list[Checkpoint]:
    return find_checkpoints(run / "checkpoints")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(bytes(content))


DAMAGES = {"truncated": truncate, "empty": empty, "a bit flipped": flip_a_bit, "gone": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_falls_back_to_the_last_good_checkpoint(name, damage, run):
    before, last = checkpoints(run)[-2:]
    DAMAGES[damage](last.path / name)
    found, problems = RunDirectory(run).newest_checkpoint()
    if name == "manifest.json" and damage == "a bit flipped" and not problems:
        # The bit hit something without meaning, such as a space: then nothing is lost.
        assert found.path == last.path
        assert found.read_policy()
        return
    assert found.path == before.path
    if name != "manifest.json" or damage != "gone":
        (problem,) = problems
        assert str(last.path) in problem
    assert millrace.load_policy(run).checkpoint == before.path


def test_resuming_past_a_damaged_checkpoint_says_so_and_equals_never_having_stopped(run, finished_run):
    truncate(checkpoints(run)[-1].path / "trainer.safetensors")
    millrace.resume(run, settings={"stop.updates": 6}, quiet=True)
    assert "trainer.safetensors is damaged" in log_of(run)
    # The damaged one has been replaced by a good one of the same step.
    assert not differences(learned(run), learned(finished_run))


def test_damage_to_every_checkpoint_is_an_error_with_a_sentence(run):
    for checkpoint in checkpoints(run):
        truncate(checkpoint.path / "policy.safetensors")
    with pytest.raises(CheckpointError, match=r"there is no whole checkpoint in .*is damaged"):
        millrace.resume(run, quiet=True)
    with pytest.raises(CheckpointError, match="there is no whole checkpoint"):
        millrace.load_policy(run)


def test_a_named_checkpoint_that_is_damaged_is_refused_and_not_replaced_by_another(run):
    last = checkpoints(run)[-1]
    flip_a_bit(last.path / "policy.safetensors")
    with pytest.raises(CheckpointError, match="is damaged"):
        millrace.load_policy(last.path)
    with pytest.raises(CheckpointError, match="is damaged"):
        millrace.resume(last.path, settings={"stop.updates": 7}, quiet=True)


def test_a_half_written_checkpoint_is_none(run):
    last = checkpoints(run)[-1]
    shutil.copytree(last.path, run / "checkpoints" / ".step_000099999999.writing")
    (run / "checkpoints" / "step_000088888888").mkdir()
    found, problems = RunDirectory(run).newest_checkpoint()
    assert found.path == last.path
    assert not problems


def test_a_checkpoint_of_a_newer_format_says_which_version_wrote_it(run):
    last = checkpoints(run)[-1]
    manifest = json.loads((last.path / "manifest.json").read_text())
    manifest |= {"format_version": 99, "millrace_version": "7.5"}
    (last.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"format 99.*written by millrace 7\.5"):
        millrace.load_policy(last.path)


def test_a_checkpoint_of_another_network_is_refused(run):
    with pytest.raises(CheckpointError, match="does not fit this network"):
        millrace.resume(run, settings={"net.hidden": [32], "stop.updates": 7}, quiet=True)


def test_loading_a_policy_needs_only_its_own_files(run):
    expected = millrace.load_policy(run).value(np.zeros(4, np.float32))
    last = checkpoints(run)[-1]
    for name in ("trainer.json", "trainer.safetensors"):
        (last.path / name).unlink()
    np.testing.assert_array_equal(millrace.load_policy(last.path).value(np.zeros(4, np.float32)), expected)


def test_no_file_of_a_checkpoint_is_a_pickle(run):
    for name in FILES:
        content = (checkpoints(run)[-1].path / name).read_bytes()
        if name.endswith(".json"):
            assert isinstance(json.loads(content), dict)
        else:
            header = int.from_bytes(content[:8], "little")
            assert all(
                "dtype" in entry for key, entry in json.loads(content[8 : 8 + header]).items() if key != "__metadata__"
            )


class FullDisk:
    """Refuses some of the files that checkpoints write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, full_at: set[int]) -> None:
        self.full_at, self.writes, self.write = full_at, 0, store._write_synced
        monkeypatch.setattr(store, "_write_synced", self)

    def __call__(self, path: Path, content: bytes):
        self.writes += 1
        if self.writes in self.full_at:
            path.write_bytes(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.write(path, content)


@pytest.mark.parametrize("full_at", [6, 7, 8, 9, 10])
def test_a_full_disk_costs_one_checkpoint_and_nothing_else(full_at, run_dir, monkeypatch):
    """Five files a checkpoint: the second one fails, at each of its files."""
    FullDisk(monkeypatch, {full_at})
    settings = {"stop.updates": 4, "checkpoint.every_env_steps": 1, "checkpoint.keep_last": 0}
    result = quick_train("CartPole-v1", run_dir, settings, backend="serial")
    assert result.updates == 4
    assert "no checkpoint could be written" in log_of(run_dir)
    assert "No space left on device" in log_of(run_dir)
    steps = [row["env_steps"] for row in rows_of(run_dir)]
    written = checkpoints(run_dir)
    assert [checkpoint.env_steps for checkpoint in written] == [steps[0], *steps[2:]]
    for checkpoint in written:
        checkpoint.verify()
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == [c.path.name for c in written]


def test_a_disk_that_stays_full_leaves_the_last_good_checkpoint_good(run_dir, monkeypatch):
    FullDisk(monkeypatch, set(range(6, 1000)))
    settings = {"stop.updates": 4, "checkpoint.every_env_steps": 1, "checkpoint.keep_last": 1}
    result = quick_train("CartPole-v1", run_dir, settings, backend="serial")
    assert result.updates == 4
    found, problems = RunDirectory(run_dir).newest_checkpoint()
    assert not problems
    assert found.env_steps == rows_of(run_dir)[0]["env_steps"]
    monkeypatch.undo()
    assert millrace.resume(run_dir, settings={"stop.updates": 5}, quiet=True).updates == 5


def test_metrics_that_cannot_be_written_are_told_about_once_and_training_goes_on(run_dir, monkeypatch):
    from millrace.metrics import sinks

    def full(self, row):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sinks.JsonLinesSink, "write", full)
    with pytest.warns(UserWarning, match="JsonLinesSink failed and is left out") as caught:
        result = quick_train("CartPole-v1", run_dir, {"stop.updates": 4}, backend="serial")
    assert len(caught) == 1
    assert result.updates == 4
    assert RunDirectory(run_dir).newest_checkpoint()[1] == []


def test_a_run_directory_that_cannot_be_made_is_an_error_with_a_way_out(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(millrace.MillraceError, match=r"cannot write the run directory .*choose --run-dir"):
        quick_train("CartPole-v1", tmp_path / "file" / "run", backend="serial")


def test_old_checkpoints_are_deleted_and_each_deletion_is_logged(run_dir):
    settings = {"stop.updates": 6, "checkpoint.every_env_steps": 1, "checkpoint.keep_last": 2}
    quick_train("CartPole-v1", run_dir, settings, backend="serial")
    steps = [int(row["env_steps"]) for row in rows_of(run_dir)]
    kept = {checkpoint.env_steps for checkpoint in checkpoints(run_dir)}
    best = json.loads((checkpoints(run_dir)[-1].path / "trainer.json").read_text())["best_env_steps"]
    assert kept == {*steps[-2:]} | ({best} & {*steps})
    for step in set(steps) - kept:
        assert f"deleted the checkpoint step_{step:012d}" in log_of(run_dir)


def test_one_checkpoint_in_so_many_steps_is_kept_for_good(run_dir):
    settings = {
        "stop.updates": 8,
        "checkpoint.every_env_steps": 1,
        "checkpoint.keep_last": 1,
        "checkpoint.keep_every_env_steps": 64,
    }
    quick_train("CartPole-v1", run_dir, settings, backend="serial")
    buckets = {checkpoint.env_steps // 64 for checkpoint in checkpoints(run_dir)}
    assert buckets == set(range(rows_of(run_dir)[-1]["env_steps"] // 64 + 1))
