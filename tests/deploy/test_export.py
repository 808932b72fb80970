"""A policy that left its run acts as it did inside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import millrace
from helpers import quick_train
from millrace.cli.main import main
from millrace.config import EnvConfig, NetConfig
from millrace.deploy import onnx_export
from millrace.deploy.archive import write_archive
from millrace.deploy.onnx_policy import OnnxPolicy, digest_entry
from millrace.deploy.record import PolicyRecord
from millrace.envs.spaces import slot_spec, with_stack
from millrace.errors import CheckpointError, ConfigError
from millrace.nets.policy import Policy
from millrace.ops.sampling import best_actions

VECTOR = spaces.Box(-1, 1, (4,))
NESTED = spaces.Dict(
    {
        "map": spaces.Box(0, 255, (3, 33, 33), np.uint8),
        "vector": spaces.Box(-1, 1, (3,)),
        "kind": spaces.Discrete(5, start=2),
        "bits": spaces.MultiBinary(4),
        "action_mask": spaces.MultiBinary(7),
    }
)
BOTH = spaces.Tuple([spaces.Discrete(3), spaces.Box(-0.5, 2, (2,))])
KINDS = {
    "dense": (VECTOR, spaces.Discrete(2), NetConfig(hidden=(16,)), 1),
    "box": (VECTOR, spaces.Box(-1, 1, (3,)), NetConfig(hidden=(16,), shared=True, activation="relu"), 1),
    "bits": (VECTOR, spaces.MultiBinary(3), NetConfig(hidden=()), 1),
    "maps and masks": (NESTED, spaces.MultiDiscrete([3, 4]), NetConfig(), 1),
    "gru": (VECTOR, BOTH, NetConfig(hidden=(8,), memory="gru", memory_size=12), 1),
    "lstm": (VECTOR, BOTH, NetConfig(hidden=(), memory="lstm", memory_size=12), 1),
    "shared lstm": (VECTOR, BOTH, NetConfig(shared=True, memory="lstm", memory_size=12), 1),
    "screen": (spaces.Box(0, 255, (64, 64), np.uint8), spaces.Discrete(6), NetConfig(image="nature"), 4),
    "residual": (spaces.Box(0, 255, (24, 24, 3), np.uint8), spaces.Discrete(6), NetConfig(image="impala"), 1),
    "remembered maps": (NESTED, spaces.MultiDiscrete([3, 4]), NetConfig(memory="lstm", memory_size=8), 1),
}
SOME = {"format_version": 2, "millrace_version": "0", "env_steps": 0}


def made(kind: str) -> tuple[PolicyRecord, Policy]:
    """A policy whose weights are away from the zeros of the beginning."""
    observation, action, net, stack = KINDS[kind]
    spec = slot_spec(observation, action, mask_in_info=False)
    spec = with_stack(spec, stack) if stack > 1 else spec
    torch.manual_seed(0)
    policy = Policy(spec, net, normalize_observation=True)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    for key, normalizer in policy.normalizers():
        normalizer.update(torch.randn(50, *spec.observation[key].shape) * 3 + 1)
    return PolicyRecord(EnvConfig("CartPole-v1"), spec, observation, action, net, True), policy


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    quick_train("CartPole-v1", path, {"stop.updates": 2, "ppo.normalize_observation": True}, backend="serial")
    return path


@pytest.mark.parametrize("suffix", ["millrace", "onnx"])
def test_an_exported_policy_plays_the_same_games(suffix, run, tmp_path):
    done = millrace.export_policy(run, tmp_path / f"policy.{suffix}")
    loaded = millrace.load_policy(done.path)
    assert loaded.env.id == "CartPole-v1"
    inside = millrace.evaluate(run, episodes=5)
    np.testing.assert_array_equal(millrace.evaluate(loaded, episodes=5).returns, inside.returns)


def test_a_graph_plays_in_several_processes_as_in_one(run, tmp_path):
    graph = millrace.export_policy(run, tmp_path / "policy.onnx").path
    one, two = (millrace.evaluate(graph, episodes=32, parallel=n) for n in (1, 2))
    np.testing.assert_array_equal(one.returns, two.returns)


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_holds_every_kind_of_network(kind, tmp_path):
    record, policy = made(kind)
    weights = {name: tensor.numpy() for name, tensor in policy.state_dict().items()}
    write_archive(tmp_path / "policy.millrace", record.to_json(), weights, 0, "0")
    loaded = millrace.load_policy(tmp_path / "policy.millrace")
    assert loaded.record == record
    assert_acts_alike(loaded, policy)


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_holds_every_kind_of_network(kind, tmp_path):
    record, policy = made(kind)
    difference = onnx_export.export_onnx(tmp_path / "policy.onnx", record, policy, SOME)
    assert 0 < difference < 1e-5
    loaded = millrace.load_policy(tmp_path / "policy.onnx")
    assert loaded.record == record
    assert_acts_alike(loaded, policy)


def assert_acts_alike(loaded, policy):
    """Step by step, with its memory, for several numbers of rows."""
    spec = policy.spec
    for num_rows in (1, 3):
        memory = loaded.new_state(num_rows)
        memory.begin(np.ones(num_rows, bool))
        state = torch.zeros(num_rows, policy.state_size)
        begins = torch.zeros(1, num_rows, dtype=torch.bool)
        for step in range(4):
            rng = np.random.default_rng(step)
            inputs = onnx_export.random_inputs(policy, num_rows, rng)
            seen = {key: inputs[onnx_export.input_name(key)] for key in spec.observation}
            present = {key: x[:, -1] if spec.observation[key].stack > 1 else x for key, x in seen.items()}
            tensors = {key: torch.from_numpy(x) for key, x in memory.see(present).items()}
            with torch.no_grad():
                if policy.state_size:
                    expected, value, state = policy.unroll(tensors, state, begins)
                else:
                    expected, value = policy(tensors)
            params, found_value = loaded.actor.forward(memory.seen(present), memory.state)
            np.testing.assert_allclose(params, expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(found_value, value, rtol=1e-4, atol=1e-5)


def test_the_graph_chooses_as_we_do_and_samples_by_the_distribution(tmp_path):
    record, policy = made("maps and masks")
    onnx_export.export_onnx(tmp_path / "policy.onnx", record, policy, SOME)
    inputs = onnx_export.random_inputs(policy, 1, np.random.default_rng(3))
    many = {name: np.repeat(x, 20_000, axis=0) for name, x in inputs.items()}
    many["uniform"] = np.random.default_rng(4).random(many["uniform"].shape, dtype=np.float32)
    action, sampled, params = OnnxPolicy(tmp_path / "policy.onnx").run(["action", "sampled_action", "params"], many)
    np.testing.assert_array_equal(action, best_actions(policy.spec.action, params, many["action_mask"]))
    first = 0
    for column, size in enumerate(policy.spec.action.nvec):
        allowed = inputs["action_mask"][0, first : first + size]
        logits = np.where(allowed, params[0, first : first + size], -np.inf)
        expected = np.exp(logits - logits.max())
        expected /= expected.sum()
        share = np.bincount(sampled[:, column], minlength=size) / len(sampled)
        assert not share[~allowed].any()
        np.testing.assert_allclose(share, expected, atol=5 * np.sqrt(0.25 / len(sampled)))
        first += size


def test_continuous_samples_have_the_policys_deviation_and_keep_their_bounds(tmp_path):
    record, policy = made("box")
    onnx_export.export_onnx(tmp_path / "policy.onnx", record, policy, SOME)
    inputs = onnx_export.random_inputs(policy, 1, np.random.default_rng(3))
    many = {name: np.repeat(x, 50_000, axis=0) for name, x in inputs.items()}
    many["uniform"] = np.random.default_rng(4).random(many["uniform"].shape, dtype=np.float32)
    sampled, params = OnnxPolicy(tmp_path / "policy.onnx").run(["sampled_action", "params"], many)
    mean, deviation = params[0, :3], np.exp(params[0, 3:])
    normal = np.random.default_rng(5).standard_normal((200_000, 3))
    expected = np.clip(mean + deviation * normal, -1, 1)
    np.testing.assert_allclose(sampled.mean(0), expected.mean(0), atol=0.02)
    np.testing.assert_allclose(sampled.std(0), expected.std(0), atol=0.02)
    assert np.abs(sampled).max() <= 1


def test_a_graph_that_differs_is_not_left_behind_and_takes_no_earlier_ones_place(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "parity", lambda file, policy: 2e-5)
    earlier = tmp_path / "policy.onnx"
    for content in (None, b"an earlier export"):
        if content is not None:
            earlier.write_bytes(content)
        with pytest.raises(CheckpointError, match="differ from the policy's by 2e-05"):
            onnx_export.export_onnx(earlier, *made("dense"), SOME)
        assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if content is None else [content])


def test_parity_sees_another_weight(tmp_path):
    record, policy = made("dense")
    onnx_export.export_onnx(tmp_path / "policy.onnx", record, policy, SOME)
    with torch.no_grad():
        next(policy.network.critic[0].parameters())[0, 0] += 0.01
    assert onnx_export.parity(OnnxPolicy(tmp_path / "policy.onnx"), policy) > 1e-5


class Own(torch.nn.Module):
    """A user's network, with recurrence."""

    state_size = 6

    def __init__(self) -> None:
        super().__init__()
        self.cell = torch.nn.GRUCell(4, 6)
        self.head = torch.nn.Linear(6, 3)

    def forward(self, observation, state, begins):
        state = self.cell(observation["obs"], state * ~begins[0].unsqueeze(-1))
        x = self.head(state)
        return x[:, :2], x[:, 2], state


