"""RLlib's checkpoints act here as they do there; nothing of them runs, and nothing of them is dropped."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import millrace
from millrace.cli.main import main
from millrace.deploy.inert_pickle import Inert, parse, path_of, read_pickle
from millrace.deploy.policy import find_policy
from millrace.errors import CheckpointError, MissingExtraError
from millrace.ops.sampling import best_actions

TOLERANCE = 1e-5
ALIKE = [
    "discrete",
    "apart",
    "filtered",
    "free",
    "masked",
    "lstm",
    "flat",
    "appo",
    "pictures",
    "several",
    "older",
    "older_filtered",
    "discrete_2.40.0",
    "apart_2.40.0",
    "filtered_2.40.0",
    "lstm_2.40.0",
    "flat_2.40.0",
    "older_filtered_2.40.0",
]
MODULE = "learner_group/learner/rl_module/default_policy"
HAS_RLLIB = False
try:
    import ray.rllib  # noqa: F401

    HAS_RLLIB = True
except ImportError:
    pass


def load(path: Path):
    return millrace.load_policy(path, trust=True)


def acted(policy, path: Path):
    """Parameters and values of the observations that lie beside a checkpoint, row by row in one episode."""
    expected = np.load(path / "expected.npz")
    prefix = "observation/"
    rows = {name[len(prefix) :]: expected[name] for name in expected if name.startswith(prefix)}
    observation = rows["obs"] if list(rows) == ["obs"] else rows
    arrays, mask, _ = policy.arrays(observation, None)
    if not policy.has_memory:
        return expected, *policy.forward(arrays, None), mask
    state = policy.new_state()
    steps = [
        policy.forward({key: x[i : i + 1] for key, x in arrays.items()}, state) for i in range(len(expected["value"]))
    ]
    return expected, *(np.concatenate(parts) for parts in zip(*steps, strict=True)), mask


@pytest.mark.parametrize("name", ALIKE)
def test_it_acts_and_judges_as_rllibs_own_module_does(name, rllib_checkpoints):
    path = rllib_checkpoints / name
    policy = load(path / MODULE.replace("default_policy", "right") if name == "several" else path)
    expected, params, value, mask = acted(policy, path)
    np.testing.assert_allclose(value, expected["value"], rtol=TOLERANCE, atol=TOLERANCE)
    wanted = expected["params"]
    if mask is not None:
        assert not mask.all()
        params, wanted = params[mask], wanted[mask]
    if "action" not in expected:
        np.testing.assert_allclose(params, wanted, rtol=TOLERANCE, atol=TOLERANCE)
        return
    spec = policy.spec.action
    actions = [policy.to_env(columns) for columns in best_actions(spec, params, None)]
    np.testing.assert_allclose(actions, expected["action"], rtol=TOLERANCE, atol=TOLERANCE)
    half = (np.array(spec.high) - np.array(spec.low)) / 2
    deviation = np.exp(wanted[:, spec.num_box :]) * half
    np.testing.assert_allclose(np.exp(params[:, spec.num_box :]), deviation, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_environment_is_the_one_that_it_was_trained_on(rllib_checkpoints):
    played = millrace.evaluate(load(rllib_checkpoints / "filtered"), episodes=2)
    assert len(played.episodes) == 2
    assert load(rllib_checkpoints / "older").env.id == "CartPole-v1"


def test_loading_and_playing_need_neither_ray_nor_torch(rllib_checkpoints):
    path = str(rllib_checkpoints / "filtered")
    code = (
        f"import millrace, sys; millrace.evaluate(millrace.load_policy({path!r}, trust=True), episodes=1)\n"
        "print(*{name.split('.')[0] for name in sys.modules} & {'ray', 'torch'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.split() == []


def test_without_trust_it_is_refused_and_says_why(rllib_checkpoints, capsys):
    path = rllib_checkpoints / "discrete"
    with pytest.raises(CheckpointError, match=r"pickles.*trust=True"):
        millrace.load_policy(path)
    for words in (["eval"], ["play"], ["doctor"], ["export"]):
        out = ["x.millrace"] if words == ["export"] else []
        assert main([*words, str(path), *out]) == CheckpointError.exit_code
        assert "--trust" in capsys.readouterr().err


def test_it_is_evaluated_examined_and_exported_from_the_command_line(rllib_checkpoints, tmp_path, capsys):
    path = str(rllib_checkpoints / "discrete")
    assert main(["eval", path, "--trust", "--episodes", "2", "--quiet"]) == 0
    assert main(["doctor", path, "--trust"]) == 0
    assert "it loads and acts" in capsys.readouterr().out
    assert main(["export", path, str(tmp_path / "policy.millrace"), "--trust"]) == 0
    exported = millrace.load_policy(tmp_path / "policy.millrace")
    expected, params, value, _ = acted(exported, rllib_checkpoints / "discrete")
    np.testing.assert_allclose(params, expected["params"], rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(value, expected["value"], rtol=TOLERANCE, atol=TOLERANCE)


def test_moments_and_units_of_actions_are_in_the_graph_too(rllib_checkpoints, tmp_path):
    pytest.importorskip("onnxruntime")
    done = millrace.export_policy(rllib_checkpoints / "filtered", tmp_path / "policy.onnx", trust=True)
    assert done.difference < TOLERANCE
    expected, params, _, _ = acted(millrace.load_policy(done.path), rllib_checkpoints / "filtered")
    np.testing.assert_allclose(np.clip(params[:, :1], -2, 2), expected["action"], rtol=TOLERANCE, atol=TOLERANCE)


def test_training_goes_on_from_rllibs_weights_and_moments(rllib_checkpoints, run_dir):
    settings = {"net.hidden": [8, 6], "net.shared": True, "net.state_log_std": True, "net.image": "flat"}
    settings |= {"ppo.normalize_observation": True, "stop.updates": 1, "ppo.learning_rate": 1e-9}
    sizes = {"backend": "serial", "workers": 1, "envs_per_worker": 2, "rollout_steps": 8, "quiet": True}
    start = {"init_from": rllib_checkpoints / "filtered", "run_dir": run_dir}
    with pytest.raises(CheckpointError, match="--trust"):
        millrace.train("Pendulum-v1", settings=settings, **sizes, **start)
    result = millrace.train("Pendulum-v1", settings=settings, trust=True, **sizes, **start)
    before, after = (find_policy(path, trust=True).read_policy()[1] for path in (start["init_from"], result.run_dir))
    for name in before:
        if name.startswith("network."):
            np.testing.assert_allclose(after[name], before[name], atol=1e-6)
    assert after["normalizer.[obs].row_count"] == before["normalizer.[obs].row_count"] + 16


@pytest.mark.parametrize("part", ["learner_group", "learner_group/learner", "learner_group/learner/rl_module", MODULE])
def test_a_part_of_a_checkpoint_is_as_good_as_the_whole(part, rllib_checkpoints):
    whole = rllib_checkpoints / "filtered"
    _, params, _, _ = acted(load(whole / part), whole)
    np.testing.assert_array_equal(params, acted(load(whole), whole)[1])


def test_a_module_alone_loads_and_what_is_assumed_is_said(rllib_checkpoints, tmp_path):
    shutil.copytree(rllib_checkpoints / "discrete" / MODULE, tmp_path / "module")
    with pytest.warns(UserWarning, match="without its algorithm"):
        policy = load(tmp_path / "module")
    expected, params, _, _ = acted(policy, rllib_checkpoints / "discrete")
    np.testing.assert_allclose(params, expected["params"], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("several", "several policies, name one: .*left.*right"),
        ("looking_back", "PrevActionsPrevRewards"),
        ("older_lstm", "use_lstm=True"),
    ],
)
def test_what_cannot_be_expressed_is_refused_with_the_reason_and_the_version(name, reason, rllib_checkpoints):
    with pytest.raises(CheckpointError, match=rf"written by Ray 2.60.0, is not loaded: .*{reason}"):
        load(rllib_checkpoints / name)


def test_other_modules_act_through_rllib_or_are_refused(rllib_checkpoints, monkeypatch):
    name = "own"
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    if not HAS_RLLIB:
        with pytest.raises(CheckpointError, match=r"own_classes.OwnModule.*millrace\[rllib\]"):
            load(rllib_checkpoints / name)
        return
    expected, params, value, _ = acted(load(rllib_checkpoints / name), rllib_checkpoints / name)
    np.testing.assert_allclose(params, expected["params"], rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(value, expected["value"], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(
    "lost", ["env_runner/env_to_module_connector/MeanStdFilter/state.pkl", f"{MODULE}/module_state.pkl"]
)
def test_it_is_not_loaded_without_its_moments_or_weights(lost, rllib_checkpoints, tmp_path):
    path = tmp_path / "copy"
    shutil.copytree(rllib_checkpoints / "filtered", path)
    (path / lost).unlink()
    with pytest.raises(CheckpointError, match="cannot read"):
        load(path)


class Hostile:
    """Unpickled as pickles are, it would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize(
    "file", ["class_and_ctor_args.pkl", f"{MODULE}/module_state.pkl", f"{MODULE}/class_and_ctor_args.pkl"]
)
def test_nothing_that_a_file_names_is_run(file, rllib_checkpoints, tmp_path):
    path = tmp_path / "copy"
    shutil.copytree(rllib_checkpoints / "discrete", path)
    (path / file).write_bytes(pickle.dumps(Hostile(tmp_path / "was_run")))
    with pytest.raises(CheckpointError):
        load(path)
    assert not (tmp_path / "was_run").exists()
    pickle.loads((path / file).read_bytes())  # and it would have been
    assert (tmp_path / "was_run").exists()


