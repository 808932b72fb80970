"""Each stage says what is wrong with a checkpoint, and the ones before it have nothing to say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toys
from helpers import QUICK, quick_train
from millrace.checkpoints.store import Checkpoint, CheckpointStore
from millrace.config import CheckpointConfig
from millrace.deploy.archive import write_archive
from millrace.deploy.export import export_policy
from millrace.doctor.child import load
from millrace.doctor.findings import Finding
from millrace.doctor.loading import STAGES, Loading
from millrace.rundir import find_checkpoint
from millrace.training import train

BIAS = "network.policy_head.bias"


def found(path: Path, env: str = "") -> dict[str, Finding]:
    return {finding.subject: finding for finding in load(Loading(path, env))}


def rewritten(newest: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """The same checkpoint with something changed before it was written: its digests are right."""
    record, arrays = Checkpoint(newest).read_policy()
    change(record, arrays)
    store = CheckpointStore(newest.parent, CheckpointConfig())
    return store.write(10**9, record, arrays, Checkpoint(newest).read_trainer(), "0").path


def test_a_whole_checkpoint_passes_every_stage(newest: Path) -> None:
    findings = found(newest)
    assert list(findings) == list(STAGES)
    assert all(finding.level == "ok" for finding in findings.values()), findings


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        (toys.Everything, {}),
        (toys.Masked, {}),
        ("Pendulum-v1", {"ppo.normalize_observation": True}),
        ("CartPole-v1", {"net.memory": "lstm", "net.memory_size": 8}),
        ("CartPole-v1", {"env.frame_stack": 3}),
    ],
)
def test_policies_of_every_kind_pass(env: Any, settings: dict[str, Any], run_dir: Path) -> None:
    quick_train(env, run_dir, {"stop.updates": 1, **settings}, backend="serial")
    findings = found(find_checkpoint(run_dir).path)
    assert len(findings) == len(STAGES)
    assert all(finding.level == "ok" for finding in findings.values()), findings


@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors"])
def test_a_missing_or_empty_file_of_the_policy_is_named(newest: Path, name: str) -> None:
    (newest / name).write_bytes(b"")
    findings = found(newest)
    assert list(findings) == ["files"]
    assert findings["files"].level == "error"
    assert name in findings["files"].what
    assert findings["files"].exit_code == 4


@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors"])
def test_a_truncated_file_is_found_by_its_digest(newest: Path, name: str) -> None:
    content = (newest / name).read_bytes()
    (newest / name).write_bytes(content[:-7])
    findings = found(newest)
    assert list(findings) == ["files", "manifest", "digests"]
    assert f"{name} is damaged (its digest differs)" in findings["digests"].what
    assert findings["digests"].remedy == "use an earlier checkpoint"


def test_a_truncated_manifest_is_an_error(newest: Path) -> None:
    (newest / "manifest.json").write_text('{"format_version": 1, ')
    assert "is not whole" in found(newest)["manifest"].what


def test_without_a_manifest_the_files_are_judged_by_themselves(newest: Path) -> None:
    (newest / "manifest.json").unlink()
    findings = found(newest)
    assert findings["manifest"].level == "error"
    assert "the policy's files are whole" in findings["manifest"].what
    assert findings["inference"].level == "ok"


@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors"])
def test_without_a_manifest_a_truncated_file_still_shows(newest: Path, name: str) -> None:
    (newest / "manifest.json").unlink()
    (newest / name).write_bytes((newest / name).read_bytes()[:-7])
    findings = found(newest)
    assert list(findings) == ["files", "manifest"]
    assert "the policy's files cannot be read" in findings["manifest"].what


def test_missing_files_of_the_trainer_cost_the_resume_alone(newest: Path) -> None:
    (newest / "trainer.json").unlink()
    findings = found(newest)
    assert findings["files"].level == "warning"
    assert "can act and not resume" in findings["files"].what
    assert all(finding.level == "ok" for name, finding in findings.items() if name != "files")


def test_damaged_files_of_the_trainer_cost_the_resume_alone(newest: Path) -> None:
    (newest / "trainer.safetensors").write_bytes(b"rubbish")
    findings = found(newest)
    assert findings["digests"].level == "warning"
    assert "trainer.safetensors is damaged" in findings["digests"].what
    assert "can act and not resume" in findings["digests"].what
    assert findings["inference"].level == "ok"


def test_a_newer_format_names_the_version_to_install(newest: Path) -> None:
    manifest = json.loads((newest / "manifest.json").read_text())
    (newest / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99, "millrace_version": "7.1"}))
    findings = found(newest)
    assert list(findings) == ["files", "manifest"]
    assert "format 99" in findings["manifest"].what
    assert "written by millrace 7.1; install that or a later one" in findings["manifest"].what


def test_a_policy_of_an_earlier_format_acts_and_cannot_be_resumed(newest: Path) -> None:
    manifest = json.loads((newest / "manifest.json").read_text())
    (newest / "manifest.json").write_text(json.dumps({**manifest, "format_version": 1}))
    findings = found(newest)
    assert findings["manifest"].level == "warning"
    assert "can act and not resume" in findings["manifest"].what
    assert findings["inference"].level == "ok"


def test_spaces_that_are_not_those_of_the_arrays_are_a_contradiction(newest: Path) -> None:
    path = rewritten(newest, lambda record, arrays: record["action_space"].update(n=3))
    findings = found(path)
    assert list(findings)[-1] == "spaces"
    assert "not what its spaces say" in findings["spaces"].what


def test_a_description_that_lacks_a_part_is_named_and_not_a_crash(newest: Path) -> None:
    path = rewritten(newest, lambda record, arrays: record.pop("observation_space"))
    finding = found(path)["spaces"]
    assert finding.level == "error"
    assert "observation_space" in finding.what
    assert finding.exit_code == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda arrays: arrays.update({BIAS: np.zeros(3, np.float32)}), "has the shape [3], the network wants [2]"),
        (lambda arrays: arrays.pop(BIAS), f"lacks the weights {BIAS}"),
        (lambda arrays: arrays.update({BIAS: np.array([1, np.nan], np.float32)}), f"1 of 2 numbers of {BIAS}"),
    ],
)
def test_weights_of_the_wrong_shape_missing_or_not_finite_are_named(
    newest: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    findings = found(rewritten(newest, lambda record, arrays: change(arrays)))
    assert list(findings)[-1] == "weights"
    assert said in findings["weights"].what


def test_weights_of_another_network_than_the_one_described_are_named(newest: Path) -> None:
    finding = found(rewritten(newest, lambda record, arrays: record["net"].update(hidden=[8])))["weights"]
    assert "has the shape [16, 4], the network wants [8, 4]" in finding.what


def test_figures_that_are_not_finite_are_found_by_the_inference_test(newest: Path) -> None:
    huge = np.full(2, 3e38, np.float32)

    def blow_up(record: dict[str, Any], arrays: dict[str, Any]) -> None:
        arrays["network.policy_head.weight"] = np.tile(huge[:, None], (1, 16))
        arrays["network.actor.0.bias"] = np.full(16, 5, np.float32)

    with np.errstate(over="ignore"):
        finding = found(rewritten(newest, blow_up))["inference"]
    assert finding.level == "error"
    assert "not finite" in finding.what


class Own(torch.nn.Module):
    """A network of the user's own for CartPole."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, observation: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.layer(observation["obs"])
        return out[:, :2], out[:, 2]


