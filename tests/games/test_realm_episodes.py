"""Episodes of Realm: treasures, score, reward, ends, seeds, and saved states."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from realm_arena import arena, observe, put, step, step_all, where

from millrace.games.realm import RealmOptions, RealmReward, RealmRules, make_game
from millrace.games.realm.kernels import RUNNING

NO_REWARD = dict.fromkeys(RealmReward.__dataclass_fields__, 0.0) | {"scale": 1.0, "repeat_above": 0.4}


def test_a_treasure_is_taken_within_1000_units_of_its_place_and_only_once() -> None:
    game = arena(points={3: (8000, 9700)}, n_treasures=6)
    step(game, 6)  # 7300: 2400 away
    step(game, 2)
    step(game, 0)
    assert game.episode_figures(0)["treasures"] == 0  # 1838 away
    put(game, 8000, 8000)
    step(game, 2)  # 8700: exactly 1000 away
    assert game.episode_figures(0)["treasures"] == 1
    step(game, 2)
    assert game.episode_figures(0)["treasures"] == 1


def test_a_treasure_touched_only_in_the_middle_of_a_step_is_taken() -> None:
    game = arena(points={3: (8350, 8970)}, n_treasures=6)
    step(game, 0)  # 1031 units away at both ends of the step
    assert game.episode_figures(0)["treasures"] == 1


def test_a_flash_takes_what_lies_where_it_lands_and_nothing_on_the_way() -> None:
    game = arena(points={3: (10_000, 8000), 4: (12_900, 8000)}, n_treasures=6)
    step(game, 8)
    assert [int(game.slots.treasures[0]) >> k & 1 for k in (3, 4)] == [1, 0]


def test_the_score_is_treasures_and_end_and_a_fifth_of_the_steps_left() -> None:
    game = arena(points={1: (8000, 11_000), 3: (8000, 9000)}, n_treasures=6)
    ends = [step(game, 2) for _ in range(3)]
    assert [terminated for _, terminated, _ in ends] == [False, False, True]
    assert game.episode_figures(0) == {
        "score": pytest.approx(100 + 150 + 0.2 * 397),
        "treasure_score": 100,
        "end_score": 150,
        "step_score": pytest.approx(0.2 * 397),
        "finished": 1,
        "treasures": 1,
        "treasures_missed": 5,
        "buff_missed": 1,
        "flashes": 0,
        "wall_hits": 0,
        "steps": 3,
    }


def test_after_a_time_out_the_score_is_0_whatever_was_taken() -> None:
    game = arena(points={3: (8000, 9000)}, n_treasures=6, max_step=4)
    ends = [step(game, action)[1:] for action in (2, 6, 2, 6)]
    assert ends == [(False, False)] * 3 + [(False, True)]
    figures = game.episode_figures(0)
    assert figures["treasures"] == 1
    assert [figures[part] for part in ("score", "treasure_score", "end_score", "step_score")] == [0, 0, 0, 0]


def test_reaching_the_end_in_the_last_step_is_termination_and_not_truncation() -> None:
    game = arena(points={1: (8000, 9700)}, max_step=1)
    assert step(game, 2)[1:] == (True, False)
    assert game.episode_figures(0)["step_score"] == 0


def test_slots_that_are_not_active_stay_as_they_are() -> None:
    game = arena(num_slots=3)
    before = game.save_state()
    step(game, 0)
    after = game.save_state()
    for name in before:
        np.testing.assert_array_equal(before[name][1:], after[name][1:])
    assert game.slots.steps.tolist() == [1, 0, 0]


def test_a_slot_that_ended_cannot_be_stepped_and_then_no_slot_moves() -> None:
    game = arena(num_slots=2, points={1: (8000, 9700)})
    step(game, 2)
    with pytest.raises(ValueError, match="slot 0 was stepped after its episode ended; reset it first"):
        game.step(np.zeros(2, np.int64), np.ones(2, bool), np.zeros(2, np.float32), *np.zeros((2, 2), bool))
    assert game.slots.steps.tolist() == [1, 0]


@pytest.mark.parametrize("action", [-1, 16])
def test_an_action_outside_the_16_is_refused(action: int) -> None:
    with pytest.raises(ValueError, match=r"slot 0: action .* is outside 0..15"):
        step(arena(), action)


def test_a_slot_cannot_be_stepped_before_its_first_reset() -> None:
    with pytest.raises(ValueError, match="before its first reset"):
        step(make_game("mini", 1), 0)


def test_the_vector_observation_holds_position_treasures_buff_and_end() -> None:
    game = arena(points={0: (8250, 10_250), 1: (12_250, 8250), 3: (8250, 4250)}, n_treasures=6)
    put(game, 8250, 8250)
    vector = observe(game)["vector"][0]
    assert vector.dtype == np.float32
    assert vector[:2] == pytest.approx([8250 / 16000] * 2)
    assert vector[2:8].tolist() == [1] * 6
    assert vector[8] == pytest.approx(8 / 128)
    assert vector[9] == pytest.approx((30 - 16 + 26 - 16) / 128)
    assert vector[14:17] == pytest.approx([1, 4 / 128, 8 / 128])


def test_an_absent_treasure_is_seen_at_distance_1() -> None:
    vector = observe(arena(n_treasures=0))["vector"][0]
    assert vector[2:14].tolist() == [0] * 6 + [1] * 6


def reward_of(actions: list[int], points: dict[int, tuple[int, int]] | None = None, **terms: float) -> list[float]:
    """Rewards of single steps on open ground with only the given terms switched on, scale 1."""
    game = arena(points=points, n_treasures=6, reward={**NO_REWARD, **terms})
    return [step(game, action)[0] for action in actions]


def test_every_step_costs_the_step_weight() -> None:
    assert reward_of([0, 8, 2], step=-0.5) == [-0.5] * 3


def test_a_treasure_the_end_and_the_treasures_missed_are_rewarded_when_they_happen() -> None:
    points = {1: (8000, 11_000), 3: (8000, 9000)}
    assert reward_of([2, 2, 2], points, treasure=100, end=150, missed_treasure=-10) == [100, 0, 150 - 5 * 10]


def test_the_buff_is_rewarded_when_taken() -> None:
    assert reward_of([2, 6, 2], {0: (8000, 9600)}, buff=5) == [5, 0, 0]


def test_approach_counts_cells_to_the_nearest_treasure() -> None:
    points = {3: (8250, 15_750)}  # 15 cells north of the start
    assert reward_of([2, 2, 6, 6], points, approach_treasure=1) == [1, 1, -1, -1]


def test_approach_goes_on_to_the_end_when_no_treasure_is_left() -> None:
    game = arena(points={1: (8250, 15_750)}, n_treasures=0, reward={**NO_REWARD, "approach_end": 2.0})
    assert [step(game, action)[0] for action in (2, 2, 6)] == [2, 2, -2]


def test_taking_a_treasure_does_not_charge_the_way_to_the_next() -> None:
    points = {3: (8250, 9650), **dict.fromkeys(range(4, 9), (250, 250))}
    rewards = reward_of([2, 6], points, approach_treasure=1)
    assert rewards == [1, 1]  # towards the first, then, that taken, towards the far corner


def test_a_flash_multiplies_the_approach() -> None:
    assert reward_of([10], {3: (8250, 15_750)}, approach_treasure=1, flash_factor=5) == [40]


def test_walls_cost_a_walk_and_a_blocked_flash_differently() -> None:
    game = arena(walls=[(17, 16), (24, 16)], reward={**NO_REWARD, "wall": -1.0, "blocked_flash": -10.0})
    assert [step(game, action)[0] for action in (0, 8, 4, 0)] == [-1, -10, 0, 0]


def test_the_fourth_visit_of_a_cell_costs_the_repeat_weight() -> None:
    rewards = reward_of([0, 4] * 4, repeat=-1)
    assert [rewards[i] for i in (1, 3, 5, 7)] == [0, 0, -1, -1]  # the start was the first visit


def test_all_terms_are_multiplied_by_the_scale() -> None:
    game = arena(reward={**NO_REWARD, "step": -3.0, "scale": 0.25})
    assert step(game, 0)[0] == -0.75


def test_an_unknown_reward_term_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no reward term 'gold'; terms are treasure, end"):
        make_game("mini", 1, reward={"gold": 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_treasures": 7}, "n_treasures=7 must be a whole number from 0 to 6"),
        ({"n_treasures": "many"}, "n_treasures='many'"),
        ({"random_start": 1.5}, "random_start=1.5"),
        ({"max_step": 0}, "max_step=0 must be 1 to 400"),
        ({"max_step": 401}, "max_step=401"),
        ({"rules": "2023"}, "rules='2023'"),
        ({"num_maps": 3}, "num_maps=3 needs map='random'"),
        ({"treasures": 3}, "no option 'treasures'; options are n_treasures"),
    ],
)
def test_an_option_that_cannot_be_played_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_game("mini", 1, **options)


def treasures_of_many_games(num_games: int, **options: object) -> np.ndarray:
    game = make_game("mini", num_games, **options)
    game.reset(np.ones(num_games, bool), np.arange(num_games, dtype=np.uint64))
    return np.array([[int(bits) >> (3 + place) & 1 for place in range(6)] for bits in game.slots.treasures])


def test_a_number_of_treasures_is_kept_exactly_and_every_place_is_used_alike() -> None:
    treasures = treasures_of_many_games(4000, n_treasures=2)
    assert set(treasures.sum(axis=1)) == {2}
    assert treasures.mean(axis=0) == pytest.approx([1 / 3] * 6, abs=0.03)


def test_uniform_draws_0_to_all_treasures_alike() -> None:
    counts = np.bincount(treasures_of_many_games(7000, n_treasures="uniform").sum(axis=1), minlength=7)
    assert counts / 7000 == pytest.approx([1 / 7] * 7, abs=0.02)


def test_norm_draws_around_half_of_the_treasures() -> None:
    counts = np.bincount(treasures_of_many_games(7000, n_treasures="norm").sum(axis=1), minlength=7)
    sigma = 3.0 * 6 / 13
    weights = np.exp(-0.5 * ((np.arange(7) - 3) / sigma) ** 2)
    assert counts / 7000 == pytest.approx(weights / weights.sum(), abs=0.02)


def test_random_starts_are_spread_over_walkable_cells_away_from_the_end() -> None:
    game = make_game("mini", 2000, random_start=0.5)
    game.reset(np.ones(2000, bool), np.arange(2000, dtype=np.uint64))
    at_start = (game.slots.position == game.maps.points[0, 2]).all(axis=1)
    assert at_start.mean() == pytest.approx(0.5, abs=0.05)
    x, z = game.slots.position.T
    assert game.maps.walkable[0, z // 500, x // 500].min() == 1
    assert np.hypot(*(game.slots.position - game.maps.points[0, 1]).T).min() > 2000
    assert len(np.unique(game.slots.position, axis=0)) > 300


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), actions=st.lists(st.integers(0, 15), max_size=60))
def test_an_episode_is_a_function_of_its_seed_and_actions(seed: int, actions: list[int]) -> None:
    alone, among = (
        make_game("mini", 1, n_treasures="uniform", random_start=0.5),
        make_game("mini", 3, n_treasures="uniform", random_start=0.5),
    )
    alone.reset(np.ones(1, bool), np.array([seed], np.uint64))
    among.reset(np.ones(3, bool), np.array([1, 2, 3], np.uint64))
    step_all(among, [3, 4, 5])
    among.reset(np.array([False, True, False]), np.array([0, seed, 0], np.uint64))
    for action in actions:
        if alone.slots.status[0] != RUNNING:
            break
        single = step_all(alone, [action])
        many = step_all(among, [0, action, 0])
        assert [one[0] for one in single] == [one[1] for one in many]
        for key, array in observe(alone).items():
            np.testing.assert_array_equal(array[0], observe(among)[key][1])
    assert alone.episode_figures(0) == among.episode_figures(1)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), before=st.integers(0, 80), saves=st.integers(1, 20))
def test_going_on_from_a_saved_state_is_the_same_as_never_having_stopped(seed: int, before: int, saves: int) -> None:
    rng = np.random.default_rng(seed)
    game, other = make_game("mini", 4, max_step=70), make_game("mini", 4, max_step=70)
    game.reset(np.ones(4, bool), rng.integers(0, 2**63, 4, dtype=np.uint64))
    for actions in rng.integers(0, 16, (before, 4)):
        step_all(game, actions)
    for _ in range(saves):
        game.load_state(game.save_state())
    other.load_state(game.save_state())
    for actions in rng.integers(0, 16, (40, 4)):
        for mine, theirs in zip(step_all(game, actions), step_all(other, actions), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        for key, array in observe(game).items():
            np.testing.assert_array_equal(array, observe(other)[key])


def test_a_saved_state_is_a_copy() -> None:
    game = arena()
    state = game.save_state()
    step(game, 0)
    game.load_state(state)
    step(game, 2)
    game.load_state(state)
    assert where(game) == (8000, 8000)
    assert game.episode_figures(0)["steps"] == 0


def test_a_state_of_another_game_is_refused() -> None:
    with pytest.raises(ValueError, match="state of another Realm: seed is"):
        make_game("mini", 2).load_state(make_game("mini", 3).save_state())


def test_the_sizes_differ_in_numbers_only() -> None:
    for rules in (RealmRules.MINI, RealmRules.FULL):
        game = make_game(rules.name, 2)
        game.reset(np.ones(2, bool), np.arange(2, dtype=np.uint64))
        observation = observe(game)
        side = 2 * rules.view_radius_cells + 1
        assert observation["map"].shape == (2, 4, side, side)
        assert observation["vector"].shape == (2, {"mini": 17, "full": 31}[rules.name])
        for key, field in game.observation_fields.items():
            assert observation[key].min() >= field.low
            assert observation[key].max() <= field.high
    assert RealmOptions().check(RealmRules.FULL) is None