def test_what_a_pickle_would_have_made_is_told():
    read = parse(pickle.dumps({"a": [Hostile(Path("x")), os.getcwd], "b": {1, 2}, "c": np.arange(6.0).reshape(2, 3)}))
    made, named = read["a"]
    assert isinstance(made, Inert)
    assert made.args == ("x",)
    assert [path_of(made), path_of(named)] == [f"{os.name}.mkdir", f"{os.name}.getcwd"]
    assert read["b"] == {1, 2}
    np.testing.assert_array_equal(read["c"], np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_arrays_of_every_protocol_are_read_as_they_were(protocol):
    arrays = [np.arange(12, dtype=">f4").reshape(3, 4), np.asfortranarray(np.eye(3)), np.float32(2.5), np.array([True])]
    read = parse(pickle.dumps(arrays, protocol))
    for array, wanted in zip(read, arrays, strict=True):
        assert array.dtype == wanted.dtype
        np.testing.assert_array_equal(array, wanted)


def test_arrays_of_objects_are_refused():
    with pytest.raises(pickle.UnpicklingError, match="none of numbers"):
        parse(pickle.dumps(np.array([Hostile(Path("x"))], object)))


@pytest.mark.parametrize("seed", range(5))
def test_damaged_files_are_refused_as_such(seed, rllib_checkpoints, tmp_path):
    rng = np.random.default_rng(seed)
    whole = (rllib_checkpoints / "discrete" / MODULE / "class_and_ctor_args.pkl").read_bytes()
    damaged = tmp_path / "damaged.pkl"
    for _ in range(60):
        content = bytearray(whole[: rng.integers(len(whole))] if rng.random() < 0.3 else whole)
        for place in rng.integers(len(content), size=3) if content else ():
            content[place] = rng.integers(256)
        damaged.write_bytes(content)
        with contextlib.suppress(CheckpointError):  # any other error is one too many
            read_pickle(damaged)


def test_an_archive_of_what_only_code_can_build_is_not_written(rllib_checkpoints, tmp_path):
    with pytest.raises(CheckpointError, match="onnx"):
        millrace.export_policy(rllib_checkpoints / "pictures", tmp_path / "policy.millrace", trust=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(HAS_RLLIB, reason="it is installed")
def test_without_rllib_the_engine_names_what_to_install_and_begins_nothing(run_dir):
    with pytest.raises(MissingExtraError, match=r"millrace\[rllib\]"):
        millrace.train("CartPole-v1", engine="rllib", run_dir=run_dir, quiet=True)
    assert not run_dir.exists()
    with pytest.raises(MissingExtraError, match=r"millrace\[rllib\]"):
        millrace.rllib_env("CartPole-v1")


def test_every_damaged_array_or_setting_is_an_error_of_ours(rllib_checkpoints, tmp_path):
    rng = np.random.default_rng(1)
    path = tmp_path / "copy"
    shutil.copytree(rllib_checkpoints / "discrete", path)
    files = [path / MODULE / name for name in ("class_and_ctor_args.pkl", "module_state.pkl")]
    wholes = [file.read_bytes() for file in files]
    for _ in range(60):
        for file, whole in zip(files, wholes, strict=True):
            content = bytearray(whole)
            content[rng.integers(len(content))] = rng.integers(256)
            file.write_bytes(content)
        with contextlib.suppress(CheckpointError):
            load(path)
