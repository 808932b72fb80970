"""Where collecting runs, and whether a run was stopped in between, changes no bit of what is learned."""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

import millrace
from helpers import differences, learned, log_of, quick_train
from millrace.rundir import RunDirectory
from toys import Clock, Everything, ForgetfulClock, Masked, OpaqueClock, OpaquePaced, Paced, PileRounds

NORMALIZED = {"ppo.normalize_observation": True, "ppo.normalize_reward": True, "ppo.target_kl": 0.5}
GAMES = {
    "CartPole, its own vector form": ("CartPole-v1", {}),
    "CartPole, normalised": ("CartPole-v1", NORMALIZED),
    "Acrobot, single": ("Acrobot-v1", {"env.max_episode_steps": 11, **NORMALIZED}),
    "masks": (Masked, {}),
    "masks in info": (functools.partial(Masked, "info"), {}),
    "every space": (Everything, NORMALIZED),
    "attributes saved": (Clock, NORMALIZED),
    "actions replayed": (OpaqueClock, {}),
    "two seats": (PileRounds, {}),
    "recurrent": (Clock, {"net.memory": "gru", "net.memory_size": 8, **NORMALIZED}),
    "recurrent, replayed": (OpaqueClock, {"net.memory": "lstm", "net.memory_size": 8}),
    "stacked frames": ("CartPole-v1", {"env.frame_stack": 3, **NORMALIZED}),
    "a curriculum": (Paced, {"curriculum": {"length": [3, 6]}, "total_env_steps": 300}),
    "a curriculum, replayed": (OpaquePaced, {"curriculum": {"length": [3, 6]}, "total_env_steps": 300}),
    "RealmMini": ("millrace/RealmMini-v0", {"env.max_episode_steps": 11}),
}
if importlib.util.find_spec("ale_py"):  # of the extra `atari`
    GAMES["Atari"] = ("ALE/Breakout-v5", {"env.max_episode_steps": 11, "net.image": "small"})
ON_BOTH = ["CartPole, normalised", "Acrobot, single", "masks", "actions replayed"]


@pytest.mark.parametrize(
    "game",
    [
        "CartPole, its own vector form",
        "Acrobot, single",
        "masks",
        "every space",
        "recurrent",
        "stacked frames",
        "a curriculum",
        "RealmMini",
        pytest.param("Atari", marks=pytest.mark.skipif("Atari" not in GAMES, reason="needs the extra `atari`")),
    ],
)
def test_serial_equals_processes_bit_for_bit(game, tmp_path: Path, nothing_left_behind):
    env, settings = GAMES[game]
    for backend in ("serial", "processes"):
        quick_train(env, tmp_path / backend, {"stop.updates": 5, **settings}, backend=backend)
    assert not differences(learned(tmp_path / "serial"), learned(tmp_path / "processes"))


def test_another_seed_learns_something_else(tmp_path: Path):
    for seed in (0, 1):
        quick_train("CartPole-v1", tmp_path / str(seed), {"stop.updates": 2}, backend="serial", seed=seed)
    assert differences(learned(tmp_path / "0")["policy"], learned(tmp_path / "1")["policy"])


def test_workers_collect_different_experience(run_dir):
    from millrace.config import Config
    from millrace.envs.make import EnvMaker
    from millrace.run import Run

    config = Config().replace(
        {"run_dir": str(run_dir), "metrics.console": "off", "metrics.tensorboard": False, "collect.backend": "serial",
         "collect.workers": 3, "collect.envs_per_worker": 2, "collect.rollout_steps": 8}
    )  # fmt: skip
    with Run(config, EnvMaker(config.env, Clock)) as run:
        rollout = run.source.next_batch().rollout
        tags = rollout.observation["obs"][0, :, 0]
        assert len(set(tags.tolist())) == 6
        actions = rollout.action[:, :, 0]
        assert len({actions[:, slot].tobytes() for slot in range(6)}) > 3


def stop_and_resume(env, backend: str, directory: Path, settings: dict, first: int, second: int) -> None:
    factory = env if callable(env) else None
    quick_train(env, directory, {"stop.updates": first, **settings}, backend=backend)
    millrace.resume(directory, env=factory, settings={"stop.updates": first + second}, quiet=True)
    assert "exactly where it stopped" in log_of(directory)


@pytest.mark.parametrize("game", GAMES)
def test_resuming_equals_never_having_stopped(game, tmp_path: Path):
    env, settings = GAMES[game]
    quick_train(env, tmp_path / "whole", {"stop.updates": 6, **settings}, backend="serial")
    stop_and_resume(env, "serial", tmp_path / "stopped", settings, 3, 3)
    assert not differences(learned(tmp_path / "whole"), learned(tmp_path / "stopped"))


@pytest.mark.parametrize("game", ON_BOTH)
def test_resuming_worker_processes_equals_never_having_stopped(game, tmp_path: Path, nothing_left_behind):
    env, settings = GAMES[game]
    quick_train(env, tmp_path / "whole", {"stop.updates": 6, **settings}, backend="serial")
    stop_and_resume(env, "processes", tmp_path / "stopped", settings, 3, 3)
    assert not differences(learned(tmp_path / "whole"), learned(tmp_path / "stopped"))