def test_a_network_of_the_users_own_is_asked_for(run_dir: Path) -> None:
    sizes = {"workers": 1, "envs_per_worker": 2, "rollout_steps": 8, "backend": "serial", "max_policy_lag": 0}
    settings = {**QUICK, "stop.updates": 1}
    train("CartPole-v1", network=Own(), run_dir=str(run_dir), quiet=True, settings=settings, **sizes)
    findings = found(find_checkpoint(run_dir).path)
    assert findings["network"].level == "warning"
    assert "network=..." in findings["network"].remedy
    assert findings["weights"].level == "ok"
    assert findings["inference"].level == "note"


@pytest.mark.parametrize(
    ("env", "said", "exit_code"),
    [
        ("broken_games:raises", "OSError: the level file is missing", 3),
        ("broken_games:leaves", "SystemExit: enough", 3),
        ("broken_games:has_other_spaces", "other spaces than the policy", 3),
        ("broken_games:lacks_a_library", "pip install 'millrace[atari]'", 6),
        ("no_such_module:make", "no module 'no_such_module'", 2),
    ],
)
def test_an_environment_that_cannot_be_made_leaves_a_policy_that_acts(
    newest: Path, env: str, said: str, exit_code: int
) -> None:
    findings = found(newest, env)
    assert findings["environment"].level == "error"
    assert said in findings["environment"].what
    assert "--env ENV" in findings["environment"].remedy
    assert findings["environment"].exit_code == exit_code
    assert findings["inference"].level == "ok"


