"""Which of a run's checkpoints loads, acts and can be resumed; what to fall back on where the newest does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from millrace.checkpoints.store import PREFIX
from millrace.deploy.policy import find_policy
from millrace.deploy.rllib_checkpoint import find_rllib
from millrace.doctor.findings import Finding
from millrace.doctor.health import examine_run
from millrace.doctor.walk import walk
from millrace.errors import CheckpointError
from millrace.system import FileLock

TRAINER_STAGES = ("files", "manifest", "digests")


@dataclass
class Walked:
    """One checkpoint, or exported policy, after the walk."""

    path: Path
    findings: list[Finding] = field(default_factory=list)

    @property
    def acts(self) -> bool:
        """Everything but the environment is as it should be, which it does without."""
        is_through = any(finding.subject == "inference" for finding in self.findings)
        return is_through and not any(f.level == "error" for f in self.findings if f.subject != "environment")

    @property
    def resumes(self) -> bool:
        return self.acts and not any(f.level == "warning" for f in self.findings if f.subject in TRAINER_STAGES)


def examine(path: Path, env: str, deadline_s: float, trust: bool = False) -> Iterator[Finding]:
    """Load an exported policy, a checkpoint, or a run's newest one and those before until one acts; then its health.

    Raises:
        CheckpointError: there is nothing of that name, or it is neither of them.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; name a run, a checkpoint or an exported policy")
    if path.is_file():
        find_policy(path)  # which says so where it is nothing of the kind
    rllib = find_rllib(path)
    if rllib is not None:
        find_policy(path, trust)  # which says so where it is not trusted
        yield from _examine_checkpoints([rllib.path], env, deadline_s, trust)
        if rllib.path != path:
            yield from examine_run(path)
        return
    if path.is_file() or path.name.startswith(PREFIX):
        yield from _examine_checkpoints([path], env, deadline_s)
        return
    if not (path / "config.toml").exists() and not (path / "checkpoints").is_dir():
        runs = sorted(str(config.parent) for config in path.glob("**/config.toml"))
        hint = f"; it holds runs, name one of them: {', '.join(runs[:3])}" if runs else ""
        raise CheckpointError(f"{path} is not a run{hint}")
    found = sorted((path / "checkpoints").glob(f"{PREFIX}*"), reverse=True)
    if found:
        yield from _examine_checkpoints(found, env, deadline_s)
    else:
        yield _no_checkpoint(path)
    yield from examine_run(path)


def _no_checkpoint(path: Path) -> Finding:
    if FileLock(path / "lock").is_held():
        return Finding("note", "checkpoint", "none yet, and it is at work", "--checkpoint.every_s says how often")
    remedy = f"train again: `millrace train {path / 'config.toml'}` has its settings"
    return Finding("error", "checkpoint", f"there is none in {path}", remedy, exit_code=CheckpointError.exit_code)


def _examine_checkpoints(
    newest_first: list[Path], env: str, deadline_s: float, trust: bool = False
) -> Iterator[Finding]:
    walked: list[Walked] = []
    for path in newest_first:
        last = Walked(path)
        walked.append(last)
        yield Finding("note", "policy", f"{'falling back on ' if len(walked) > 1 else ''}{path}")
        for finding in walk(path, env, deadline_s, trust):
            last.findings.append(finding)
            yield finding
        if last.acts:
            break
    yield _verdict(walked)


def _verdict(walked: list[Walked]) -> Finding:
    last, is_newest = walked[-1], len(walked) == 1
    if not last.acts:
        what = f"none of the {len(walked)} checkpoints loads" if len(walked) > 1 else "it does not load"
        return Finding("error", "verdict", what, "", exit_code=CheckpointError.exit_code)
    if any(finding.subject == "environment" and finding.level == "error" for finding in last.findings):
        what = f"{last.path.name} loads and acts; to play, and to be resumed, it needs an environment"
        return Finding("warning", "verdict", what, "from Python: millrace.resume(RUN, env=...), millrace.evaluate(...)")
    if last.path.is_file() or find_rllib(last.path):
        return Finding("ok", "verdict", "it loads and acts")
    if any(finding.subject == "network" and finding.level == "warning" for finding in last.findings):
        return Finding("note", "verdict", f"the files of {last.path.name} are sound; it acts with the network it had")
    if last.resumes:
        what = "it loads, acts and can be resumed" if is_newest else f"{last.path.name} loads, acts and can be resumed"
        remedy = "" if is_newest else f"millrace resume {last.path}"
        return Finding("ok", "verdict", what, remedy)
    return Finding("warning", "verdict", f"{last.path.name} acts, and cannot be resumed", f"millrace eval {last.path}")
