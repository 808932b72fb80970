"""Whole runs on a device, and whoever acts on one."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import millrace
from device import simulated
from helpers import learned, log_of, opened, quick_train, rows_of
from millrace.config import NetConfig
from millrace.errors import ConfigError
from millrace.nets.actor import ActorMaker
from millrace.nets.memory import Memory
from millrace.nets.policy import Policy
from millrace.types import ActionSpec, ArraySpec, SlotSpec
from toys import Clock, Everything, Masked, Pixels

sys.path.insert(0, str(Path(__file__).parents[2]))
from examples.reward_prediction import RewardPrediction

LSTM = {"net.memory": "lstm", "net.memory_size": 8}
NORMALIZED = {"ppo.normalize_observation": True, "ppo.normalize_reward": True}
REPLAY = {"replay.samples_per_insert": 2.0, "replay.sampler": "prioritized"}
STEPS = {"replay.item": "step", "replay.capacity_items": 96, "replay.batch_size_items": 16}

RUNS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "CartPole, normalised": ("CartPole-v1", NORMALIZED, {}),
    "every space": (Everything, NORMALIZED, {}),
    "masks, lstm": (Masked, LSTM, {}),
    "images": (Pixels, {"net.image": "small"}, {}),
    "stacked frames": (Clock, {"env.frame_stack": 3}, {}),
    "novelty": (Clock, {"rnd.coef": 0.5, "rnd.learning_rate": 1e-3}, {}),
    "an auxiliary loss": (Clock, LSTM, {"auxiliary": RewardPrediction}),
    "imitation": ("CartPole-v1", {"imitate.player": "toys:lean", "imitate.env_steps": 200, **NORMALIZED}, {}),
    "replay of columns": (Clock, REPLAY, {"max_policy_lag": -1}),
    "replay of steps": (Clock, {**REPLAY, **STEPS}, {"max_policy_lag": -1}),
}


@pytest.mark.parametrize("what", RUNS)
def test_a_run_on_a_device_learns_what_one_on_the_cpu_does(what: str, device: str, tmp_path: Path) -> None:
    env, settings, extras = RUNS[what]
    found = []
    for place in (device, "cpu"):
        if device == simulated.NAME:
            simulated.reset_traffic()
        settings = {"stop.updates": 4, **settings}
        quick_train(env, tmp_path / place, settings, backend="serial", device=place, **extras)
        assert device != simulated.NAME or bool(simulated.traffic().launches) == (place == device)
        found.append(learned(tmp_path / place))
    on_device, on_cpu = found
    assert on_device["env_steps"] == on_cpu["env_steps"]
    assert_close(on_device["policy"], on_cpu["policy"])
    assert_close(on_device["learner"], on_cpu["learner"])


def assert_close(first: Any, second: Any, path: str = "") -> None:
    """Two trees of arrays and numbers."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            assert_close(first[name], second[name], f"{path}/{name}")
    elif first is not None and not isinstance(first, str):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5, err_msg=path)


def test_workers_collect_for_a_learner_on_a_device(device: str, tmp_path: Path, nothing_left_behind: None) -> None:
    """With evaluation and checkpoints on the way; what was learned then plays on the CPU."""
    settings = {
        "eval.every_env_steps": 1000, "eval.episodes": 2, "checkpoint.every_env_steps": 1000,
        **NORMALIZED, **LSTM, "ppo.learning_rate": 3e-3,
    }  # fmt: skip
    sizes = {"envs_per_worker": 4, "rollout_steps": 32, "max_policy_lag": 1, "total_env_steps": 3000}
    result = quick_train("CartPole-v1", tmp_path, settings, backend="processes", device=device, **sizes)
    assert result.reason == "complete"
    rows = rows_of(tmp_path)
    assert sum("eval_return" in row for row in rows) >= 2
    assert all(np.isfinite(row["kl"]) for row in rows)
    policy = millrace.load_policy(tmp_path)
    assert policy.value(np.zeros(4, np.float32), policy.new_state()).shape == (1,)
    assert millrace.evaluate(tmp_path, episodes=2).mean_return > 0


