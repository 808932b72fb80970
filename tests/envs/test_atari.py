"""Atari games: one preprocessing in two forms, games that their seed decides, and exact returns to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("ale_py", reason="Atari games need the extra `atari`")
pytest.importorskip("cv2", reason="their single form needs OpenCV, of the extra `atari`")

from millrace.collect.collector import EnvRows
from millrace.config import Config, EnvConfig
from millrace.envs.atari import AtariSlots
from millrace.envs.gym_slots import GymSlots
from millrace.envs.make import EnvMaker
from millrace.envs.protocol import EnvRow, SlotEnv
from millrace.errors import ConfigError, EnvError
from millrace.resolve import Probe, resolve
from millrace.types import Array, RolloutLayout

SLOTS = 3
STILL = {"noop_max": 0, "repeat_action_probability": 0.0}  # nothing at random


def maker(game: str = "Breakout", vectorization: str = "auto", limit: int = 0, **kwargs: object) -> EnvMaker:
    config = {"id": f"ALE/{game}-v5", "vectorization": vectorization, "max_episode_steps": limit, "kwargs": kwargs}
    return EnvMaker(EnvConfig(**config))


@contextmanager
def opened(env_maker: EnvMaker, slots: int = SLOTS, seed: int = 0) -> Iterator[tuple[SlotEnv, EnvRow]]:
    """The environment, reset, and the row that it wrote."""
    env = env_maker.make(slots, seed)
    layout = RolloutLayout(env.spec, 1, slots)
    row = EnvRows(layout.allocate(), layout).rows[1]
    env.reset(row)
    yield env, row
    env.close()


def actions(step: int, slots: int = SLOTS) -> Array:
    """Fire now and then, else to and fro."""
    return np.array([[1 if step % 5 == 0 else 2 + (step // 9 + slot) % 2] for slot in range(slots)], np.int32)


def snapshot(row: EnvRow) -> tuple[Array, ...]:
    return tuple(x.copy() for x in (row.observation["obs"], row.reward, row.terminated, row.truncated, row.valid))


def play(env: SlotEnv, row: EnvRow, first: int, last: int) -> list[tuple[Array, ...]]:
    story = []
    for step in range(first, last):
        env.step(actions(step, env.num_slots), row)
        story.append(snapshot(row))
    return story


def assert_same(one: list[tuple[Array, ...]], other: list[tuple[Array, ...]]) -> None:
    for before, after in zip(one, other, strict=True):
        for x, y in zip(before, after, strict=True):
            np.testing.assert_array_equal(x, y)


def test_both_forms_show_the_same_game():
    """Pictures, rewards and ends, step by step, over the limit of a game and into the next one."""
    stories = []
    for form, kind in (("auto", AtariSlots), ("single", GymSlots)):
        with opened(maker("MsPacman", vectorization=form, limit=120, **STILL)) as (env, row):
            assert isinstance(env, kind)
            assert env.spec.observation["obs"].shape == (84, 84)
            assert env.spec.observation["obs"].stack == 4
            stories.append([snapshot(row), *play(env, row, 0, 140)])
    assert_same(*stories)
    assert stories[0][120][3].all()  # truncated
    assert not stories[0][121][4].any()  # the reset is no experience
    assert any(story[1].any() for story in stories[0])


def test_a_game_is_decided_by_its_seed_and_actions_alone():
    """Sticky actions and the frames at the beginning are drawn anew for each; neighbours do not matter."""
    seeds = {}
    for slots in (1, SLOTS):
        env = maker().make_seeded(slots, lambda slot, episode: 100 + slot + episode)
        layout = RolloutLayout(env.spec, 1, slots)
        row = EnvRows(layout.allocate(), layout).rows[1]
        env.reset(row)
        assert env.episode_seeds().tolist() == [100 + slot for slot in range(slots)]
        play(env, row, 0, 11)
        env.reset(row)  # slot 0 plays seed 101 now
        seeds[slots] = [snapshot(row), *play(env, row, 0, 80)]
        env.close()
    firsts = [[tuple(x[:1] for x in moment) for moment in story] for story in seeds.values()]
    assert_same(*firsts)
    assert any((moment[0][0] != moment[0][1]).any() for moment in seeds[SLOTS])


@pytest.mark.parametrize("kwargs", [{}, {"episodic_life": True, "fire_reset": True}], ids=["games", "lives"])
@pytest.mark.parametrize("stop", [37, 400])
def test_a_saved_state_continues_as_if_nothing_had_been(kwargs, stop):
    with opened(maker(**kwargs)) as (env, row):
        play(env, row, 0, stop)
        state, observation = env.save_state(), row.observation["obs"].copy()
        env.pop_figures()
        assert state is not None
        assert (len({len(played) for played in state["actions"]}) > 1) == (stop == 400)  # games began at various steps
        expected = play(env, row, stop, stop + 150)
        figures = env.pop_figures()
    with opened(maker(**kwargs), seed=0) as (env, row):
        row.observation["obs"][...] = observation
        env.load_state(state, row)
        assert_same(play(env, row, stop, stop + 150), expected)
        again = env.pop_figures()
    assert again == figures
    assert figures or stop == 37


def test_a_state_that_does_not_come_back_is_told():
    with opened(maker()) as (env, row):
        play(env, row, 0, 5)
        state = env.save_state()
        row.observation["obs"][1, 0, 0] += 1
        with pytest.raises(EnvError, match="slot 1: replaying its game's actions led to another picture"):
            env.load_state(state, row)


def test_lives_end_episodes_while_the_game_goes_on():
    with opened(maker(episodic_life=True, fire_reset=True, **STILL), slots=2) as (env, row):
        returns, score, num_lives = np.zeros(2), np.zeros(2), np.zeros(2, int)
        for step in range(900):
            was_done = row.terminated | row.truncated
            env.step(actions(step, 2), row)
            assert (row.valid == ~was_done).all()
            assert not row.reward[was_done].any()
            assert not (row.terminated | row.truncated)[was_done].any()
            returns += row.reward
            for slot, seed, numbers in env.pop_figures():
                num_lives[slot] += 1
                assert (seed == -1) == (num_lives[slot] % 5 != 1)  # only the first life begins with a seed
                assert ("game_score" in numbers) == (num_lives[slot] % 5 == 0)
                score[slot] += numbers.get("game_score", 0.0)
        assert (num_lives >= 5).all()
        assert score.sum() > 0
        assert (score <= returns + num_lives).all()  # a point may fall into the step after a lost life


def test_rewards_are_the_games_own():
    """Clipping is the learner's: a dot is worth 10."""
    with opened(maker("MsPacman")) as (env, row):
        story = play(env, row, 0, 120)
    assert max(float(moment[1].max()) for moment in story) == 10.0


