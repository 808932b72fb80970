"""Nested values and arrays survive JSON and safetensors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from helpers import differences
from millrace.checkpoints.tree import flatten, unflatten
from millrace.errors import CheckpointError

SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
ARRAYS = st.sampled_from(["bool", "uint8", "int8", "int32", "int64", "uint64", "float32", "float64"]).flatmap(
    lambda dtype: arrays.arrays(dtype, SHAPES)
)
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())
TREES = st.recursive(
    st.one_of(PLAIN, ARRAYS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=5).filter(lambda key: key != "__array__"), inner, max_size=3),
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), TREES, max_size=3))
@settings(max_examples=80, deadline=None)
def test_a_tree_comes_back_bit_for_bit(tree):
    found: dict[str, Any] = {}
    text = json.dumps(flatten(tree, found))
    loaded = safetensors.numpy.load(safetensors.numpy.save(found))
    assert not differences(unflatten(json.loads(text), loaded), tree)


def test_two_arrays_never_share_a_name():
    """Keys may hold the separator themselves."""
    tree = {"a": {"b/c": np.zeros(1)}, "a/b": {"c": np.ones(1)}}
    found: dict[str, Any] = {}
    data = flatten(tree, found)
    assert not differences(unflatten(data, found), tree)


def test_arrays_that_are_views_are_saved_as_what_they_show():
    tree = {"x": np.arange(10)[::3], "y": np.arange(6).reshape(2, 3).T}
    found: dict[str, Any] = {}
    data = flatten(tree, found)
    loaded = safetensors.numpy.load(safetensors.numpy.save(found))
    assert not differences(unflatten(data, loaded), {name: np.ascontiguousarray(x) for name, x in tree.items()})


def test_numpy_scalars_become_plain_numbers_and_tuples_lists():
    assert flatten({"a": np.float32(0.5), "b": (1, np.int64(2))}, {}) == {"a": 0.5, "b": [1, 2]}


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", lambda: 0])
def test_anything_else_is_refused_with_its_place(value):
    with pytest.raises(CheckpointError, match=r"/outer/inner: a .* is neither a plain value nor an array"):
        flatten({"outer": {"inner": value}}, {})