def test_a_run_goes_on_on_a_device_and_on_the_cpu(device: str, tmp_path: Path) -> None:
    """Stopped and resumed where it was, bit for bit; resumed on the other, nearly."""
    settings = {**NORMALIZED, "rnd.coef": 0.5}
    train = functools.partial(quick_train, "CartPole-v1", backend="serial")
    train(tmp_path / "whole", {**settings, "stop.updates": 4}, device=device)
    whole = learned(tmp_path / "whole")
    for first, second in ((device, device), (device, "cpu"), ("cpu", device)):
        directory = tmp_path / f"{first} {second}"
        train(directory, {**settings, "stop.updates": 2}, device=first)
        millrace.resume(directory, settings={"stop.updates": 4}, device=second, quiet=True)
        assert "exactly where it stopped" in log_of(directory)
        assert_close(learned(directory)["policy"], whole["policy"])
        assert_close(learned(directory)["learner"], whole["learner"])


class Own(torch.nn.Module):
    """A user's own network."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.heads = torch.nn.Linear(3, 8), torch.nn.Linear(8, 4)

    def forward(self, observation: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = self.heads(torch.tanh(self.body(observation["obs"])))
        return outputs[:, :3], outputs[:, 3]


def test_a_user_s_own_network_travels_to_workers_that_have_no_such_device(device: str, tmp_path: Path) -> None:
    settings, found = {"stop.updates": 3, "collect.inference": "local"}, []
    for place, backend in ((device, "processes"), ("cpu", "serial")):
        torch.manual_seed(0)
        quick_train(Clock, tmp_path / place, settings, backend=backend, device=place, network=Own(), workers=1)
        found.append(learned(tmp_path / place)["policy"])
    assert_close(*found)


@pytest.mark.parametrize("name", ["abacus", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_with_a_way_out(name: str, run_dir: Path) -> None:
    with pytest.raises(ConfigError, match=rf"device={name} cannot be used here: .*; `millrace doctor`"):
        quick_train(Clock, run_dir, {"stop.updates": 1}, backend="serial", device=name)


FRAMES = SlotSpec({"obs": ArraySpec((36, 36), "uint8", scale=1 / 255, stack=3)}, ActionSpec((4,)))


@pytest.mark.parametrize("memory", [{}, {"memory": "gru", "memory_size": 8}], ids=["without memory", "gru"])
def test_an_actor_on_a_device_says_what_one_on_the_cpu_does(memory: dict[str, Any], device: str) -> None:
    net = NetConfig(image="small", **memory)
    maker = ActorMaker(FRAMES, net)
    actors = [maker.make(place) for place in (device, "cpu")]
    states = [Memory(FRAMES, maker.state_size, 5) for _ in actors]
    rng = np.random.default_rng(0)
    for _ in range(3):  # the first weights make the policy, the others are taken over
        weights = Policy(FRAMES, net).flat_weights()
        observation = {"obs": rng.integers(0, 256, (5, 36, 36), np.uint8)}
        for actor in actors:
            actor.load(weights)
        answers = [
            actor.forward(memory.see(observation), memory.state) for actor, memory in zip(actors, states, strict=True)
        ]
        for found, expected in zip(*answers, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        if states[0].state is not None:
            np.testing.assert_allclose(states[0].state, states[1].state, rtol=1e-4, atol=1e-5)
    assert {parameter.device.type for parameter in actors[0].policy.parameters()} == {device}


@pytest.fixture
def known_to_children(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device for spawned processes too: torch loads what an installed distribution offers as a backend."""
    if device != simulated.NAME:
        return device
    described = tmp_path / "site" / "simulated_device-1.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: simulated-device\nVersion: 1\n")
    (described / "entry_points.txt").write_text("[torch.backends]\nsimulated = device.simulated:load\n")
    monkeypatch.syspath_prepend(tmp_path / "site")  # children get this process's path
    return device


def test_central_inference_acts_on_a_device(known_to_children: str, run_dir: Path, nothing_left_behind: None) -> None:
    """The same rollouts as where each worker acts by itself on the CPU."""
    found = []
    central = {"collect.backend": "processes", "collect.workers": 1, "collect.double_buffering": False}
    for inference in ("local", "central"):
        settings = {**central, "collect.inference": inference, "net.image": "small", "device": known_to_children}
        with opened(Pixels, run_dir / inference, **settings) as run:
            if inference == "central":
                assert any(f"({known_to_children})" in line for line in run.describe())
            found.append([run.source.next_batch().rollout for _ in range(3) if run.publish() is None])
    for local, acted in zip(*found, strict=True):
        for (name, expected), (_, array) in zip(local.fields(), acted.fields(), strict=True):
            np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-5, err_msg=name)
