"""The full size: its numbers, directions, both rules for blocked flashes, saved states, and the oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from realm_arena import observe, step, step_all

from millrace.games.realm import RealmGame, RealmRules, make_game
from millrace.games.realm.oracle import oracle_games, walker_scores
from millrace.games.realm.play import play_games, random_policy
from millrace.games.realm.walker import walker_actions

UNIT = {0: (1, 0), 1: (1, 1), 2: (0, 1), 3: (-1, 1), 4: (-1, 0), 5: (-1, -1), 6: (0, -1), 7: (1, -1)}
SIDE, RADIUS, CELL = 51, 25, 500


def begun(num_slots: int = 1, seed: int = 0, **options: object) -> RealmGame:
    game = make_game("full", num_slots, **options)
    game.reset(np.ones(num_slots, bool), np.arange(seed, seed + num_slots, dtype=np.uint64))
    return game


def middle(cell: tuple[int, int]) -> tuple[int, int]:
    return cell[0] * CELL + CELL // 2, cell[1] * CELL + CELL // 2


def put(game: RealmGame, position: tuple[int, int]) -> None:
    game.slots.position[0] = position


def open_cells(game: RealmGame) -> list[tuple[int, int]]:
    """Walkable cells (x, z) with two walkable cells to every side, in a fixed order."""
    rows, columns = np.nonzero(game.maps.walkable[0])
    walkable = np.pad(game.maps.walkable[0], 2)
    free = [(int(x), int(z)) for z, x in zip(rows, columns, strict=True) if walkable[z : z + 5, x : x + 5].all()]
    assert len(free) > 1000
    return free


def test_the_numbers_of_the_full_size_are_the_documented_ones() -> None:
    rules = RealmRules.FULL
    assert (rules.world_units, rules.num_points, rules.view_cells, rules.vector_size) == (64_000, 16, 51, 31)
    game = begun()
    assert game.observation_fields["map"].shape == (4, 51, 51)
    assert int(game.slots.placed[0]).bit_count() == 9
    assert game.slots.max_step[0] == 2000


@pytest.mark.parametrize("direction", range(8))
@pytest.mark.parametrize("flip_map", [False, True])
def test_a_step_in_a_direction_moves_the_view_the_same_way(direction: int, flip_map: bool) -> None:
    game = begun(flip_map=flip_map)
    dx, dz = UNIT[direction]
    for cell in open_cells(game)[::400]:
        put(game, middle(cell))
        before = observe(game)["map"][0, 0]
        put(game, middle((cell[0] + dx, cell[1] + dz)))
        after = observe(game)["map"][0, 0]
        down = dz if flip_map else -dz  # rows grow downwards
        rows, columns = slice(1 + down, SIDE - 1 + down), slice(1 + dx, SIDE - 1 + dx)
        np.testing.assert_array_equal(before[rows, columns], after[1:-1, 1:-1])


@pytest.mark.parametrize("direction", range(8))
def test_a_free_step_is_700_and_a_buffed_one_1000_units_long(direction: int) -> None:
    game = begun()
    cell = open_cells(game)[700]
    for buff_left, length in ((0, 700), (9, 1000)):
        put(game, middle(cell))
        game.slots.buff_left[0] = buff_left
        step(game, direction)
        moved = game.slots.position[0] - middle(cell)
        assert math.hypot(*moved) == pytest.approx(length, abs=1)
        assert np.sign(moved).tolist() == list(UNIT[direction])


@pytest.mark.parametrize("flip_map", [False, True])
def test_the_planes_are_cut_out_of_the_world_around_the_hero(flip_map: bool) -> None:
    game = begun(n_treasures=13, flip_map=flip_map)
    world = np.zeros((4, 128 + 2 * RADIUS, 128 + 2 * RADIUS), dtype=np.uint8)
    inside = slice(RADIUS, RADIUS + 128)
    world[0, inside, inside] = 5 * game.maps.walkable[0]
    for point_id, (x, z) in enumerate(game.maps.points[0] // CELL):
        if point_id not in (0, 2):
            world[3 if point_id == 1 else 2, z + RADIUS, x + RADIUS] = 5
    for position in game.maps.points[0]:
        put(game, tuple(position))
        x, z = position // CELL
        expected = world[:, z : z + SIDE, x : x + SIDE]
        expected = expected if flip_map else expected[:, ::-1]
        seen = observe(game)["map"][0]
        np.testing.assert_array_equal(seen[[0, 2, 3]], expected[[0, 2, 3]])


def flash_targets(game: RealmGame, direction: int, blocked: bool) -> list[tuple[int, int]]:
    """Cells from whose middle a flash in the direction hits a blocked (or free) target."""
    units = 8000 if direction % 2 == 0 else 5657
    found = []
    for cell in open_cells(game):
        x, z = (middle(cell)[axis] + UNIT[direction][axis] * units for axis in (0, 1))
        inside = 0 <= x < 64_000 and 0 <= z < 64_000
        free = inside and bool(game.maps.walkable[0, z // CELL, x // CELL])
        if free != blocked:
            found.append(cell)
    return found[:: max(1, len(found) // 12)]


@pytest.mark.parametrize("direction", range(8))
@pytest.mark.parametrize("rules", ["2024", "2025"])
def test_a_flash_lands_on_its_target_when_that_is_free(direction: int, rules: str) -> None:
    game = begun(rules=rules)
    for cell in flash_targets(game, direction, blocked=False):
        put(game, middle(cell))
        game.slots.flash_wait[0], game.slots.status[0] = 0, 1
        step(game, 8 + direction)
        assert math.hypot(*(game.slots.position[0] - middle(cell))) == pytest.approx(8000, abs=1)
        assert game.slots.flash_wait[0] == 605


@pytest.mark.parametrize("direction", range(8))
def test_a_blocked_flash_stays_put_in_2024_and_goes_to_the_nearest_walkable_place_in_2025(direction: int) -> None:
    games = {rules: begun(rules=rules) for rules in ("2024", "2025")}
    units = 8000 if direction % 2 == 0 else 5657
    rows, columns = np.nonzero(games["2025"].maps.walkable[0])
    for cell in flash_targets(games["2024"], direction, blocked=True):
        start = np.array(middle(cell))
        for game in games.values():
            put(game, middle(cell))
            game.slots.flash_wait[0], game.slots.status[0], game.slots.steps[0] = 0, 1, 0
            step(game, 8 + direction)
            assert game.slots.flash_wait[0] == 605
        assert games["2024"].slots.position[0].tolist() == start.tolist()
        target = start + np.array(UNIT[direction]) * units
        away_x = target[0] - np.clip(target[0], columns * CELL, columns * CELL + CELL - 1)
        away_z = target[1] - np.clip(target[1], rows * CELL, rows * CELL + CELL - 1)
        landed = games["2025"].slots.position[0]
        assert games["2025"].maps.walkable[0, landed[1] // CELL, landed[0] // CELL] == 1
        assert ((landed - target) ** 2).sum() == (away_x**2 + away_z**2).min()


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**63), saves=st.integers(1, 2000))
def test_thousands_of_saves_and_loads_change_nothing(seed: int, saves: int) -> None:
    """A sample of the million of them that the game is said to bear: states are copies, and nothing drifts."""
    for size in ("mini", "full") if saves < 200 else ("mini",):
        straight, saved = (make_game(size, 2, n_treasures="uniform", random_start=0.5) for _ in range(2))
        for game in (straight, saved):
            game.reset(np.ones(2, bool), np.array([seed, seed + 1], np.uint64))
        rng = np.random.default_rng(seed)
        per_step = max(1, saves // 40)
        for _ in range(40):
            for _ in range(per_step):
                saved.load_state(saved.save_state())
            actions = rng.integers(0, 16, 2)
            for mine, theirs in zip(step_all(straight, actions), step_all(saved, actions), strict=True):
                np.testing.assert_array_equal(mine, theirs)
        for name, array in straight.save_state().items():
            np.testing.assert_array_equal(array, saved.save_state()[name])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), options=st.sampled_from([{}, {"rules": "2025"}, {"random_start": 1.0}]))
def test_a_hero_is_always_in_the_open_and_what_he_sees_stays_in_bounds(seed: int, options: dict[str, object]) -> None:
    game = make_game("full", 1, **options)
    game.reset(np.ones(1, bool), np.array([seed], np.uint64))
    for action in np.random.default_rng(seed % 2**32).integers(0, 16, 150):
        if game.slots.status[0] != 1:
            break
        step(game, int(action))
        x, z = game.slots.position[0] // CELL
        assert game.maps.walkable[0, z, x] == 1
        observation = observe(game)
        assert observation["map"].max() <= 5
        assert observation["map"][0, 0, RADIUS, RADIUS] == 5
        assert set(np.unique(observation["map"][0, [0, 2, 3]])) <= {0, 5}
        assert 0 <= observation["vector"].min() <= observation["vector"].max() <= 1


def test_the_way_walked_is_kept_from_the_start_to_the_last_step() -> None:
    game = begun()
    positions = [game.slots.position[0].tolist()]
    for action in np.random.default_rng(0).integers(0, 16, 600):
        step(game, int(action))
        positions.append(game.slots.position[0].tolist())
    np.testing.assert_array_equal(game.slots.trail[0, :601], positions)


@pytest.mark.parametrize("n_treasures", range(14))
def test_the_oracle_takes_every_number_of_treasures_in_fewer_steps_than_the_walker(n_treasures: int) -> None:
    seeds = range(3)
    best = oracle_games("full", seeds, n_treasures=n_treasures)
    assert best.of("finished").min() == 1
    assert (best.of("treasures") == n_treasures).all()
    walked = walker_scores("full", seeds, n_treasures=n_treasures)
    assert (best.of("score") > walked).all()


def test_the_oracle_plays_both_rules_random_starts_and_generated_maps_of_full_size() -> None:
    for options in ({"rules": "2025"}, {"random_start": 1.0}, {"map": "random", "num_maps": 2, "map_seed": 5}):
        best = oracle_games("full", range(3), **options)
        assert best.of("finished").min() == 1
        assert (best.of("score") >= walker_scores("full", range(3), **options)).all()


def test_with_little_time_the_oracle_leaves_treasures_behind_and_still_finishes() -> None:
    best = oracle_games("full", range(5), n_treasures=13, max_step=150)
    assert best.of("finished").min() == 1
    assert 1 < best.of("treasures").mean() < 13


def test_random_play_times_out_and_the_walker_takes_everything() -> None:
    assert play_games(begun(20), range(20), random_policy()).of("score").max() == 0
    walked = play_games(begun(20), range(20), walker_actions)
    assert walked.of("treasures_missed").max() == 0
    assert walked.of("finished").min() == 1
