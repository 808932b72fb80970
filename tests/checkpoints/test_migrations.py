"""Checkpoints of earlier formats act as they did: descriptions and outputs were written by the code of their time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import millrace
from helpers import quick_train
from millrace.checkpoints.sealed import FORMAT_VERSION
from millrace.checkpoints.store import Checkpoint
from millrace.errors import CheckpointError
from millrace.rundir import find_checkpoint

FORMAT_1 = json.loads((Path(__file__).parent / "format_1.json").read_text())


def drawn_weights(record):
    rng = np.random.default_rng(0)
    return {name: (0.1 * rng.standard_normal(shape)).astype(np.float32) for name, shape in record["weights_index"]}


def drawn_observations(record):
    rng, found = np.random.default_rng(1), {}
    for key, array in record["spec"]["observation"].items():
        shape = (4, *array["shape"])
        is_image = array["dtype"] == "uint8"
        found[key] = rng.integers(0, 256, shape).astype(np.uint8) if is_image else rng.standard_normal(shape)
    return {key: x.astype(np.float32) if x.dtype.kind == "f" else x for key, x in found.items()}


def write_checkpoint(directory: Path, version: int, record, weights) -> Path:
    content = {"policy.json": json.dumps(record).encode(), "policy.safetensors": safetensors.numpy.save(weights)}
    files = {name: {"sha256": hashlib.sha256(data).hexdigest()} for name, data in content.items()}
    manifest = {"format_version": version, "millrace_version": "9.9", "env_steps": 1, "files": files}
    path = directory / "step_000000000001"
    path.mkdir()
    for name, data in {**content, "manifest.json": json.dumps(manifest).encode()}.items():
        (path / name).write_bytes(data)
    return path


@pytest.mark.parametrize("name", FORMAT_1)
def test_a_policy_of_format_1_acts_as_it_did(name, tmp_path):
    record = FORMAT_1[name]["policy"]
    policy = millrace.load_policy(write_checkpoint(tmp_path, 1, record, drawn_weights(record)))
    params, value = policy.actor.forward(drawn_observations(record))
    np.testing.assert_allclose(params, FORMAT_1[name]["params"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(value, FORMAT_1[name]["value"], rtol=1e-4, atol=1e-5)


def test_a_policy_of_format_1_that_is_not_what_it_says_is_refused(tmp_path):
    record = FORMAT_1["maps"]["policy"]
    weights = drawn_weights(record)
    del weights["network.trunk.0.bias"]
    with pytest.raises(CheckpointError, match="format 1"):
        millrace.load_policy(write_checkpoint(tmp_path, 1, record, weights))


def test_a_newer_format_says_who_reads_it(tmp_path):
    record = FORMAT_1["cartpole"]["policy"]
    path = write_checkpoint(tmp_path, FORMAT_VERSION + 1, record, drawn_weights(record))
    with pytest.raises(CheckpointError, match=r"written by millrace 9\.9; install that or a later one"):
        millrace.load_policy(path)


def test_a_new_run_begins_with_the_weights_of_format_1(tmp_path):
    record = FORMAT_1["cartpole"]["policy"]
    path = write_checkpoint(tmp_path, 1, record, drawn_weights(record) | learner_only(record))
    settings = {"net.hidden": [16, 16], "ppo.normalize_observation": True, "ppo.learning_rate": 1e-12}
    run_dir = tmp_path / "run"
    quick_train("CartPole-v1", run_dir, {"stop.updates": 1, **settings}, backend="serial", init_from=path)
    assert "reward statistics begin anew" in (run_dir / "log.txt").read_text()
    _, arrays = find_checkpoint(run_dir).read_policy()
    for name, weights in drawn_weights(record).items():
        if name.startswith("network."):
            np.testing.assert_allclose(arrays[name], weights, atol=1e-9)


def learner_only(record):
    """What the normaliser of format 1 kept besides, of a single row."""
    zeros = {name: np.zeros(4) for name in ("mean", "sum_of_squares")}
    return {f"normalizer.[obs].{name}": x for name, x in zeros.items()} | {"normalizer.[obs].row_count": np.array(1.0)}


def test_the_training_state_of_format_1_is_not_resumed(tmp_path):
    record = FORMAT_1["cartpole"]["policy"]
    path = write_checkpoint(tmp_path, 1, record, drawn_weights(record))
    with pytest.raises(CheckpointError, match="--init-from"):
        Checkpoint(path).read_trainer()