def test_a_network_of_the_users_own_needs_it_in_an_archive_and_not_in_a_graph(tmp_path):
    record, _ = made("dense")
    policy = Policy(record.spec, record.net, True, Own())
    weights = {name: tensor.numpy() for name, tensor in policy.state_dict().items()}
    write_archive(tmp_path / "policy.millrace", record.to_json(), weights, 0, "0")
    with pytest.raises(CheckpointError, match=r"network=\.\.\."):
        millrace.load_policy(tmp_path / "policy.millrace")
    assert_acts_alike(millrace.load_policy(tmp_path / "policy.millrace", network=Own()), policy)
    millrace.export_policy(tmp_path / "policy.millrace", tmp_path / "policy.onnx", network=Own())
    assert_acts_alike(millrace.load_policy(tmp_path / "policy.onnx"), policy)


def test_the_same_policy_gives_the_same_archive(run, tmp_path):
    first, second = (millrace.export_policy(run, tmp_path / f"{i}.millrace").path for i in range(2))
    assert first.read_bytes() == second.read_bytes()
    again = millrace.export_policy(first, tmp_path / "again.millrace")
    assert again.path.read_bytes() == first.read_bytes()


def test_export_says_what_to_do_with_other_files(run, tmp_path):
    with pytest.raises(ConfigError, match=r"must end in \.millrace or \.onnx"):
        millrace.export_policy(run, tmp_path / "policy.pt")
    graph = millrace.export_policy(run, tmp_path / "policy.onnx").path
    with pytest.raises(CheckpointError, match="export the run that it came from"):
        millrace.export_policy(graph, tmp_path / "policy.millrace")
    (tmp_path / "notes.txt").write_text("no policy")
    with pytest.raises(CheckpointError, match="is no policy"):
        millrace.load_policy(tmp_path / "notes.txt")


