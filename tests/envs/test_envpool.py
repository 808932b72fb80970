"""EnvPool's games by their ids. The library is large: a stand-in takes its place where it is not installed."""

from __future__ import annotations

import collections
import importlib.util
import sys
import types

import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

from helpers import new_row, quick_train
from millrace.config import EnvConfig
from millrace.envs.make import EnvMaker
from millrace.errors import ConfigError, MissingExtraError

HAS_ENVPOOL = importlib.util.find_spec("envpool") is not None


class SeededWhenMade(CartPoleVectorEnv):
    """As EnvPool's games are: a seed at reset is not taken."""

    def __init__(self, num_envs: int, seed: int) -> None:
        super().__init__(num_envs)
        super().reset(seed=seed)

    def reset(self, *, seed=None, options=None):
        assert seed is None
        return super().reset(options=options)


@pytest.fixture
def stand_in(monkeypatch):
    """Keeps what `make` was given."""
    module, given = types.ModuleType("envpool"), []
    spec = collections.namedtuple("Config", ["num_envs", "num_threads", "seed", "stack_num", "max_episode_steps"])
    module.list_all_envs = lambda: ["CartPole-v1"]
    module.make_spec = lambda task: types.SimpleNamespace(config=spec(1, 0, 42, 4, 500))

    def make(task, env_type, num_envs, seed, **settings):
        given.append({"task": task, "env_type": env_type, "num_envs": num_envs, "seed": seed, **settings})
        return SeededWhenMade(num_envs, seed)

    module.make = make
    monkeypatch.setitem(sys.modules, "envpool", module)
    return given


def first_observation(seed: int):
    env = EnvMaker(EnvConfig("EnvPool/CartPole-v1")).make(3, seed)
    row = new_row(env.spec, 3)
    env.reset(row)
    env.close()
    return row.observation["obs"].copy()


def test_games_are_made_with_their_seed_one_thread_and_single_frames(stand_in):
    first, again, other = (first_observation(seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    expected = {"task": "CartPole-v1", "env_type": "gymnasium", "num_envs": 3, "num_threads": 1, "stack_num": 1}
    assert expected.items() <= stand_in[0].items()
    assert stand_in[0]["seed"] == stand_in[1]["seed"] != stand_in[2]["seed"]


def test_arguments_and_tasks_that_are_not_there_are_named(stand_in):
    with pytest.raises(ConfigError, match="takes no colour; it takes num_envs"):
        EnvMaker(EnvConfig("EnvPool/CartPole-v1", kwargs={"colour": 1})).make(1, 0)
    with pytest.raises(ConfigError, match="no task 'Cart'"):
        EnvMaker(EnvConfig("EnvPool/Cart")).make(1, 0)
    with pytest.raises(ConfigError, match="wrap single environments"):
        EnvMaker(EnvConfig("EnvPool/CartPole-v1", wrappers=("x:y",))).make(1, 0)
    EnvMaker(EnvConfig("EnvPool/CartPole-v1", kwargs={"num_threads": 2}, max_episode_steps=7)).make(1, 0)
    assert stand_in[-1]["num_threads"] == 2
    assert stand_in[-1]["max_episode_steps"] == 7


def test_a_run_on_it(stand_in, run_dir):
    result = quick_train("EnvPool/CartPole-v1", run_dir, {"stop.updates": 2}, backend="serial")
    assert result.env_steps > 0
    assert len({made["seed"] for made in stand_in if made["num_envs"] == 2}) >= 2  # two workers differ


@pytest.mark.skipif(HAS_ENVPOOL, reason="it is installed")
def test_without_the_library_the_extra_is_named():
    with pytest.raises(MissingExtraError, match=r"millrace\[envpool\]"):
        EnvMaker(EnvConfig("EnvPool/Pong-v5")).make(1, 0)


@pytest.mark.skipif(not HAS_ENVPOOL, reason="it is not installed")
@pytest.mark.filterwarnings("ignore")
def test_pong_of_the_library_itself(run_dir):
    settings = {"stop.updates": 1, "env.frame_stack": 4, "env.kwargs": {"img_height": 42, "img_width": 42}}
    quick_train("EnvPool/Pong-v5", run_dir, settings, backend="serial")