def test_a_run_may_change_its_backend_when_it_resumes(tmp_path: Path):
    quick_train("CartPole-v1", tmp_path / "whole", {"stop.updates": 4}, backend="serial")
    quick_train("CartPole-v1", tmp_path / "moved", {"stop.updates": 2}, backend="serial")
    millrace.resume(tmp_path / "moved", settings={"stop.updates": 4}, backend="processes", quiet=True)
    assert not differences(learned(tmp_path / "whole"), learned(tmp_path / "moved"))
    # What was changed stays readable.
    assert 'backend = "serial"' in (tmp_path / "moved" / "config.0.toml").read_text()
    assert 'backend = "processes"' in (tmp_path / "moved" / "config.toml").read_text()


def test_resuming_twice_equals_resuming_once(tmp_path: Path):
    stop_and_resume("CartPole-v1", "serial", tmp_path / "once", {}, 2, 4)
    stop_and_resume("CartPole-v1", "serial", tmp_path / "twice", {}, 2, 1)
    millrace.resume(tmp_path / "twice", settings={"stop.updates": 6}, quiet=True)
    assert not differences(learned(tmp_path / "once"), learned(tmp_path / "twice"))


def test_checkpoints_and_evaluations_change_nothing(tmp_path: Path):
    often = {"checkpoint.every_env_steps": 1, "eval.every_env_steps": 1, "eval.episodes": 2, "checkpoint.keep_last": 0}
    for name, settings in {"plain": {}, "watched": often}.items():
        quick_train(OpaqueClock, tmp_path / name, {"stop.updates": 5, **settings}, backend="serial")
    assert not differences(learned(tmp_path / "plain"), learned(tmp_path / "watched"))
    assert len(list((tmp_path / "watched" / "checkpoints").iterdir())) == 5


def test_a_checkpoint_in_the_middle_of_a_run_is_the_same_as_at_its_end(tmp_path: Path):
    settings = {"checkpoint.every_env_steps": 1, "checkpoint.keep_last": 0}
    quick_train("CartPole-v1", tmp_path / "long", {"stop.updates": 4, **settings}, backend="serial")
    quick_train("CartPole-v1", tmp_path / "short", {"stop.updates": 2, **settings}, backend="serial")
    last = RunDirectory(tmp_path / "short").newest_checkpoint()[0].path.name
    for part in ("policy.safetensors", "trainer.safetensors"):
        long, short = (tmp_path / run / "checkpoints" / last / part for run in ("long", "short"))
        assert long.read_bytes() == short.read_bytes()


def test_an_environment_that_does_not_repeat_itself_is_begun_anew_and_that_is_said(tmp_path: Path):
    quick_train(ForgetfulClock, tmp_path, {"stop.updates": 2, "env.max_episode_steps": 50}, backend="serial")
    millrace.resume(tmp_path, env=ForgetfulClock, settings={"stop.updates": 4}, quiet=True)
    log = log_of(tmp_path)
    assert "4 episodes cut and begun anew" in log
    assert "not a function of seed and actions" in log


def test_a_vector_environment_that_cannot_save_itself_is_begun_anew_and_that_is_said(tmp_path: Path):
    def make(num_envs=2):
        from gymnasium.vector import SyncVectorEnv

        return SyncVectorEnv([Clock] * num_envs)

    quick_train(make, tmp_path, {"stop.updates": 2}, backend="serial")
    millrace.resume(tmp_path, env=make, settings={"stop.updates": 4}, quiet=True)
    assert "4 episodes cut and begun anew" in log_of(tmp_path)


def test_another_number_of_workers_begins_anew_and_says_so(tmp_path: Path):
    quick_train("CartPole-v1", tmp_path, {"stop.updates": 2}, backend="serial")
    millrace.resume(tmp_path, workers=1, settings={"stop.updates": 3, "ppo.minibatch_size": 4}, quiet=True)
    assert "the checkpoint has 2 workers, this run 1" in log_of(tmp_path)


def test_episodes_after_a_cut_are_not_those_of_the_beginning_once_more(tmp_path: Path):
    """With a lag there is no boundary to save: the resumed run must not collect what it has already learned from."""
    quick_train("CartPole-v1", tmp_path, {"stop.updates": 3}, backend="serial", max_policy_lag=1)
    first_returns = {record["length_steps"] for record in learned(tmp_path)["recent"]}
    assert first_returns
    millrace.resume(tmp_path, settings={"stop.updates": 6}, quiet=True)
    assert "begun anew" in log_of(tmp_path)
    assert learned(tmp_path)["learner"]["updates"] == 6


def test_figures_of_a_resumed_run_go_on_from_those_before(tmp_path: Path):
    stop_and_resume("CartPole-v1", "serial", tmp_path, {}, 2, 2)
    from helpers import rows_of

    rows = rows_of(tmp_path)
    for name in ("env_steps", "updates", "episodes", "time_s"):
        values = [row[name] for row in rows]
        assert values == sorted(values), name
    assert rows[-1]["updates"] == 4


@pytest.mark.parametrize("backend", ["serial", "processes"])
def test_two_updates_of_the_same_seed_in_another_process_id_are_the_same(backend, tmp_path: Path):
    """Nothing random may come from the process: its id, its time, its hash seed."""
    for name in ("one", "two"):
        quick_train(Masked, tmp_path / name, {"stop.updates": 2}, backend=backend)
        np.random.seed(os.getpid())
    assert not differences(learned(tmp_path / "one"), learned(tmp_path / "two"))
