"""One contract, run over every way in which environments become slots."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from helpers import differences, new_row
from millrace.checkpoints.tree import flatten, unflatten
from millrace.config import EnvConfig
from millrace.envs.gym_slots import GymSlots
from millrace.envs.make import EnvMaker
from millrace.envs.protocol import EnvRow, SlotEnv, episode_seed
from millrace.envs.vector_slots import VectorSlots
from millrace.ops.sampling import sample_actions
from toys import Clock, Everything, Masked, OpaqueClock, PileRounds

NUM_SLOTS = 4


def gym_slots(env: Callable[[], gym.Env]) -> Callable[[int], SlotEnv]:
    return lambda seed: GymSlots(env, NUM_SLOTS, lambda slot, episode: episode_seed(seed, slot, episode))


def sync_vector(env: Callable[[], gym.Env], mode: AutoresetMode) -> Callable[[int], SlotEnv]:
    return lambda seed: VectorSlots(SyncVectorEnv([env] * NUM_SLOTS, autoreset_mode=mode), seed)


def registered(env_id: str) -> Callable[[int], SlotEnv]:
    return lambda seed: EnvMaker(EnvConfig(env_id, max_episode_steps=7)).make(NUM_SLOTS, seed)


CLOCKS = {
    "single clock": gym_slots(Clock),
    "single opaque clock": gym_slots(OpaqueClock),
    "clocks, next step": sync_vector(Clock, AutoresetMode.NEXT_STEP),
    "clocks, same step": sync_vector(Clock, AutoresetMode.SAME_STEP),
    "clocks, reset by us": sync_vector(Clock, AutoresetMode.DISABLED),
}
ALL = {
    **CLOCKS,
    "masked": gym_slots(Masked),
    "masked in info": gym_slots(lambda: Masked("info")),
    "masked vector, next step": sync_vector(lambda: Masked("info"), AutoresetMode.NEXT_STEP),
    "masked vector, same step": sync_vector(lambda: Masked("info"), AutoresetMode.SAME_STEP),
    "masked vector, reset by us": sync_vector(lambda: Masked("info"), AutoresetMode.DISABLED),
    "masked in the observation, reset by us": sync_vector(Masked, AutoresetMode.DISABLED),
    "every space": gym_slots(Everything),
    "every space, next step": sync_vector(Everything, AutoresetMode.NEXT_STEP),
    "every space, same step": sync_vector(Everything, AutoresetMode.SAME_STEP),
    "two seats": lambda seed: VectorSlots(PileRounds(NUM_SLOTS), seed),
    "CartPole, its own vector form": registered("CartPole-v1"),
    "Acrobot": registered("Acrobot-v1"),
    "RealmMini": registered("millrace/RealmMini-v0"),
}
SAVING = [
    "single clock", "single opaque clock", "masked", "masked in info", "two seats",
    "CartPole, its own vector form", "Acrobot", "RealmMini",
]  # fmt: skip


@dataclass
class Story:
    """Everything that happened, one entry a step; `rows[0]` is the reset."""

    rows: list[EnvRow] = field(default_factory=list)
    actions: list[Any] = field(default_factory=list)
    finals: list[Any] = field(default_factory=list)
    figures: list[Any] = field(default_factory=list)
    seeds: list[Any] = field(default_factory=list)

    def plain(self) -> list[Any]:
        rows = [{name: value for name, value in vars(row).items() if value is not None} for row in self.rows]
        return [rows, self.actions, self.figures, self.seeds]


def play(env: SlotEnv, steps: int, seed: int = 0, story: Story | None = None) -> Story:
    """Uniform allowed actions; a given story is continued."""
    rng = np.random.default_rng(seed)
    is_new = story is None
    story = story or Story()
    if is_new:
        row = new_row(env.spec, env.num_slots)
        env.reset(row)
        story.rows.append(row)
        story.seeds.append(env.episode_seeds().copy())
    for _ in range(steps):
        step(env, random_action(env, story.rows[-1], rng), story)
    return story


def random_action(env: SlotEnv, row: EnvRow, rng: np.random.Generator) -> Any:
    params = np.zeros((env.num_slots, env.spec.action.num_params), np.float32)
    action = np.empty((env.num_slots, env.spec.action.num_columns), env.spec.action.dtype)
    sample_actions(env.spec.action, params, row.action_mask, rng, action, np.empty(env.num_slots, np.float32))
    return action


def step(env: SlotEnv, action: Any, story: Story) -> None:
    row = new_row(env.spec, env.num_slots)
    env.step(action, row)
    story.rows.append(row)
    story.actions.append(action)
    story.finals.append(env.final)
    story.figures.append(env.pop_figures())
    story.seeds.append(env.episode_seeds().copy())


@pytest.fixture(params=ALL)
def make(request: pytest.FixtureRequest) -> Callable[[int], SlotEnv]:
    return ALL[request.param]


@pytest.fixture(params=CLOCKS)
def make_clock(request: pytest.FixtureRequest) -> Callable[[int], SlotEnv]:
    return CLOCKS[request.param]


@pytest.fixture(params=SAVING)
def make_saving(request: pytest.FixtureRequest) -> Callable[[int], SlotEnv]:
    return ALL[request.param]


def test_the_rows_after_a_done_row_have_the_canonical_form(make):
    env = make(3)
    story = play(env, 40)
    assert not story.rows[0].valid.any()
    done_before = np.zeros(NUM_SLOTS, bool)
    dones = 0
    for row, final in zip(story.rows[1:], story.finals, strict=True):
        done = row.terminated | row.truncated
        if env.same_step_reset:
            assert row.valid.all()
            assert (final is not None) == done.any()
            if final is not None:
                np.testing.assert_array_equal(final.slots, np.flatnonzero(done))
                assert {key: array.shape for key, array in final.observation.items()} == {
                    key: (done.sum(), *array.shape) for key, array in env.spec.observation.items()
                }
        else:
            assert final is None
            # The reset transition is no experience.
            np.testing.assert_array_equal(row.valid, ~done_before)
            assert not row.reward[done_before].any()
            assert not done[done_before].any()
        done_before = done
        dones += done.sum()
    assert dones > NUM_SLOTS
    env.close()


def test_every_entry_of_a_row_is_overwritten(make):
    env = make(5)
    for row in play(env, 12).rows:
        assert np.isfinite(row.reward).all()
        for key, array in row.observation.items():
            if array.dtype.kind == "f":
                assert np.abs(array).max() != 113, key
            assert (array != 113).any(), key
    env.close()


def test_a_mask_always_allows_something(make):
    env = make(5)
    story = play(env, 30)
    assert env.spec.has_action_mask == (story.rows[0].action_mask is not None)
    for row in story.rows:
        assert row.action_mask is None or row.action_mask.any(-1).all()
    env.close()


def test_every_end_has_its_figures_in_order(make):
    env = make(1)
    story = play(env, 40)
    for row, figures in zip(story.rows[1:], story.figures, strict=True):
        assert [slot for slot, _, _ in figures] == np.flatnonzero(row.terminated | row.truncated).tolist()
        for _, _, numbers in figures:
            assert all(isinstance(number, float) and np.isfinite(number) for number in numbers.values())
    env.close()


def test_the_same_seed_tells_the_same_story(make):
    first, second = make(7), make(7)
    assert not differences(play(first, 30).plain(), play(second, 30).plain())
    first.close()
    second.close()


@pytest.mark.parametrize("name", [name for name in ALL if name != "two seats"])  # a game without chance
def test_another_seed_tells_another_story(name):
    first, other = ALL[name](7), ALL[name](8)
    assert differences(play(first, 30).plain(), play(other, 30).plain())
    first.close()
    other.close()


def test_slots_live_different_lives(make_clock):
    env = make_clock(2)
    tags = play(env, 0).rows[0].observation["obs"][:, 0]
    assert len(set(tags.tolist())) == NUM_SLOTS
    env.close()


def test_saving_changes_nothing(make):
    plain, saved = make(4), make(4)
    rng = np.random.default_rng(0)
    story, saved_story = play(plain, 0), play(saved, 0)
    for _ in range(25):
        action = random_action(plain, story.rows[-1], rng)
        step(plain, action, story)
        saved.save_state()
        step(saved, action, saved_story)
    assert not differences(story.plain(), saved_story.plain())
    plain.close()
    saved.close()


@pytest.mark.parametrize("steps_before", [0, 1, 4, 9, 23])
def test_a_loaded_state_goes_on_bit_for_bit(make_saving, steps_before):
    env, fresh = make_saving(6), make_saving(6)
    assert env.exactness in ("state", "replay")
    before = play(env, steps_before)
    arrays: dict[str, Any] = {}
    # As a checkpoint would keep it.
    text = json.dumps(flatten(env.save_state(), arrays))
    state = unflatten(json.loads(text), {name: array.copy() for name, array in arrays.items()})
    row = new_row(fresh.spec, NUM_SLOTS)
    for key, array in before.rows[-1].observation.items():
        row.observation[key][...] = array
    if row.action_mask is not None:
        row.action_mask[...] = before.rows[-1].action_mask
    fresh.load_state(state, row)
    assert not differences(row.observation, before.rows[-1].observation)
    went_on = play(env, 25, seed=9, story=Story(rows=[before.rows[-1]]))
    resumed = play(fresh, 25, seed=9, story=Story(rows=[row]))
    went_on.rows.pop(0)
    resumed.rows.pop(0)
    assert not differences(went_on.plain(), resumed.plain())
    env.close()
    fresh.close()


def test_what_cannot_save_its_state_says_so():
    env = CLOCKS["clocks, next step"](0)
    play(env, 3)
    assert env.exactness not in ("state", "replay")
    assert env.save_state() is None
    env.close()


def test_episodes_are_whole_and_rewards_belong_to_their_transition(make_clock):
    env = make_clock(11)
    story = play(env, 60)
    for slot in range(NUM_SLOTS):
        for before, row, action, final in zip(story.rows, story.rows[1:], story.actions, story.finals, strict=False):
            tag, ticks, _ = before.observation["obs"][slot]
            after = row.observation["obs"][slot]
            done = row.terminated[slot] | row.truncated[slot]
            if not row.valid[slot]:
                assert after[0] != tag
                assert after[1] == 0
                continue
            if done and final is not None:
                assert after[1] == 0  # already the next episode
                after = final.observation["obs"][np.flatnonzero(final.slots == slot)[0]]
            assert after.tolist() == [tag, ticks + 1, action[slot, 0]]
            assert row.reward[slot] == ticks + 1 + 0.5 * action[slot, 0]
            if done:
                # Even lengths terminate, odd ones are truncated.
                assert row.terminated[slot] == (after[1] % 2 == 0)
                assert row.truncated[slot] == (after[1] % 2 == 1)
    env.close()


def test_figures_are_the_numbers_of_the_final_info_and_nothing_else(make_clock):
    env = make_clock(12)
    story = play(env, 40)
    lengths = np.zeros(NUM_SLOTS, int)
    seen = 0
    for row, figures in zip(story.rows[1:], story.figures, strict=True):
        lengths += row.valid
        for slot, _, numbers in figures:
            assert numbers == {"ticks": lengths[slot], "is_long": float(lengths[slot] > 3)}
            seen += 1
        lengths[row.terminated | row.truncated] = 0
    assert seen > 20
    env.close()


def test_single_environments_are_reset_with_the_seeds_they_report():
    env = CLOCKS["single clock"](13)
    story = play(env, 40)
    lone = Clock()
    for row, seeds in zip(story.rows, story.seeds, strict=True):
        for slot in range(NUM_SLOTS):
            assert lone.reset(seed=int(seeds[slot]))[0][0] == row.observation["obs"][slot, 0]
    env.close()
