"""Realm's options while it is played: what changes, when, and what it costs to lose a score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from realm_arena import arena, observe, step, step_all

from helpers import new_row
from millrace.config import EnvConfig
from millrace.envs.make import EnvMaker
from millrace.envs.protocol import SlotEnv
from millrace.envs.realm import RealmEnv, RealmVectorEnv
from millrace.errors import EnvError
from millrace.games.realm import RealmGame, RealmReward, make_game

ONLY_STEPS = dict.fromkeys(RealmReward.__dataclass_fields__, 0.0) | {"scale": 1.0, "repeat_above": 0.4}


def reset(game: RealmGame, slots: list[bool], seed: int = 0) -> None:
    game.reset(np.array(slots), np.full(game.num_slots, seed, np.uint64))


def test_changed_options_hold_for_each_slot_from_its_next_reset_on() -> None:
    game = arena(num_slots=2, max_step=3, reward={**ONLY_STEPS, "step": -1.0})
    game.set_options({"max_step": 2, "reward.step": -5.0, "n_treasures": 6})
    reset(game, [True, False])
    reward, _, _ = step_all(game, [0, 0])
    assert reward.tolist() == [-5.0, -1.0]
    assert step_all(game, [4, 4])[2].tolist() == [True, False]
    assert step_all(game, [0, 0])[2].tolist() == [False, True]
    assert [int(bits).bit_count() for bits in game.slots.placed] == [6, 3]
    reset(game, [False, True])
    assert step_all(game, [0, 0])[0].tolist() == [0.0, -5.0]


def test_the_score_counts_the_steps_that_the_episode_began_with() -> None:
    game = arena(points={1: (8000, 9700)}, max_step=100)
    game.set_options({"max_step": 50})
    step(game, 2)
    assert game.episode_figures(0)["step_score"] == pytest.approx(0.2 * 99)
    reset(game, [True])
    step(game, 2)
    assert game.episode_figures(0)["step_score"] == pytest.approx(0.2 * 49)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**63),
    actions=st.lists(st.integers(0, 15), min_size=1, max_size=60),
    changed_after=st.integers(0, 60),
    change=st.sampled_from(
        [{"max_step": 5}, {"reward.wall": -77.0}, {"n_treasures": "uniform"}, {"random_start": 1.0}, {"reward": {}}]
    ),
)
def test_an_episode_keeps_the_options_it_began_with(
    seed: int, actions: list[int], changed_after: int, change: dict[str, Any]
) -> None:
    left_alone, changed = (make_game("mini", 1, reward={"step": -3.0}) for _ in range(2))
    for game in (left_alone, changed):
        reset(game, [True], seed)
    for turn, action in enumerate(actions):
        if turn == changed_after:
            changed.set_options(change)
        if left_alone.slots.status[0] == 1:
            assert step(left_alone, action) == step(changed, action)
    assert left_alone.episode_figures(0) == changed.episode_figures(0)


def test_a_reward_mapping_starts_from_the_defaults_and_single_terms_from_what_is_set() -> None:
    game = make_game("mini", 1, reward={"step": -7.0})
    game.set_options({"reward.wall": -3.0})
    assert (game.options.reward.step, game.options.reward.wall) == (-7.0, -3.0)
    game.set_options({"reward": {"buff": 9.0}, "reward.end": 1.0})
    assert game.options.reward == RealmReward(buff=9.0, end=1.0)
    game.set_options({"n_treasures": None, "max_step": None})
    assert game.options.max_step is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"map": "random"}, "option map cannot change on a live game: its maps are laid out once"),
        ({"num_maps": 2}, "option num_maps cannot change"),
        ({"map_seed": 2}, "option map_seed cannot change"),
        ({"points": "x.json"}, "option points cannot change"),
        ({"rules": "2025"}, "option rules cannot change on a live game: episodes in progress are under them"),
        ({"flip_map": True}, "option flip_map cannot change on a live game: observations of one run must agree"),
        ({"treasures": 2}, "no option 'treasures'; options are n_treasures"),
        ({"reward.gold": 2}, "no reward term 'gold'; terms are treasure"),
        ({"reward.step": "much"}, "option reward.step='much' must be a number"),
        ({"reward": 3}, "option reward=3 must be a mapping"),
        ({"n_treasures": 2.5}, "n_treasures=2.5 must be a whole number from 0 to 6"),
        ({"max_step": 401}, "max_step=401 must be 1 to 400"),
        ({"random_start": "often"}, "option random_start='often' must be a number"),
        ({"score_info_fault": 2}, "score_info_fault=2 must be a probability"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused_whole(change: dict[str, Any], message: str) -> None:
    game = make_game("mini", 1)
    before = game.options
    with pytest.raises(ValueError, match=message):
        game.set_options({"random_start": 0.5, **change} if "random_start" not in change else change)
    assert game.options is before


def test_the_options_of_episodes_in_progress_travel_with_the_saved_state() -> None:
    game, other = arena(max_step=2), arena(max_step=300)
    game.set_options({"max_step": 100})
    other.load_state(game.save_state())
    step(other, 0)
    assert step(other, 0)[2]


@pytest.mark.parametrize("env", [RealmEnv(), RealmVectorEnv(1)])
def test_the_environments_of_gymnasium_take_changed_options_too(env: Any) -> None:
    env.reset(seed=1)
    env.set_options({"n_treasures": 6})
    assert env.game.slots.placed[0].item().bit_count() == 3
    env.reset(seed=1)
    assert env.game.slots.placed[0].item().bit_count() == 6


def test_the_buff_left_behind_costs_its_weight() -> None:
    points = {0: (8000, 9000), 1: (8000, 11_000)}
    game = arena(points=points, n_treasures=0, reward={**ONLY_STEPS, "missed_buff": -5.0})
    assert [step(game, 2)[0] for _ in range(3)][-1] == 0
    far = arena(points={1: (8000, 11_000)}, n_treasures=0, reward={**ONLY_STEPS, "missed_buff": -5.0})
    assert [step(far, 2)[0] for _ in range(3)][-1] == -5


def test_approach_as_the_original_counts_it_is_to_the_treasure_gained_on_most_and_to_the_end_always() -> None:
    points = {1: (8250, 15_750), 3: (8250, 6250), 4: (15_750, 8250)}
    points |= dict.fromkeys(range(5, 9), (250, 8250))
    terms = {**ONLY_STEPS, "approach_any_treasure": 1.0, "flash_factor": 3.0}
    east = arena(points=points, n_treasures=6, reward=terms)
    assert step(east, 0)[0] == 1  # one cell nearer to the treasure in the east, one further from the others
    north = arena(points=points, n_treasures=6, reward={**terms, "approach_end_always": 10.0})
    assert step(north, 2)[0] == -1 + 10
    assert step(north, 10)[0] == (-8 + 10 * 8 - 0) * 3


@pytest.mark.parametrize(("above", "costly"), [(0.0, [1, 3, 5, 7]), (0.4, [5, 7]), (0.6, [7]), (0.8, [])])
def test_the_threshold_of_the_repeated_cell_is_in_fifths_of_visits(above: float, costly: list[int]) -> None:
    game = arena(reward={**ONLY_STEPS, "repeat": -1.0, "repeat_above": above})
    rewards = [step(game, action)[0] for action in [0, 4] * 4]
    # Odd steps end at the start, which by then had 1, 2, 3, 4 visits; the others in cells beside it.
    assert [i for i in range(1, 8, 2) if rewards[i] == -1] == costly


def literal_worths(misses: dict[int, int], present: list[int]) -> dict[int, float]:
    mean = sum(1 + misses.get(k, 0) for k in present) / len(present)
    return {k: max(0.5, (1 + misses.get(k, 0)) / mean) for k in present}


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_a_dynamic_treasure_is_worth_more_the_more_often_it_was_left_behind(strength: float) -> None:
    near, far = {3: (8000, 9000)}, dict.fromkeys(range(4, 9), (250, 250))
    reward = {**ONLY_STEPS, "treasure": 100.0, "missed_treasure": -10.0, "dynamic_treasure": strength}
    game = arena(points={1: (8000, 11_000), **near, **far}, n_treasures=6, reward=reward)
    misses: dict[int, int] = {}
    for _ in range(4):
        worth = literal_worths(misses, list(range(3, 9)))
        share = {k: 1 + strength * (one - 1) for k, one in worth.items()}
        rewards = [step(game, 2)[0] for _ in range(3)]
        assert rewards[0] == pytest.approx(100 * share[3], rel=1e-6)
        assert rewards[2] == pytest.approx(-10 * sum(share[k] for k in range(4, 9)), rel=1e-6)
        misses |= {k: misses.get(k, 0) + 1 for k in range(4, 9)}
        reset(game, [True])


def test_misses_are_forgotten_after_a_hundred_episodes() -> None:
    reward = {**ONLY_STEPS, "dynamic_treasure": 1.0}
    game = arena(points={1: (8000, 9700)}, n_treasures=6, reward=reward)
    counts = []
    for _ in range(101):
        step(game, 2)
        counts.append(int(game.slots.misses[0, 3]))
        reset(game, [True])
    assert counts == [*range(1, 101), 1]


def slots_of(vectorization: str, num_slots: int = 4, on_bad_value: str = "count", **kwargs: Any) -> SlotEnv:
    config = EnvConfig("millrace/RealmMini-v0", kwargs=kwargs, vectorization=vectorization, on_bad_value=on_bad_value)  # type: ignore[arg-type]
    return EnvMaker(config).make(num_slots, seed=3)


def play(env: SlotEnv, steps: int) -> list[Any]:
    rows = [new_row(env.spec, env.num_slots)]
    env.reset(rows[0])
    rng = np.random.default_rng(0)
    for _ in range(steps):
        rows.append(new_row(env.spec, env.num_slots))
        env.step(rng.integers(0, 16, (env.num_slots, 1)), rows[-1])
    return rows


def test_a_lost_score_costs_its_step_and_nothing_else() -> None:
    whole, faulty = (slots_of("native", score_info_fault=p, max_step=50) for p in (0.0, 0.1))
    lost = 0
    for mine, theirs in zip(play(whole, 400), play(faulty, 400), strict=True):
        for key, array in mine.observation.items():
            np.testing.assert_array_equal(array, theirs.observation[key])
        np.testing.assert_array_equal(mine.truncated, theirs.truncated)
        np.testing.assert_array_equal(mine.terminated, theirs.terminated)
        differs = mine.valid & ~theirs.valid
        assert (theirs.reward[differs] == 0).all()
        np.testing.assert_array_equal(mine.reward[~differs], theirs.reward[~differs])
        assert not (theirs.valid & ~mine.valid).any()
        lost += int(differs.sum())
    assert faulty.bad_values == lost
    assert lost / 1600 == pytest.approx(0.1, abs=0.03)
    assert whole.bad_values == 0


def test_figures_lost_in_the_last_step_are_missing_from_the_record_not_made_up() -> None:
    env = slots_of("native", score_info_fault=0.5, max_step=10)
    play(env, 60)
    figures = [numbers for _, _, numbers in env.pop_figures()]
    assert {} in figures
    assert any("score" in numbers for numbers in figures)
    assert len(figures) == 4 * 5


def test_a_lost_score_is_counted_by_the_path_of_single_environments_too() -> None:
    env = slots_of("single", score_info_fault=0.05, max_step=50)
    rows = play(env, 200)
    assert env.bad_values > 10
    assert env.bad_values == sum(int((row.truncated & ~row.valid).sum()) for row in rows)
    assert all(np.isfinite(row.reward).all() for row in rows)


@pytest.mark.parametrize("vectorization", ["native", "single"])
def test_a_lost_score_is_refused_where_that_is_asked(vectorization: str) -> None:
    env = slots_of(vectorization, on_bad_value="refuse", score_info_fault=0.5)
    with pytest.raises(EnvError, match=r"slot \d, episode seed \d+: the (step's score was lost|reward is nan)"):
        play(env, 40)


def test_faults_repeat_with_the_seed_and_are_counted_over_a_saved_state() -> None:
    games = [make_game("mini", 1, score_info_fault=0.3) for _ in range(2)]
    for game in games:
        reset(game, [True], 8)
    rewards = [[step(game, turn % 8)[0] for turn in range(60)] for game in games]
    np.testing.assert_array_equal(rewards[0], rewards[1])
    assert 5 < np.isnan(rewards[0]).sum() < 35
    env, other = slots_of("native", score_info_fault=0.3), slots_of("native", score_info_fault=0.3)
    play(env, 20)
    other.load_state(env.save_state(), new_row(other.spec, 4))  # type: ignore[arg-type]
    assert other.bad_values == env.bad_values > 0


def test_observations_do_not_depend_on_the_reward_options() -> None:
    plain, other = arena(), arena(reward={"dynamic_treasure": 1.0, "step": -9.0}, score_info_fault=0.5)
    for action in (0, 1, 10, 3):
        step(plain, action)
        step(other, action)
    for key, array in observe(plain).items():
        np.testing.assert_array_equal(array, observe(other)[key])