def test_options_of_the_picture_and_the_actions():
    kwargs = {"grayscale": False, "screen_size": 64, "full_action_space": True}
    for form in ("auto", "single"):
        with opened(maker(vectorization=form, **kwargs), slots=1) as (env, row):
            assert row.observation["obs"].shape == (1, 64, 64, 3)
            assert env.spec.action.nvec == (18,)
            assert row.observation["obs"].any()


def test_the_fire_button_is_pressed_where_there_is_one():
    for form in ("auto", "single"):
        pictures = []
        for fire in (False, True):
            with opened(maker(vectorization=form, fire_reset=fire, **STILL), slots=1) as (env, row):
                for _ in range(4):
                    env.step(np.array([[0]], np.int32), row)
                pictures.append(row.observation["obs"].copy())
        assert (pictures[0] != pictures[1]).any(), form  # the ball is in play


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"frame_skip": 4}, "take no frame_skip; they take frameskip, "),
        ({"frameskip": 0}, "frameskip=0 must be 1 or more"),
        ({"episodic_life": True}, "episodic_life needs the game's vector form"),
    ],
)
def test_wrong_options_are_refused_with_the_right_ones(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        maker(vectorization="single", **kwargs).make(1, 0)


def test_atari_ids_begin_with_the_settings_of_their_family():
    config = Config.named("ALE/Breakout-v5")
    assert config.env.id == "ALE/Breakout-v5"
    assert (config.ppo.learning_rate, config.ppo.clip, config.ppo.reward_clip) == (2.5e-4, 0.1, 1.0)
    assert Config.named("CartPole-v1") == Config().replace({"env.id": "CartPole-v1"})


def test_automatic_sizes_are_small_for_pictures():
    env = maker("Pong").make(1, 0)
    resolved = resolve(
        Config.named("ALE/Pong-v5"), Probe(env.spec, env.spaces, env.same_step_reset, True, env.exactness)
    )
    assert (resolved.collect.envs_per_worker, resolved.collect.rollout_steps) == (8, 128)
    env.close()
