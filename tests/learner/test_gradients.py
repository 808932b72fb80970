"""The hand-written gradients and Adam against autograd and torch's own."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from millrace.config import NetConfig, PPOConfig
from millrace.learner.autograd import AutogradGradients
from millrace.learner.dense import DenseGradients
from millrace.learner.flat import Adam, FlatParameters
from millrace.learner.gradients import make_gradients
from millrace.learner.rows import Rows
from millrace.nets.policy import Policy
from millrace.types import ActionSpec, ArraySpec, SlotSpec

NUM_ROWS = 96
TWO_WAY = ActionSpec((2,))
MANY_WAYS = ActionSpec((5, 3))
BOX = ActionSpec((), (-1.0,) * 3, (1.0,) * 3)
MIXED = ActionSpec((4,), (-1.0,) * 2, (1.0,) * 2)
OBSERVATION = {
    "image": ArraySpec((1, 4, 4), "uint8", scale=1 / 255),
    "kind": ArraySpec((), "int64", num_classes=3),
    "vector": ArraySpec((6,), "float32"),
}


def make_rows(spec: SlotSpec, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    num_mask_bits = spec.num_mask_bits
    mask = rng.random((NUM_ROWS, num_mask_bits)) < 0.6
    action = np.zeros((NUM_ROWS, spec.action.num_columns), spec.action.dtype)
    first = 0
    for column, size in enumerate(spec.action.nvec):
        action[:, column] = rng.integers(0, size, NUM_ROWS)
        if num_mask_bits:
            mask[np.arange(NUM_ROWS), first + action[:, column].astype(int)] = True
        first += size
    action[:, len(spec.action.nvec) :] = rng.normal(size=(NUM_ROWS, spec.action.num_box))

    def normal() -> Tensor:
        return torch.from_numpy(rng.normal(size=NUM_ROWS).astype(np.float32))

    return Rows(
        observation={
            "image": torch.from_numpy(rng.integers(0, 256, (NUM_ROWS, 1, 4, 4), dtype=np.uint8)),
            "kind": torch.from_numpy(rng.integers(0, 3, NUM_ROWS)),
            "vector": torch.from_numpy(rng.normal(size=(NUM_ROWS, 6)).astype(np.float32)),
        },
        action=torch.from_numpy(action),
        # Far enough from the policy that every branch of the clipping is met.
        log_prob=normal() * 0.4 - 1.2,
        advantage=normal(),
        target=normal() * 2,
        value=normal(),
        weight=torch.from_numpy((rng.random(NUM_ROWS) < 0.8).astype(np.float32)),
        action_mask=torch.from_numpy(mask) if num_mask_bits else None,
    )


@pytest.mark.parametrize("action", [TWO_WAY, MANY_WAYS, BOX, MIXED], ids=["two", "many", "box", "mixed"])
@pytest.mark.parametrize("has_mask", [False, True], ids=["free", "masked"])
@pytest.mark.parametrize("net", [NetConfig((16, 8)), NetConfig((16,), "relu", shared=True)], ids=["apart", "shared"])
@pytest.mark.parametrize(
    "config",
    [
        PPOConfig(threads=1),
        PPOConfig(threads=1, value_clip=0.3, entropy_coef=0.05, normalize_advantage=False, dual_clip=1.5),
        PPOConfig(threads=1, objective="decoupled", ratio_cap=1.3, dual_clip=2.0),
        PPOConfig(threads=1, objective="proximal"),
    ],
    ids=["plain", "all terms", "decoupled", "proximal"],
)
def test_hand_written_gradients_equal_autograd(
    action: ActionSpec, has_mask: bool, net: NetConfig, config: PPOConfig
) -> None:
    if has_mask and not action.nvec:
        pytest.skip("masks are for categories")
    spec = SlotSpec(OBSERVATION, action, has_mask)
    torch.manual_seed(1)
    by_hand = Policy(spec, net, normalize_observation=True)
    for parameter in by_hand.parameters():  # away from the symmetry of the initial heads
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    by_autograd = copy.deepcopy(by_hand)
    figures = []
    grads = []
    for policy, kind in ((by_hand, DenseGradients), (by_autograd, AutogradGradients)):
        parameters = FlatParameters(policy.parameters())
        settings = config if kind is DenseGradients else dataclasses.replace(config, threads=2)
        gradients = make_gradients(policy, parameters, settings)
        assert type(gradients) is kind
        rows = make_rows(spec)
        if config.objective != "auto":
            rows.log_importance = torch.linspace(-0.5, 0.5, NUM_ROWS)
            rows.weight *= torch.linspace(0.1, 1.0, NUM_ROWS)
        gradients.prepare(rows)
        gradients.shuffle(torch.Generator().manual_seed(2))
        gradients.compute(0, 32, 0.2, wants_stats=False)  # leaves nothing behind that the next call would add to
        loss, stats = gradients.compute(32, NUM_ROWS, 0.2, wants_stats=True)
        figures.append({"loss": loss, **stats})
        grads.append(parameters.grad.clone())
    assert figures[0] == pytest.approx(figures[1], rel=1e-4, abs=1e-6)
    scale = float(grads[1].abs().max())
    assert scale > 1e-3
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-5 * scale)


def test_adam_takes_the_same_steps_as_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(7, 5), torch.nn.Linear(7, 5)
    theirs.load_state_dict(ours.state_dict())
    parameters = FlatParameters(ours.parameters())
    adam = Adam(parameters, eps=1e-5)
    reference = torch.optim.Adam(theirs.parameters(), lr=1e-2, eps=1e-5)
    for step in range(20):
        inputs = torch.randn(9, 7)
        parameters.grad.zero_()
        for module in (ours, theirs):
            (module(inputs) ** 2).sum().backward()
        reference.param_groups[0]["lr"] = rate = 1e-2 / (step + 1)
        reference.step()
        reference.zero_grad()
        adam.step(rate)
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ours.bias, theirs.bias, rtol=1e-5, atol=1e-7)


def test_adam_continues_from_its_saved_state() -> None:
    torch.manual_seed(0)
    parameters = FlatParameters([torch.nn.Parameter(torch.randn(6))])
    adam = Adam(parameters, eps=1e-5)
    grads = torch.randn(4, 6)
    for grad in grads[:2]:
        parameters.grad.copy_(grad)
        adam.step(0.1)
    saved, vector = adam.save_state(), parameters.vector.clone()

    def rest() -> Tensor:
        for grad in grads[2:]:
            parameters.grad.copy_(grad)
            adam.step(0.1)
        return parameters.vector.clone()

    expected = rest()
    parameters.vector.copy_(vector)
    adam.load_state(saved)
    assert torch.equal(rest(), expected)


def test_clipping_scales_the_gradient_to_the_norm_and_reports_the_one_before() -> None:
    parameters = FlatParameters([torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))])
    parameters.grad.copy_(torch.tensor([3.0, 0.0, 4.0]))
    assert float(parameters.clip_grad(0.5)) == pytest.approx(5.0)
    assert float(parameters.grad.norm()) == pytest.approx(0.5, rel=1e-5)
    parameters.clip_grad(10.0)
    assert float(parameters.grad.norm()) == pytest.approx(0.5, rel=1e-5)
