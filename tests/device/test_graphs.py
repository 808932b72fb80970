"""Steps that are recorded once, and uploads that begin early, on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import millrace
from device.test_learner import DICT, FRAMES, VECTOR, make_learner, taught
from helpers import learned, quick_train
from learner.recorded_graph import RecordedGraph
from millrace.config import PPOConfig
from millrace.learner import ppo
from millrace.learner.autograd import AutogradGradients
from millrace.learner.flat import FlatParameters
from millrace.learner.graph import CudaGraph
from millrace.learner.steps import DeviceSteps, GraphedSteps
from millrace.nets.policy import Policy
from millrace.types import SlotSpec
from toys import Clock, Pixels

CASES: dict[str, tuple[SlotSpec, dict[str, Any], dict[str, Any]]] = {
    "dense": (VECTOR, {}, {"normalize_observation": True, "learning_rate_schedule": "linear"}),
    "stacked frames": (FRAMES, {"image": "small"}, {"target_kl": 5.0}),
    "dict with masks, bf16": (DICT, {"image": "small"}, {"precision": "bf16"}),
}


def as_graph(policy: Policy, parameters: FlatParameters, config: PPOConfig, auxiliary: Any = None) -> GraphedSteps:
    """Steps by CUDA's graphs on a GPU, else by one of operations."""
    graph = CudaGraph() if parameters.vector.device.type == "cuda" else RecordedGraph()
    return GraphedSteps(AutogradGradients(policy, parameters, config, auxiliary), parameters, config, graph)


@pytest.mark.parametrize("case", CASES)
def test_a_graph_makes_the_steps_that_are_made_without(case: str, device: str, monkeypatch) -> None:
    spec, net, settings = CASES[case]
    direct = make_learner(spec, net, settings, device)
    assert isinstance(direct._steps, DeviceSteps)
    monkeypatch.setattr(ppo, "make_steps", as_graph)
    graphed = make_learner(spec, net, settings, device)
    for found, expected in zip(taught(graphed, spec, 4), taught(direct, spec, 4), strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
    np.testing.assert_allclose(graphed.weights(), direct.weights(), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("has_graph", [False, True], ids=["queued", "graph"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cartpole_is_learned(seed: int, has_graph: bool, device: str, run_dir: Path, monkeypatch) -> None:
    if has_graph:
        monkeypatch.setattr(ppo, "make_steps", as_graph)
    millrace.train("CartPole-v1", seed=seed, device=device, total_env_steps=300_000, run_dir=run_dir, quiet=True)
    assert millrace.evaluate(run_dir, episodes=50).mean_return > 475


@pytest.mark.parametrize("env", [Clock, Pixels])
def test_a_run_whose_rollouts_are_uploaded_early_is_the_same(env: Any, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("wants page-locked memory and streams; tests/learner/test_uploads.py does without")
    found = []
    for name, overlaps in (("early", True), ("late", False)):
        settings = {"stop.updates": 4, "ppo.overlap_transfers": overlaps, "net.image": "small"}
        quick_train(env, tmp_path / name, settings, backend="serial", device="cuda")
        found.append(learned(tmp_path / name)["policy"])
    for name, array in found[0].items():
        np.testing.assert_allclose(array, found[1][name], rtol=1e-4, atol=1e-5, err_msg=name)