def test_a_pickle_in_the_place_of_weights_is_refused(newest: Path) -> None:
    (newest / "manifest.json").unlink()
    (newest / "policy.safetensors").write_bytes(b"\x80\x04cos\nsystem\n")
    assert "cannot be read" in found(newest)["manifest"].what


# Exported policies ----------------------------------------------------------------------------------------------


def exported(newest: Path, **env: Any) -> Path:
    record, arrays = Checkpoint(newest).read_policy()
    record["env"] |= env
    return write_archive(newest.parent / "agent.millrace", record, arrays, 7, "0.1").path


def test_an_exported_policy_passes_every_stage(newest: Path) -> None:
    findings = found(exported(newest))
    assert list(findings) == list(STAGES)
    assert all(finding.level == "ok" for finding in findings.values()), findings


def test_a_policy_exported_as_a_graph_passes_every_stage(newest: Path, tmp_path: Path) -> None:
    findings = found(export_policy(newest, tmp_path / "agent.onnx").path)
    assert list(findings) == list(STAGES)
    assert all(finding.level == "ok" for finding in findings.values()), findings
    assert "ONNX Runtime" in findings["network"].what


@pytest.mark.parametrize("env", [{"id": "broken_games:raises"}, {"wrappers": ["broken_games:raises"]}])
def test_code_is_not_run_because_an_exported_policy_names_it(newest: Path, env: dict[str, Any]) -> None:
    path = exported(newest, **env)
    finding = found(path)["environment"]
    assert (finding.level, finding.remedy) == ("note", "if you trust it: --env ENV")
    assert "not run because a file names it" in finding.what
    assert found(path, "CartPole-v1")["environment"].level == "ok"
    assert found(path, "broken_games:raises")["environment"].level == "error"


@pytest.mark.parametrize("num_bytes", [0, 100, -20])
def test_a_truncated_exported_policy_is_to_be_copied_again(newest: Path, num_bytes: int) -> None:
    path = exported(newest)
    path.write_bytes(path.read_bytes()[:num_bytes])
    last = list(found(path).values())[-1]
    assert (last.level, last.exit_code) == ("error", 4)
    assert last.remedy == "copy or export it again"


def test_a_missing_library_is_to_be_installed():
    from millrace.doctor.loading import stuck
    from millrace.errors import MissingExtraError

    finding = stuck("manifest", MissingExtraError("onnxruntime", "onnx", "running x.onnx"), "copy or export it again")
    assert finding.what == "running x.onnx needs onnxruntime, which is not installed"
    assert finding.remedy == "pip install 'millrace[onnx]'"
    assert finding.exit_code == MissingExtraError.exit_code
