"""The collectors' actor in NumPy and the learner's policy in torch are one function."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from millrace.config import NetConfig
from millrace.learner.flat import FlatParameters
from millrace.nets.actor import ActorMaker
from millrace.nets.policy import Policy
from millrace.types import ActionSpec, ArraySpec, SlotSpec

VECTOR = {"obs": ArraySpec((4,), "float32")}
OBSERVATIONS = {
    "vector": VECTOR,
    "wide": {"obs": ArraySpec((3, 5), "float32"), "more": ArraySpec((2,), "float32")},
    "categories": {"kind": ArraySpec((), "int64", num_classes=5), "kinds": ArraySpec((3,), "int64", num_classes=4)},
    "bytes": {"obs": ArraySpec((4, 4), "uint8", scale=1 / 255), "bits": ArraySpec((3,), "int8")},
    "scalar": {"obs": ArraySpec((), "float32")},
    "names that modules have": {"items": ArraySpec((2,), "float32"), "type": ArraySpec((1,), "float32")},
    "names with dots": {"a.b": ArraySpec((2,), "float32"), "a/b": ArraySpec((2,), "float32")},
    "image": {"obs": ArraySpec((24, 24, 3), "uint8", scale=1 / 255), "vector": ArraySpec((2,), "float32")},
}
ACTIONS = {
    "discrete": ActionSpec((3,)),
    "box": ActionSpec(low=(-1.0, -1.0), high=(1.0, 1.0)),
    "both": ActionSpec((2, 3), (-1.0,), (1.0,)),
}
NETS = {
    "tanh": NetConfig(hidden=(16, 8)),
    "relu, shared": NetConfig(hidden=(16,), activation="relu", shared=True),
    "linear": NetConfig(hidden=()),
    "deviations of the state": NetConfig(hidden=(16,), state_log_std=True),
}


def draw(observation: dict[str, ArraySpec], num_rows: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    found = {}
    for key, spec in observation.items():
        shape = (num_rows, *spec.shape)
        if spec.num_classes:
            found[key] = rng.integers(spec.num_classes, size=shape)
        elif spec.dtype == "float32":
            found[key] = (3 + 5 * rng.normal(size=shape)).astype(np.float32)
        else:
            found[key] = rng.integers(0, 120, size=shape).astype(spec.dtype)
    return found


def tensors(observation):
    return {key: torch.from_numpy(array) for key, array in observation.items()}


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_actor_and_policy_agree_after_travelling_as_flat_weights(observation, action, net, normalized):
    torch.manual_seed(0)
    spec = SlotSpec(OBSERVATIONS[observation], ACTIONS[action])
    policy = Policy(spec, NETS[net], normalized)
    with torch.no_grad():
        for parameter in policy.parameters():  # away from the zeros of the beginning
            parameter += 0.1 * torch.randn_like(parameter)
    seen = draw(spec.observation, 200, seed=1)
    for key, normalizer in policy.normalizers():
        normalizer.update(torch.from_numpy(seen[key]))
    actor = ActorMaker(spec, NETS[net], normalized).make()
    actor.load(policy.flat_weights())
    rows = draw(spec.observation, 32)
    params, value = actor.forward(rows)
    with torch.no_grad():
        expected_params, expected_value = policy(tensors(rows))
    assert params.shape == (32, spec.action.num_params)
    assert params.dtype == value.dtype == np.float32
    np.testing.assert_allclose(params, expected_params, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5, atol=2e-6)


def test_new_weights_replace_the_old_ones_entirely():
    spec = SlotSpec(VECTOR, ACTIONS["both"])
    first, second = Policy(spec, NETS["tanh"], True), Policy(spec, NETS["tanh"], True)
    actor = ActorMaker(spec, NETS["tanh"], True).make()
    rows = draw(VECTOR, 8)
    actor.load(first.flat_weights())
    actor.load(second.flat_weights())
    second.load_flat_weights(second.flat_weights())
    np.testing.assert_allclose(actor.forward(rows)[0], second(tensors(rows))[0].detach(), atol=2e-6)
    first.load_flat_weights(second.flat_weights())
    torch.testing.assert_close(first(tensors(rows)), second(tensors(rows)))


def test_an_actor_keeps_no_hold_of_the_memory_that_its_weights_came_in():
    """The same buffer is written again with the next version."""
    spec = SlotSpec(VECTOR, ACTIONS["both"])
    policy = Policy(spec, NETS["tanh"])
    actor = ActorMaker(spec, NETS["tanh"]).make()
    weights = policy.flat_weights()
    actor.load(weights)
    rows = draw(VECTOR, 8)
    before = actor.forward(rows)[0].copy()
    weights[:] = np.nan
    np.testing.assert_array_equal(actor.forward(rows)[0], before)


def test_a_normalizer_has_the_mean_and_deviation_of_all_rows_whatever_their_batches():
    from millrace.nets.policy import Normalizer

    rows = torch.from_numpy(1e4 + np.random.default_rng(0).normal(size=(1000, 3)))
    whole, parts = Normalizer((3,)), Normalizer((3,))
    whole.update(rows)
    for part in rows.split([1, 400, 0, 99, 500]):
        parts.update(part)
    for normalizer in (whole, parts):
        torch.testing.assert_close(normalizer.mean, rows.mean(0))
        torch.testing.assert_close(1 / normalizer.factor.double(), rows.std(0, correction=0), rtol=1e-5, atol=0)
    assert float(parts.row_count) == 1000


def test_outliers_are_clipped():
    from millrace.nets.policy import Normalizer

    normalizer = Normalizer(())
    normalizer.update(torch.randn(100))
    assert normalizer(torch.tensor([1e9, -1e9])).tolist() == [10.0, -10.0]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("memory", ["gru", "lstm"])
@pytest.mark.parametrize("hidden", [(), (16, 8)])
@pytest.mark.parametrize("action", ACTIONS)
def test_a_recurrent_actor_and_its_policy_agree_step_by_step(action, hidden, memory, shared):
    torch.manual_seed(0)
    net = NetConfig(hidden=hidden, memory=memory, memory_size=6, shared=shared)
    spec = SlotSpec(VECTOR, ACTIONS[action])
    policy = Policy(spec, net)
    maker = ActorMaker(spec, net)
    assert not maker.needs_torch
    actor = maker.make()
    actor.load(policy.flat_weights())
    steps, slots = 7, 3
    observation = [draw(VECTOR, slots, seed) for seed in range(steps)]
    begins = np.zeros((steps, slots), bool)
    begins[2, 1] = begins[5] = True
    state = np.random.default_rng(1).normal(size=(slots, maker.state_size)).astype(np.float32)
    flat = {"obs": torch.from_numpy(np.concatenate([row["obs"] for row in observation]))}
    with torch.no_grad():
        params, value, _ = policy.unroll(flat, torch.from_numpy(state.copy()), torch.from_numpy(begins))
    for t in range(steps):
        state[begins[t]] = 0.0
        found_params, found_value = actor.forward(observation[t], state)
        rows = slice(t * slots, (t + 1) * slots)
        np.testing.assert_allclose(found_params, params[rows], atol=2e-6)
        np.testing.assert_allclose(found_value, value[rows], atol=2e-6)


def test_a_user_s_network_travels_without_what_the_learner_made_of_its_memory():
    """Parameters that lie in one vector would each bring all of it along."""
    network = torch.nn.Sequential(*(torch.nn.Linear(32, 32) for _ in range(8)))
    maker = ActorMaker(SlotSpec(VECTOR, ACTIONS["both"]), NetConfig(), network=network)
    before = len(pickle.dumps(maker))
    FlatParameters(network.parameters())
    assert len(pickle.dumps(maker)) == before
    assert torch.equal(pickle.loads(pickle.dumps(maker)).network[3].weight, network[3].weight)
