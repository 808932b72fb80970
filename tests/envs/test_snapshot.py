"""Saving environments by their attributes."""

from __future__ import annotations

import collections
import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from millrace.checkpoints.tree import flatten, unflatten
from millrace.envs import snapshot


class Bare(gym.Env):
    """Takes whatever attributes a test gives it."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def round_trip(env: gym.Env, fresh: gym.Env) -> gym.Env:
    """Through the form that a checkpoint keeps."""
    arrays: dict[str, Any] = {}
    text = json.dumps(flatten(snapshot.save(env), arrays))
    snapshot.load(fresh, unflatten(json.loads(text), arrays))
    return fresh


@pytest.mark.parametrize("value", [
    None, True, 3, 2.5, "text", 2**70, float("inf"),
    [1, [2, None]], (1, (2.0, "x")), {"a": {"b": (1,)}},
    np.float32(0.1), np.int64(-5), np.bool_(True), [np.float32(0.1), 0.1], (np.float64(1 / 3),),
    np.arange(6, dtype=np.int16).reshape(2, 3), np.array(1.5), np.zeros((0, 3)), [np.ones(2, bool)],
    collections.deque([1, (2, 3)], maxlen=4), (np.zeros(2, np.float32), {}),
], ids=repr)  # fmt: skip
@pytest.mark.parametrize("current", [None, 0.0, (1, 2), np.float32(7), collections.deque()], ids=repr)
def test_plain_attributes_come_back_as_they_were_whatever_stood_there(value, current):
    loaded = round_trip(Bare(x=value), Bare(x=current)).x
    assert type(loaded) is type(value)
    assert repr(loaded) == repr(value)
    for item, original in zip(loaded, value, strict=True) if isinstance(value, list | tuple) else []:
        assert type(item) is type(original)
    if isinstance(value, np.ndarray | np.generic):
        assert loaded.dtype == value.dtype


@pytest.mark.parametrize("value", [
    object(), [lambda: 0], {1: "integer key"}, {"a"}, np.array(["text"]), np.array([None]), np.array(1j), b"bytes",
], ids=repr)  # fmt: skip
def test_what_a_checkpoint_cannot_keep_is_replayed_instead(value):
    assert snapshot.save(Bare(x=value)) is None


def test_a_generator_continues_its_stream_and_stays_shared():
    env = Bare(rng=np.random.default_rng(1))
    env.rng.random(5)
    shared = np.random.default_rng(2)
    fresh = round_trip(env, Bare(rng=shared))
    assert fresh.rng is shared
    assert fresh.rng.random(3).tolist() == env.rng.random(3).tolist()


def test_spaces_go_on_drawing_their_samples():
    def make():
        return Bare(space=gym.spaces.Dict({"a": gym.spaces.Discrete(1000), "b": gym.spaces.Box(0, 1, (2,))}))

    env = make()
    env.space.seed(1)
    env.space.sample()
    fresh = round_trip(env, make())
    for _ in range(3):
        mine, theirs = env.space.sample(), fresh.space.sample()
        assert mine["a"] == theirs["a"]
        np.testing.assert_array_equal(mine["b"], theirs["b"])


def test_generators_inside_lists_continue_their_streams():
    env = Bare(rngs=[np.random.default_rng(1), np.random.Generator(np.random.Philox(2))])
    fresh = round_trip(env, Bare(rngs=[]))
    for mine, theirs in zip(env.rngs, fresh.rngs, strict=True):
        assert mine.random(3).tolist() == theirs.random(3).tolist()


def test_the_snapshot_holds_copies():
    env = Bare(board=np.zeros(3), history=[np.zeros(2)])
    state = snapshot.save(env)
    env.board[:], env.history[0][:] = 1, 1
    snapshot.load(env, state)
    assert not env.board.any()
    assert not env.history[0].any()
    env.board[:] = 2
    snapshot.load(env, state)
    assert not env.board.any()


def test_a_number_called_clock_is_state_and_a_pygame_clock_is_not():
    assert round_trip(Bare(clock=7), Bare(clock=0)).clock == 7
    assert round_trip(Bare(clock=object(), x=1), Bare(clock="mine", x=0)).clock == "mine"


def test_environments_inside_a_list_are_not_passed_over():
    assert snapshot.save(Bare(envs=[Bare(x=1)])) is None


def test_wrappers_are_saved_with_the_environment():
    env, fresh = (gym.make("MountainCar-v0", max_episode_steps=9) for _ in range(2))
    env.reset(seed=0)
    for _ in range(5):
        env.step(2)
    fresh.reset(seed=1)
    round_trip(env, fresh)
    for _ in range(4):
        mine, theirs = env.step(0), fresh.step(0)
        np.testing.assert_array_equal(mine[0], theirs[0])
        assert mine[1:4] == theirs[1:4]
    assert theirs[3]  # the time limit's own count came along


def test_an_environment_may_bring_its_own_save_and_load():
    class Own(gym.Env):
        def __init__(self) -> None:
            self.engine, self.hidden = object(), 0

        def save_state(self):
            return {"hidden": self.hidden}

        def load_state(self, state):
            self.hidden = state["hidden"]

    env = Own()
    env.hidden = 42
    assert round_trip(env, Own()).hidden == 42
