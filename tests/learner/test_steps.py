"""Gradient steps that are queued, or recorded and replayed, against those that are looked at one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from helpers import differences
from learner.recorded_graph import Listener, RecordedGraph
from millrace.buffer.batch import Batch, Item
from millrace.config import NetConfig, PPOConfig
from millrace.errors import ConfigError
from millrace.learner.autograd import AutogradGradients
from millrace.learner.flat import FlatParameters
from millrace.learner.ppo import Learner
from millrace.learner.steps import DeviceSteps, GraphedSteps, HostSteps, make_steps
from millrace.nets.policy import Policy
from millrace.types import ActionSpec, ArraySpec, RolloutLayout, SlotSpec

STEPS, SLOTS = 8, 4
SPECS = {
    "vector": SlotSpec({"obs": ArraySpec((3,), "float32")}, ActionSpec((2,))),
    "continuous": SlotSpec({"obs": ArraySpec((3,), "float32")}, ActionSpec(low=(-1.0, -1.0), high=(1.0, 1.0))),
    "masked": SlotSpec({"obs": ArraySpec((3,), "float32")}, ActionSpec((3, 2)), has_action_mask=True),
    "stacked": SlotSpec({"obs": ArraySpec((36, 36), "uint8", stack=3, scale=1 / 255)}, ActionSpec((4,))),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "normalize_observation": True,
        "normalize_reward": True,
        "value_clip": 0.2,
        "dual_clip": 3.0,
        "entropy_coef": 0.01,
        "clip_schedule": "linear",
    },
    "decoupled": {"objective": "decoupled", "values": "learner", "recompute_advantage": True},
    "vtrace": {"targets": "vtrace", "values": "learner"},
    "bf16": {"precision": "bf16"},
}


def make_learner(kind: str, spec: SlotSpec, graph: RecordedGraph | None = None, **settings: Any) -> Learner:
    """One whose steps are made on the host, on a device (here also a CPU), or by a graph."""
    torch.manual_seed(0)
    net = NetConfig(hidden=(8,), image="small")
    # Two threads: gradients by autograd, as on a device.
    config = PPOConfig(**{"minibatch_size": STEPS * SLOTS // 2, "epochs": 3, "threads": 2, **settings})
    policy = Policy(spec, net, config.normalize_observation)
    learner = Learner(policy, config, total_env_steps=1000, seed=0)
    if kind != "host":
        parameters = FlatParameters(policy.parameters())
        gradients = AutogradGradients(policy, parameters, config)
        device = DeviceSteps(gradients, parameters, config)
        learner._steps = device if graph is None else GraphedSteps(gradients, parameters, config, graph)
    return learner


def make_batch(spec: SlotSpec, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    rollout = RolloutLayout(spec, STEPS, SLOTS).allocate()
    array = rollout.observation["obs"]
    array[:] = rng.integers(256, size=array.shape) if array.dtype == np.uint8 else rng.normal(size=array.shape)
    if spec.action.num_box:
        rollout.action[:] = rng.normal(size=rollout.action.shape)
        rollout.log_prob[:] = -2.8
    else:
        rollout.action[:] = rng.integers(2, size=rollout.action.shape)
        rollout.log_prob[:] = -np.log(np.prod(spec.action.nvec))
    rollout.value[:] = rng.normal(size=rollout.value.shape)
    rollout.reward[:] = rng.normal(size=rollout.reward.shape)
    rollout.valid[:] = True
    rollout.terminated[3, 1], rollout.valid[4, 1] = True, False
    if rollout.action_mask is not None:
        rollout.action_mask[:] = 0b11011  # the third of the first three categories is not allowed
    if rollout.age is not None:
        rollout.age[:] = np.arange(STEPS + 1)[:, None]
    return Batch(rollout, [Item(0, seed, 0)], SLOTS, seed, int(rollout.valid.sum()))


def everything(learner: Learner) -> dict[str, Any]:
    policy = {name: tensor.numpy().copy() for name, tensor in learner.policy.state_dict().items()}
    return {"policy": policy, **learner.save_state()}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("spec", SPECS)
def test_steps_on_a_device_are_those_on_the_host(spec, settings):
    host, device = (make_learner(kind, SPECS[spec], **SETTINGS[settings]) for kind in ("host", "device"))
    assert isinstance(host._steps, HostSteps)
    for seed in range(3):
        batch = make_batch(SPECS[spec], seed)
        expected, told = host.update(batch, 100 * seed), device.update(batch, 100 * seed)
        assert told == pytest.approx(expected, rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(device.weights(), host.weights(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("spec", SPECS)
def test_a_graph_makes_the_same_steps_bit_for_bit(spec, settings):
    graph = RecordedGraph()
    direct = make_learner("device", SPECS[spec], **SETTINGS[settings])
    graphed = make_learner("device", SPECS[spec], graph, **SETTINGS[settings])
    for seed in range(4):
        batch = make_batch(SPECS[spec], seed)
        assert graphed.update(batch, 100 * seed) == direct.update(batch, 100 * seed)
    assert not differences(everything(graphed), everything(direct))
    # Three steps first, the fourth checked against its replay; each of the others is one replay.
    assert graph.num_replays == 4 * 6 - 3


@pytest.mark.parametrize("graph", [None, RecordedGraph()], ids=["queued", "graph"])
def test_a_step_asks_for_nothing_of_what_it_computes(graph):
    learner = make_learner("device", SPECS["masked"], graph, normalize_observation=True)
    learner.update(make_batch(SPECS["masked"], 0), 0)
    steps, listener = learner._steps, Listener()
    rows = learner._targets.rows(make_batch(SPECS["masked"], 1))
    with listener:
        steps.begin(1e-3, 0.2)
        steps.prepare(rows)
        steps.shuffle(torch.Generator().manual_seed(0))
        steps.step(0, STEPS * SLOTS // 2, True)
        assert listener.num_asked == 0
        assert steps.finish() == 0
        assert listener.num_asked == 1


@pytest.mark.parametrize("graph", [None, RecordedGraph()], ids=["queued", "graph"])
def test_a_loss_that_is_not_finite_changes_nothing_and_is_counted(graph):
    learner = make_learner("device", SPECS["vector"], graph)
    spec = SPECS["vector"]
    for seed in range(2):
        learner.update(make_batch(spec, seed), 0)
    before = everything(learner)
    spoiled = make_batch(spec, 3)
    spoiled.rollout.reward[:] = np.nan
    learner.update(spoiled, 0)
    assert learner.skipped_steps == 6
    ignored = {"updates", "skipped_steps", "generator"}
    after = everything(learner)
    assert not differences(*({k: v for k, v in x.items() if k not in ignored} for x in (after, before)))
    learner.update(make_batch(spec, 4), 0)
    assert learner.skipped_steps == 6
    assert differences(everything(learner)["policy"], before["policy"])


def test_a_first_batch_that_is_not_finite_puts_the_recording_off():
    graph = RecordedGraph()
    learner = make_learner("device", SPECS["vector"], graph)
    spoiled = make_batch(SPECS["vector"], 0)
    spoiled.rollout.reward[:] = np.nan
    learner.update(spoiled, 0)
    assert (graph.num_replays, learner.skipped_steps) == (0, 6)
    learner.update(make_batch(SPECS["vector"], 1), 0)
    assert (graph.num_replays, learner.skipped_steps) == (6, 6)


@pytest.mark.parametrize("kinds", [("host", "device"), ("device", "host"), ("device", "device")])
def test_a_checkpoint_goes_on_wherever_it_was_written(kinds):
    before, after = (make_learner(kind, SPECS["vector"]) for kind in kinds)
    undisturbed = make_learner(kinds[0], SPECS["vector"])
    for seed in range(2):
        before.update(make_batch(SPECS["vector"], seed), 0)
        undisturbed.update(make_batch(SPECS["vector"], seed), 0)
    after.policy.load_state_dict(before.policy.state_dict())
    after.load_state(before.save_state())
    for learner in (after, undisturbed):
        learner.update(make_batch(SPECS["vector"], 2), 0)
    np.testing.assert_allclose(after.weights(), undisturbed.weights(), rtol=1e-5, atol=1e-6)
    assert after.save_state()["adam"]["steps"] == undisturbed.save_state()["adam"]["steps"] == 18


def test_a_graph_that_does_something_else_is_not_trusted():
    class Broken(RecordedGraph):
        def replay(self) -> None:
            self._operations = [x for x in self._operations if "zero_" not in str(x[0])]
            super().replay()

    learner = make_learner("device", SPECS["vector"], Broken())
    with pytest.raises(ConfigError, match=r"differs from the same step's made directly.*cuda_graphs=false"):
        learner.update(make_batch(SPECS["vector"], 0), 0)


def test_what_cannot_be_recorded_is_told():
    class Asking(torch.nn.Module):
        def forward(self, policy: Policy, rows: Any) -> torch.Tensor:
            return rows.weight.sum() if float(rows.weight.sum()) > 0 else rows.weight.mean()

    learner = make_learner("device", SPECS["vector"], RecordedGraph())
    learner._steps._gradients._auxiliary = Asking()
    with pytest.raises(ConfigError, match=r"a step cannot be recorded.*cuda_graphs=false"):
        learner.update(make_batch(SPECS["vector"], 0), 0)


@pytest.mark.parametrize(
    ("memory", "match"), [("none", "wants device=cuda, not cpu"), ("gru", "not take networks with")]
)
def test_graphs_are_refused_where_there_are_none(memory, match):
    policy = Policy(SPECS["vector"], NetConfig(memory=memory))
    with pytest.raises(ConfigError, match=match):
        make_steps(policy, FlatParameters(policy.parameters()), PPOConfig(cuda_graphs=True, minibatch_size=8))


def test_while_a_device_computes_others_are_looked_after(monkeypatch):
    learner = make_learner("device", SPECS["vector"])
    asked = iter([False, False, True])

    class Event:
        def __init__(self, device: torch.device) -> None:
            assert device.type == "cpu"

        def record(self) -> None:
            pass

        def query(self) -> bool:
            return next(asked)

    monkeypatch.setattr(torch, "Event", Event)
    calls: list[float] = []
    learner.update(make_batch(SPECS["vector"], 0), 0, calls.append)
    assert len(calls) == 2
