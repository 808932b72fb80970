"""How a hero of Realm moves: walking, sliding, flashing, the buff, and which way is up."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from realm_arena import arena, observe, put, rules, step, where

from millrace.games.realm.kernels import nearest_open, walk

STEP = {
    0: (700, 0),
    1: (495, 495),
    2: (0, 700),
    3: (-495, 495),
    4: (-700, 0),
    5: (-495, -495),
    6: (0, -700),
    7: (495, -495),
}
UNIT = {0: (1, 0), 1: (1, 1), 2: (0, 1), 3: (-1, 1), 4: (-1, 0), 5: (-1, -1), 6: (0, -1), 7: (1, -1)}


@pytest.mark.parametrize("direction", range(8))
def test_on_open_ground_a_step_goes_700_units_in_its_direction(direction: int) -> None:
    game = arena()
    step(game, direction)
    dx, dz = STEP[direction]
    assert where(game) == (8000 + dx, 8000 + dz)
    assert math.hypot(dx, dz) == pytest.approx(700, abs=1)


@pytest.mark.parametrize("direction", range(8))
@pytest.mark.parametrize("flip_map", [False, True])
def test_what_lies_in_a_direction_is_seen_there_with_largest_z_on_top_unless_flipped(
    direction: int, flip_map: bool
) -> None:
    dx, dz = UNIT[direction]
    game = arena(walls=[(16 + 3 * dx, 16 + 3 * dz)], flip_map=flip_map)
    obstacle = observe(game)["map"][0, 0]
    row = 7 + 3 * dz if flip_map else 7 - 3 * dz
    assert np.argwhere(obstacle == 0).tolist() == [[row, 7 + 3 * dx]]


def test_visits_treasures_and_end_are_seen_where_they_are_and_the_outside_is_blocked() -> None:
    game = arena(points={1: (14250, 13250), 3: (13250, 14250)}, n_treasures=6)
    put(game, 14000, 14000)  # cell 28, 28
    step(game, 0)
    planes = observe(game)["map"][0]
    assert planes[0, :4].max() == 0  # four rows above cell row 31
    assert planes[0, 4:, : 7 + 3].min() == 5
    assert np.argwhere(planes[1] == 1).tolist() == [[7, 7]]
    assert np.argwhere(planes[3] == 5).tolist() == [[9, 7 - 1]]  # the end lies at cell 28, 26
    assert [7, 7 - 3] in np.argwhere(planes[2] == 5).tolist()  # a treasure at cell 26, 28


def test_visits_are_counted_up_to_five() -> None:
    game = arena()
    seen = []
    for _ in range(4):
        step(game, 0)
        step(game, 4)
        seen.append(int(observe(game)["map"][0, 1, 7, 7]))
    assert seen == [2, 3, 4, 5]
    step(game, 0)
    step(game, 4)
    assert observe(game)["map"][0, 1, 7, 7] == 5


def test_a_diagonal_step_slides_along_a_wall() -> None:
    wall = [(x, 18) for x in range(32)]
    game = arena(walls=wall)
    put(game, 8000, 8900)
    step(game, 1)
    assert where(game) == (8495, 8900)
    step(game, 3)
    assert where(game) == (8000, 8900)
    assert game.episode_figures(0)["wall_hits"] == 2


def test_a_straight_step_stops_before_a_wall() -> None:
    game = arena(walls=[(18, z) for z in range(32)])
    put(game, 8700, 8000)
    step(game, 0)
    assert where(game) == (8933, 8000)
    assert game.episode_figures(0)["wall_hits"] == 1


def test_the_edge_of_the_world_is_a_wall() -> None:
    game = arena(points={3: (8000, 250), 4: (8000, 250), 5: (8000, 250), 6: (8000, 250), 7: (8000, 250)})
    put(game, 100, 8000)
    step(game, 4)
    assert where(game) == (100, 8000)


@pytest.mark.parametrize(
    ("walls", "passes"), [([(17, 16), (16, 17)], False), ([(17, 16)], True), ([(16, 17)], True), ([], True)]
)
def test_a_corner_is_cut_past_one_blocked_cell_but_not_between_two(walls: list[tuple[int, int]], passes: bool) -> None:
    game = arena(walls=walls)
    put(game, 8450, 8450)
    step(game, 1)
    assert (where(game) == (8945, 8945)) is passes
    if not passes:
        assert where(game) == (8450, 8450)


def literal_walk(open_cells: set[tuple[int, int]], x: int, z: int, direction: int, units: int) -> tuple[int, int]:
    """The rule in words: three parts; each the full vector, else x, else z; no cutting between two blocked cells."""
    length = units if direction % 2 == 0 else round(units / math.sqrt(2))
    parts = [length * (i + 1) // 3 - length * i // 3 for i in range(3)]

    def is_open(px: int, pz: int) -> bool:
        return (px // 500, pz // 500) in open_cells

    for part in parts:
        dx, dz = UNIT[direction][0] * part, UNIT[direction][1] * part
        between_two = not is_open(x + dx, z) and not is_open(x, z + dz)
        if is_open(x + dx, z + dz) and not between_two:
            x, z = x + dx, z + dz
        elif is_open(x + dx, z):
            x = x + dx
        elif is_open(x, z + dz):
            z = z + dz
    return x, z


@settings(max_examples=300, deadline=None)
@given(
    grid=st.integers(0, 2**36 - 1),
    x=st.integers(0, 499),
    z=st.integers(0, 499),
    direction=st.integers(0, 7),
    units=st.sampled_from([700, 1000]),
)
def test_walking_equals_the_rule_in_words_on_any_ground(grid: int, x: int, z: int, direction: int, units: int) -> None:
    walkable = np.zeros((32, 32), dtype=np.uint8)
    for bit in range(36):
        walkable[bit // 6, bit % 6] = grid >> bit & 1
    walkable[3, 3] = 1
    open_cells = {(int(column), int(row)) for row, column in np.argwhere(walkable)}
    game = arena()
    points = game.maps.points[0]
    walked = walk(game.numbers, walkable, points, 1500 + x, 1500 + z, direction, units)
    assert walked[:2] == literal_walk(open_cells, 1500 + x, 1500 + z, direction, units)


def test_a_flash_crosses_obstacles() -> None:
    game = arena(walls=[(x, z) for x in range(17, 23) for z in range(32)])
    step(game, 8)
    assert where(game) == (12000, 8000)
    figures = game.episode_figures(0)
    assert (figures["flashes"], figures["wall_hits"]) == (1, 0)


def test_a_blocked_flash_stays_put_under_2024_rules_and_still_cools_down() -> None:
    game = arena(walls=[(24, 16)], rules="2024")
    step(game, 8)
    assert where(game) == (8000, 8000)
    assert game.slots.flash_wait[0] == 149
    assert game.episode_figures(0)["wall_hits"] == 1


def test_a_blocked_flash_lands_on_the_nearest_walkable_place_under_2025_rules() -> None:
    game = arena(walls=[(24, z) for z in range(32)] + [(25, z) for z in range(32)], rules="2025")
    put(game, 8100, 8000)
    step(game, 8)
    assert where(game) == (11999, 8000)  # the target was 12100: 101 units into the wall
    assert game.slots.flash_wait[0] == 149


def test_a_flash_out_of_the_world_is_a_blocked_one() -> None:
    game = arena(points={3: (8000, 250), 4: (8000, 250), 5: (8000, 250)})
    put(game, 15000, 8000)
    step(game, 8)
    assert where(game) == (15000, 8000)
    inside = arena(rules="2025")
    put(inside, 15000, 8000)
    step(inside, 8)
    assert where(inside) == (15999, 8000)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10_000), x=st.integers(-9000, 25_000), z=st.integers(-9000, 25_000))
def test_the_nearest_walkable_place_is_the_nearest(seed: int, x: int, z: int) -> None:
    walkable = (np.random.default_rng(seed).random((32, 32)) < 0.03).astype(np.uint8)
    walkable[5, 7] = 1
    found_x, found_z = nearest_open(walkable, x, z)
    rows, columns = np.nonzero(walkable)
    away_x = x - np.clip(x, columns * 500, columns * 500 + 499)
    away_z = z - np.clip(z, rows * 500, rows * 500 + 499)
    assert walkable[found_z // 500, found_x // 500] == 1
    assert (found_x - x) ** 2 + (found_z - z) ** 2 == (away_x**2 + away_z**2).min()


def test_a_flash_is_legal_again_after_exactly_its_cooldown_and_the_mask_says_so() -> None:
    game = arena()
    assert observe(game)["action_mask"][0].tolist() == [1] * 16
    step(game, 8)
    for waited in range(1, 150):
        assert observe(game)["action_mask"][0].tolist() == [1] * 8 + [0] * 8, waited
        step(game, waited % 2 * 4)
    assert observe(game)["action_mask"][0].tolist() == [1] * 16
    before = where(game)
    step(game, 12)
    assert where(game) == (before[0] - 4000, before[1])


@pytest.mark.parametrize("direction", range(8))
def test_an_illegal_flash_is_an_ordinary_walk(direction: int) -> None:
    flashed, walked = arena(), arena()
    for game in (flashed, walked):
        step(game, 8 + 4)
    assert step(flashed, 8 + direction) == step(walked, direction)
    for name, array in flashed.save_state().items():
        np.testing.assert_array_equal(array, walked.save_state()[name])


def test_the_buff_makes_the_next_25_steps_1000_units_long() -> None:
    game = arena(points={0: (8000, 9200)})
    step(game, 2)  # takes the buff at ordinary speed
    assert where(game) == (8000, 8700)
    lengths = []
    for i in range(30):
        before = where(game)
        step(game, i % 2 * 4)
        lengths.append(abs(where(game)[0] - before[0]))
    assert lengths == [1000] * 25 + [700] * 5
    assert game.episode_figures(0)["buff_missed"] == 0


def test_the_buff_lies_there_again_after_its_time() -> None:
    game = arena(points={0: (8000, 9200)}, numbers=rules(buff_respawn_steps=30))
    step(game, 2)
    present = []
    for i in range(32):
        present.append(observe(game)["vector"][0, 14])
        step(game, 4 if i < 5 else 2 if i % 2 else 6)
    assert present == [0.0] * 30 + [1.0] * 2
