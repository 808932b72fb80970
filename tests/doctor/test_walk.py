"""What hangs or kills is survived and named; what is damaged is gone around."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from millrace.checkpoints.store import Checkpoint
from millrace.cli.main import main
from millrace.deploy.archive import write_archive
from millrace.doctor.findings import Finding, exit_code
from millrace.doctor.loading import STAGES
from millrace.doctor.policies import examine
from millrace.doctor.walk import walk
from millrace.errors import CheckpointError
from millrace.rundir import RunDirectory

DEADLINE_S = 60.0
HANGS_S = 10.0  # for a process to start in; the game that hangs never ends


def by_subject(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings}


def checkpoints(run: Path) -> list[Path]:
    """Newest first."""
    return sorted((run / "checkpoints").glob("step_*"), reverse=True)


def damage(checkpoint: Path) -> None:
    (checkpoint / "policy.safetensors").write_bytes(b"rubbish")


@pytest.mark.parametrize(
    ("game", "said"),
    [
        ("hangs", "did not finish within 10 s, in hangs (broken_games.py, line "),
        ("is_killed", "was killed by SIGKILL"),
        ("segfaults", "was killed by SIGSEGV, in string_at"),
        ("exits", "ended with exit code 7; it said last: the licence has expired"),
    ],
)
def test_an_environment_that_hangs_or_kills_is_named_and_the_rest_still_looked_at(
    newest: Path, game: str, said: str, nothing_left_behind: None
) -> None:
    findings = list(walk(newest, f"broken_games:{game}", HANGS_S))
    assert [finding.subject for finding in findings] == list(STAGES)
    environment = by_subject(findings)["environment"]
    assert environment.level == "error"
    assert said in environment.what
    assert "--env ENV" in environment.remedy
    assert exit_code(findings) == 3
    assert by_subject(findings)["inference"].level == "ok"


def test_what_a_game_prints_is_not_taken_for_a_finding(newest: Path) -> None:
    findings = list(walk(newest, "broken_games:prints", DEADLINE_S))
    assert "other spaces" in by_subject(findings)["environment"].what
    assert [finding.subject for finding in findings] == list(STAGES)


def test_a_damaged_newest_checkpoint_is_gone_around_to_the_one_before(run: Path) -> None:
    newest, before, _ = checkpoints(run)
    damage(newest)
    findings = list(examine(run, "", DEADLINE_S))
    assert exit_code(findings) == 4
    assert [finding.what for finding in findings if finding.subject == "policy"] == [
        str(newest),
        f"falling back on {before}",
    ]
    verdict = by_subject(findings)["verdict"]
    assert verdict.level == "ok"
    assert f"{before.name} loads, acts and can be resumed" in verdict.what
    assert verdict.remedy == f"millrace resume {before}"


def test_a_policy_without_its_environment_acts_and_needs_one_to_be_resumed(run: Path) -> None:
    findings = list(examine(run, "broken_games:raises", DEADLINE_S))
    verdict = by_subject(findings)["verdict"]
    assert (verdict.level, exit_code(findings)) == ("warning", 3)
    assert "loads and acts; to play, and to be resumed, it needs an environment" in verdict.what


def test_an_exported_policy_loads_and_acts_by_itself(newest: Path, tmp_path: Path) -> None:
    record, arrays = Checkpoint(newest).read_policy()
    path = write_archive(tmp_path / "agent.millrace", record, arrays, 7, "0.1").path
    findings = list(examine(path, "", DEADLINE_S))
    assert exit_code(findings) == 0
    assert by_subject(findings)["verdict"].what == "it loads and acts"
    path.write_bytes(path.read_bytes()[:-500])
    assert exit_code(list(examine(path, "", DEADLINE_S))) == 4


def test_a_run_of_which_nothing_loads_says_so(run: Path) -> None:
    for checkpoint in checkpoints(run):
        damage(checkpoint)
    verdict = by_subject(list(examine(run, "", DEADLINE_S)))["verdict"]
    assert (verdict.level, verdict.what) == ("error", "none of the 3 checkpoints loads")


def test_a_checkpoint_without_its_manifest_is_not_passed_over_in_silence(run: Path) -> None:
    newest, before, _ = checkpoints(run)
    (newest / "manifest.json").unlink()
    findings = list(examine(run, "", DEADLINE_S))
    assert RunDirectory(run).newest_checkpoint()[0].path == before
    assert "files are whole" in next(f.what for f in findings if f.level == "error")
    assert before.name in by_subject(findings)["verdict"].what


def test_a_policy_without_its_trainer_acts_and_cannot_be_resumed(newest: Path) -> None:
    (newest / "trainer.safetensors").unlink()
    findings = list(examine(newest, "", DEADLINE_S))
    verdict = by_subject(findings)["verdict"]
    assert (verdict.level, exit_code(findings)) == ("warning", 0)
    assert "acts, and cannot be resumed" in verdict.what
    assert main(["eval", str(newest), "--episodes", "1"]) == 0


def test_a_run_without_checkpoints_says_how_to_go_on(run: Path) -> None:
    for checkpoint in checkpoints(run):
        (checkpoint / "manifest.json").unlink()
        checkpoint.rename(run / f"gone-{checkpoint.name}")
    finding = next(iter(examine(run, "", DEADLINE_S)))
    assert (finding.level, finding.exit_code) == ("error", 4)
    assert finding.remedy == f"train again: `millrace train {run / 'config.toml'}` has its settings"
    lock = RunDirectory(run).lock
    lock.acquire()
    try:
        assert next(iter(examine(run, "", DEADLINE_S))).level == "note"
    finally:
        lock.release()


def test_what_is_no_run_is_refused_and_the_runs_in_it_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        next(examine(tmp_path / "nowhere", "", DEADLINE_S))
    with pytest.raises(CheckpointError, match=r"config.toml is no policy"):
        next(examine(run / "config.toml", "", DEADLINE_S))
    with pytest.raises(CheckpointError, match=f"it holds runs, name one of them: {run}"):
        next(examine(tmp_path, "", DEADLINE_S))


def test_the_command_prints_each_finding_and_leaves_with_the_code_of_the_first_error(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(run)]) == 0
    printed = capfd.readouterr().out
    assert all(f"ok       {stage}" in printed for stage in STAGES)
    damage(checkpoints(run)[0])
    assert main(["doctor", str(run), "--json"]) == 4
    findings = json.loads(capfd.readouterr().out)["findings"]
    assert {"level": "error", "subject": "digests"}.items() <= findings[3].items()
    assert findings[3]["remedy"] == "use an earlier checkpoint"
    assert main(["doctor", str(run), "--deadline-s", "0"]) == 2
    assert main(["doctor", str(run / "nowhere")]) == 4
