"""Gymnasium spaces to flat arrays and back."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.config import NetConfig
from millrace.envs.spaces import (
    action_converter,
    action_spec,
    batch_action_converter,
    leaf_value,
    leaves,
    slot_spec,
    space_from_json,
    space_to_json,
)
from millrace.errors import EnvError
from millrace.nets.actor import ActorMaker
from millrace.nets.policy import Policy
from millrace.ops.sampling import sample_actions
from millrace.types import SlotSpec
from toys import Everything

ACTION_SPACES = {
    "discrete": spaces.Discrete(4),
    "discrete from -2": spaces.Discrete(4, start=-2),
    "multi-discrete": spaces.MultiDiscrete([3, 2, 5]),
    "multi-discrete from 1": spaces.MultiDiscrete([3, 2], start=[1, 10]),
    "multi-discrete in rows": spaces.MultiDiscrete([[2, 3], [4, 5]]),
    "bits": spaces.MultiBinary(3),
    "bits in rows": spaces.MultiBinary((2, 2)),
    "box": spaces.Box(-1.0, 1.0, (3,), np.float32),
    "box in rows, float64": spaces.Box(np.array([[-1.0, 0.0]]), np.array([[1.0, 5.0]]), dtype=np.float64),
    "dict": spaces.Dict({"b": spaces.Discrete(2), "a": spaces.Box(0, 1, (2,), np.float32)}),
    "tuple": spaces.Tuple((spaces.MultiBinary(2), spaces.Discrete(3, start=7))),
    "everything": Everything().action_space,
}


def draw_columns(space, num_rows, seed=0):
    spec = action_spec(space)
    action = np.empty((num_rows, spec.num_columns), spec.dtype)
    params = np.zeros((num_rows, spec.num_params), np.float32)
    sample_actions(spec, params, None, np.random.default_rng(seed), action, np.empty(num_rows, np.float32))
    return action


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_every_drawn_action_lies_in_its_space_and_reaches_every_category(name):
    space = ACTION_SPACES[name]
    convert = action_converter(space)
    actions = [convert(row) for row in draw_columns(space, 300)]
    for action in actions:
        assert space.contains(action), action
    if isinstance(space, spaces.Discrete):
        assert set(actions) == set(range(space.start, space.start + space.n))
    if isinstance(space, spaces.MultiDiscrete):
        np.testing.assert_array_equal(np.min(actions, 0), space.start)
        np.testing.assert_array_equal(np.max(actions, 0), space.start + space.nvec - 1)


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_a_batch_of_actions_is_what_a_vector_environment_wants(name):
    space = ACTION_SPACES[name]
    columns = draw_columns(space, 5)
    batch = batch_action_converter(space)(columns)
    one_by_one = [action_converter(space)(row) for row in columns]
    for taken, expected in zip(
        gym.vector.utils.iterate(gym.vector.utils.batch_space(space, 5), batch), one_by_one, strict=True
    ):
        assert json.dumps(taken, default=_plain) == json.dumps(expected, default=_plain)


def _plain(value):
    return value.tolist()


def test_continuous_actions_are_clipped_to_the_space_and_not_in_the_rollout():
    space = ACTION_SPACES["box"]
    columns = np.array([-7.0, 0.25, 7.0], np.float32)
    assert action_converter(space)(columns).tolist() == [-1.0, 0.25, 1.0]
    assert batch_action_converter(space)(columns[None]).tolist() == [[-1.0, 0.25, 1.0]]
    assert columns.tolist() == [-7.0, 0.25, 7.0]


def test_columns_and_mask_bits_are_counted_over_nested_spaces():
    spec = slot_spec(Everything().observation_space, Everything().action_space, mask_in_info=True)
    assert spec.action.nvec == (2, 2, 2, 4, 3)  # keys, pair, turn: the order of a Dict is that of its names
    assert spec.action.num_box == 2
    assert spec.action.num_columns == 7
    assert spec.num_mask_bits == 13


def test_observations_keep_their_dtypes():
    spec = slot_spec(Everything().observation_space, spaces.Discrete(2), mask_in_info=False)
    assert {key: (array.shape, array.dtype, array.num_classes) for key, array in spec.observation.items()} == {
        "bits": ((3,), "int8", 0),
        "digits": ((2,), "int64", 5),
        "image": ((4, 4, 3), "uint8", 0),
        "number": ((), "float32", 0),
        "pair/0": ((2,), "float32", 0),
        "pair/1": ((), "int64", 4),
    }
    assert spec.observation["image"].scale == pytest.approx(1 / 255)


@pytest.mark.parametrize(
    "space", [spaces.Text(5), spaces.Sequence(spaces.Discrete(2)), spaces.Graph(spaces.Discrete(2), None)]
)
def test_a_space_without_a_fixed_form_is_refused_with_a_way_out(space):
    with pytest.raises(EnvError, match="wrap it into"):
        slot_spec(space, spaces.Discrete(2), mask_in_info=False)
    with pytest.raises(EnvError, match="is not one of"):
        action_spec(space)


def test_an_observation_of_nothing_is_refused():
    with pytest.raises(EnvError, match="nothing to learn from"):
        slot_spec(spaces.Dict({"action_mask": spaces.MultiBinary(2)}), spaces.Discrete(2), mask_in_info=False)


@pytest.mark.parametrize("image", ["auto", "flat"])
def test_numpy_and_torch_see_the_same_in_every_space(image):
    """Raw observations to parameters and values; shifted categories are where they would part first."""
    torch = pytest.importorskip("torch")
    space = Everything().observation_space
    space.seed(3)
    spec = slot_spec(space, Everything().action_space, mask_in_info=False)
    observation = {key: np.empty((16, *array.shape), array.dtype) for key, array in spec.observation.items()}
    samples = [space.sample() for _ in range(16)]
    for name, path, leaf in leaves(space):
        for row, sample in enumerate(samples):
            observation[name][row] = leaf_value(sample, path, leaf)
    assert set(observation["pair/1"].tolist()) == {0, 1, 2, 3}
    net = NetConfig(image=image, hidden=(8,))
    policy = Policy(spec, net)
    actor = ActorMaker(spec, net).make()
    actor.load(policy.flat_weights())
    params, value = actor.forward(observation)
    expected_params, expected_value = policy({key: torch.from_numpy(array) for key, array in observation.items()})
    np.testing.assert_allclose(params, expected_params.detach(), atol=1e-6)
    np.testing.assert_allclose(value, expected_value.detach(), atol=1e-6)


SIMPLE = st.one_of(
    st.builds(spaces.Discrete, st.integers(1, 6), start=st.integers(-5, 5)),
    st.builds(spaces.MultiDiscrete, st.lists(st.integers(1, 5), min_size=1, max_size=3)),
    st.builds(spaces.MultiBinary, st.integers(1, 4)),
    st.builds(
        lambda low, width, size: spaces.Box(low, low + width, (size,), np.float32),
        st.floats(-5, 5), st.floats(0.5, 5), st.integers(1, 3),
    ),
)  # fmt: skip
NESTED = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from("abcd"), inner, min_size=1, max_size=3).map(spaces.Dict),
        st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple),
    ),
    max_leaves=5,
)


@given(NESTED)
@settings(max_examples=50, deadline=None)
def test_any_nested_space_gets_actions_it_contains_and_survives_json(space):
    restored = space_from_json(json.loads(json.dumps(space_to_json(space))))
    assert restored == space
    for row in draw_columns(space, 5):
        assert space.contains(action_converter(restored)(row))


@given(NESTED, NESTED)
@settings(max_examples=30, deadline=None)
def test_the_description_of_a_slot_survives_json(observation, action):
    spec = slot_spec(observation, action, mask_in_info=False)
    assert SlotSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