def test_a_graph_runs_without_torch(run, tmp_path):
    path = millrace.export_policy(run, tmp_path / "policy.onnx").path
    code = (
        "import sys, millrace, numpy as np\n"
        f"action = millrace.load_policy({str(path)!r}).act(np.zeros(4, np.float32))\n"
        "print(action, 'torch' in sys.modules)"
    )
    source = str(Path(millrace.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() in (["0", "False"], ["1", "False"])


def test_the_command_exports_and_eval_takes_the_file(run, tmp_path, capsys):
    target = str(tmp_path / "policy.onnx")
    assert main(["export", str(run), target, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["difference"] < 1e-5
    assert main(["eval", target, "--episodes", "3", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["episodes"]) == 3


def test_a_checkpoint_of_somebodys_environment_loads_without_it(run, tmp_path):
    """Loading makes no environment and imports none."""
    path = millrace.export_policy(run, tmp_path / "policy.millrace").path
    with zipfile.ZipFile(path) as archive:
        record, weights = json.loads(archive.read("policy.json")), archive.read("policy.safetensors")
    record["env"]["id"] = "no_such_module:make_env"
    import safetensors.numpy

    write_archive(path, record, safetensors.numpy.load(weights), 0, "0")
    assert millrace.load_policy(path).act(np.zeros(4, np.float32)) in gym.spaces.Discrete(2)


def test_the_digest_is_an_entry_that_onnx_reads():
    import onnx

    entry = onnx.ModelProto.FromString(digest_entry(b"something")).metadata_props[0]
    assert entry.key == "millrace.sha256"
    assert len(entry.value) == 64


class Fixed(torch.nn.Module):
    """A network that only works for as many rows as it was traced with."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, observation):
        x = self.layer(observation["obs"]) + torch.zeros(len(observation["obs"]), 1)
        return x[:, :2], x[:, 2]


def test_a_network_that_fixes_the_number_of_rows_is_told_why(tmp_path):
    record, _ = made("dense")
    with pytest.raises(CheckpointError, match=r"x\.shape\[0\] for len\(x\)"):
        onnx_export.export_onnx(tmp_path / "policy.onnx", record, Policy(record.spec, record.net, True, Fixed()), SOME)
