"""What is said of a machine, fact by fact; and that the facts are read."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from millrace import system
from millrace.cli.main import main
from millrace.doctor import machine as machines
from millrace.doctor.findings import Finding, exit_code
from millrace.doctor.machine import GB, MB, Machine, judge, judge_disk, torch_finding
from millrace.doctor.packages import Requirement, extra_findings, version_findings

FIT = Machine(
    cores=8,
    core_quota=None,
    memory_bytes=16 * GB,
    memory_left_bytes=12 * GB,
    memory_limit_bytes=None,
    shared_bytes=(8 * GB, 8 * GB),
    shared_leftovers=(),
    has_memory_files=True,
    open_files=1024,
    ray_processes={},
    ray_sessions=(),
    start_problem="",
)


def test_a_machine_that_is_fit_gives_no_cause_for_thought() -> None:
    assert {finding.level for finding in judge(FIT)} == {"ok"}


@pytest.mark.parametrize(
    ("facts", "subject", "level", "said", "remedy"),
    [
        ({"core_quota": 2.5}, "cores", "warning", "the time of 2.5 only", "--workers 1"),
        ({"memory_left_bytes": 300 * MB}, "memory", "warning", "300 MB of 16.0 GB left", "--workers"),
        ({"memory_limit_bytes": 600 * MB}, "memory", "warning", "600 MB of 600 MB left", "--workers"),
        ({"memory_bytes": 0}, "memory", "note", "does not tell", ""),
        (
            {"shared_leftovers": (Path("/dev/shm/psm_1"),)},
            "shared memory",
            "warning",
            "1 segments",
            "rm /dev/shm/psm_1",
        ),
        (
            {"has_memory_files": False, "shared_bytes": (64 * MB, 60 * MB)},
            "shared memory",
            "warning",
            "60 MB of 64 MB left",
            "--shm-size",
        ),
        ({"open_files": 64}, "open files", "warning", "only 64", "ulimit -n"),
        ({"start_problem": "no process can be started: no"}, "workers", "error", "no process", "--backend serial"),
        ({"ray_processes": {7: "raylet"}}, "ray", "note", "raylet 7", "ray stop"),
        ({"ray_sessions": (Path("/tmp/ray/session_1"),)}, "ray", "note", "1 sessions", "rm -r /tmp/ray"),
    ],
)
def test_each_fact_that_matters_has_its_sentence(
    facts: dict[str, Any], subject: str, level: str, said: str, remedy: str
) -> None:
    others = [finding for finding in judge(replace(FIT, **facts)) if finding.level != "ok"]
    assert [(finding.subject, finding.level) for finding in others] == [(subject, level)]
    assert said in others[0].what
    assert remedy in others[0].remedy


@pytest.mark.parametrize(
    ("left_bytes", "bytes_per_s", "level", "remedy"),
    [
        (10 * GB, 300 * MB, "ok", ""),
        (500 * MB, 300 * MB, "warning", "--checkpoint.keep_last"),
        (10 * GB, 2 * MB, "warning", "--checkpoint.every_s"),
        (50 * MB, 0, "error", "--run-dir"),
    ],
)
def test_a_disk_may_be_full_nearly_full_or_slow(left_bytes: int, bytes_per_s: float, level: str, remedy: str) -> None:
    finding = judge_disk(Path("/runs"), left_bytes, bytes_per_s)
    assert finding.level == level
    assert remedy in finding.remedy


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(place: Path) -> float:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machines, "_writing_bytes_per_s", refuse)
    finding = machines.disk_finding(tmp_path / "not" / "yet")
    assert (finding.level, finding.what) == ("error", f"{tmp_path} cannot be written: Permission denied")


@pytest.mark.parametrize(
    ("facts", "level", "said"),
    [
        ({"version": "2.6", "cuda": "", "devices": []}, "ok", "for the CPU"),
        ({"version": "2.6", "cuda": "12.4", "devices": []}, "note", "no device that it can use"),
        (
            {"version": "2.6", "cuda": "12.4", "devices": [["H", 100 * MB, 80 * GB]]},
            "warning",
            "100 MB of 80.0 GB left",
        ),
        ({"version": "2.6", "cuda": "12.4", "devices": [["H", 70 * GB, 80 * GB]]}, "ok", "H with 70.0 GB"),
        ({"problem": "it does not load: no"}, "error", "does not load"),
    ],
)
def test_torch_may_be_without_a_device_or_the_device_without_memory(
    facts: dict[str, Any], level: str, said: str
) -> None:
    finding = torch_finding(facts)
    assert finding.level == level
    assert said in finding.what


def test_a_torch_that_dies_while_it_loads_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "TORCH_SCRIPT", "import os; os.abort()")
    assert machines.torch_facts() == {"problem": "it does not load: exit code -6"}


@pytest.mark.parametrize(
    ("line", "requirement"),
    [
        ("numpy>=1.26", Requirement("numpy", (), "1.26", "", True)),
        ("imageio[ffmpeg]>=2.31; extra == 'video'", Requirement("imageio", ("ffmpeg",), "2.31", "video", True)),
        ("tomli>=2; python_version < '3.9'", Requirement("tomli", (), "2", "", False)),
        ('box2d==2.3; python_version >= "3.9" and extra == "box2d"', Requirement("box2d", (), "", "box2d", True)),
    ],
)
def test_a_line_of_metadata_is_understood(line: str, requirement: Requirement) -> None:
    assert Requirement.parse(line) == requirement


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("no-such-package-of-ours>=1", "no-such-package-of-ours is not installed"),
        ("numpy>=999.1", f"numpy {metadata.version('numpy')} is older than 999.1"),
        ("numpy>=1.26", ""),
    ],
)
def test_what_is_missing_or_too_old_is_a_problem(line: str, problem: str) -> None:
    assert Requirement.parse(line).problem() == problem


def test_missing_packages_are_errors_and_missing_extras_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy>=999", "tensorboard>=2; extra == 'board'", "nonesuch; extra == 'none'", "nonesuch; extra == 'dev'"]
    monkeypatch.setattr(metadata, "requires", lambda package: lines)
    monkeypatch.setattr(metadata, "metadata", lambda package: _Extras())
    versions = list(version_findings())
    assert [finding.level for finding in versions] == ["error"]
    assert exit_code(versions) == 6
    assert [(f.level, f.subject, f.remedy) for f in extra_findings()] == [
        ("ok", "extra board", ""),
        ("note", "extra none", "pip install 'millrace[none]', if wanted"),
    ]


class _Extras:
    def get_all(self, name: str) -> list[str]:
        assert name == "Provides-Extra"
        return ["board", "none", "dev"]


def test_an_uninstalled_copy_says_that_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_not_found(package: str) -> None:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "requires", raise_not_found)
    assert [finding.level for finding in version_findings()] == ["note"]


def test_limits_of_a_container_are_read_in_both_versions(tmp_path: Path) -> None:
    assert (system.core_quota(tmp_path), system.memory_limit_bytes(tmp_path)) == (None, None)
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert (system.core_quota(tmp_path), system.memory_limit_bytes(tmp_path)) == (1.5, None)
    for folder in ("cpu", "memory"):
        (tmp_path / folder).mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{GB}\n")
    assert (system.core_quota(tmp_path), system.memory_limit_bytes(tmp_path)) == (1.5, GB)


def test_shared_memory_is_left_over_where_nobody_holds_it(tmp_path: Path) -> None:
    (tmp_path / "psm_12345678").write_bytes(b"1")
    (tmp_path / "somebody_elses").write_bytes(b"1")
    assert list(machines.unheld_segments(tmp_path)) == [tmp_path / "psm_12345678"]


def test_a_lock_tells_whether_it_is_held_without_taking_it(tmp_path: Path) -> None:
    lock = system.FileLock(tmp_path / "lock")
    assert not lock.is_held()
    assert not (tmp_path / "lock").exists()
    lock.acquire()
    assert system.FileLock(tmp_path / "lock").is_held()
    lock.release()
    assert not lock.is_held()


def test_the_command_examines_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], nothing_left_behind: None
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main(["doctor", "--json"])
    findings = [Finding(**finding) for finding in json.loads(capfd.readouterr().out)["findings"]]
    assert code == exit_code(findings)
    subjects = {finding.subject: finding for finding in findings}
    assert {"cores", "memory", "shared memory", "open files", "workers", "disk", "torch"} <= subjects.keys()
    assert subjects["workers"].level == "ok"
    assert subjects["torch"].level in ("ok", "note", "warning")
    assert str(tmp_path) in subjects["disk"].what
    assert list(tmp_path.iterdir()) == []
