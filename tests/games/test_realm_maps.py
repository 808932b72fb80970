"""Maps of Realm: their structure as measured on the cells, the frozen ones, and maps of one's own."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from millrace.games.realm import RealmRules, make_game
from millrace.games.realm.generator import MapFigures, draw_map_to_freeze, generate_map, measure_map
from millrace.games.realm.maps import RealmMap, frozen_map, load_map, map_to_json


def full_maps() -> list[RealmMap]:
    return [frozen_map(RealmRules.FULL), *(generate_map(RealmRules.FULL, 11, index) for index in range(4))]


def mini_maps() -> list[RealmMap]:
    return [frozen_map(RealmRules.MINI), *(generate_map(RealmRules.MINI, 11, index) for index in range(12))]


def check_common(figures: MapFigures) -> None:
    assert figures.components == 1
    assert figures.discs_free


def test_full_maps_have_the_structure_of_the_original() -> None:
    for one in full_maps():
        figures = measure_map(one, RealmRules.FULL)
        check_common(figures)
        assert 0.22 <= figures.walkable_share <= 0.30
        assert 1 <= figures.loops <= 2
        assert 6 <= figures.narrowest_cells <= 14
        assert 150 <= figures.start_end_cells <= 220
        assert figures.longest_cells < 256
        assert figures.places_at_dead_ends >= 8
        blocks = one.walkable.reshape(64, 2, 64, 2).sum(axis=(1, 3))
        assert set(np.unique(blocks)) == {0, 4}
        buff, end, start = one.points[:3]
        assert np.abs(buff - 32_000).max() <= 10_000
        assert ((start < 32_000) != (end < 32_000)).all()


def test_mini_maps_are_winding_and_connected() -> None:
    for one in mini_maps():
        figures = measure_map(one, RealmRules.MINI)
        check_common(figures)
        assert figures.loops == 1
        assert figures.narrowest_cells == 4
        assert 76 <= figures.start_end_cells <= 110
        assert figures.longest_cells < 128
        assert figures.places_at_dead_ends >= 3


def test_the_frozen_maps_are_the_draws_they_are_said_to_be() -> None:
    for rules in (RealmRules.MINI, RealmRules.FULL):
        drawn, frozen = draw_map_to_freeze(rules), frozen_map(rules)
        np.testing.assert_array_equal(drawn.walkable, frozen.walkable)
        np.testing.assert_array_equal(drawn.points, frozen.points)


def test_random_maps_repeat_by_seed_and_differ_from_each_other_and_from_the_frozen_one() -> None:
    maps = [frozen_map(RealmRules.MINI).walkable]
    maps += [generate_map(RealmRules.MINI, seed, index).walkable for seed in range(3) for index in range(5)]
    assert len({one.tobytes() for one in maps}) == len(maps)
    np.testing.assert_array_equal(generate_map(RealmRules.MINI, 2, 4).walkable, maps[-1])


def test_an_episode_plays_on_the_map_that_its_seed_picks() -> None:
    game = make_game("mini", 600, map="random", num_maps=3, map_seed=4)
    seeds = np.arange(600, dtype=np.uint64)
    game.reset(np.ones(600, bool), seeds)
    picked = game.slots.map_index.copy()
    assert np.bincount(picked) / 600 == pytest.approx([1 / 3] * 3, abs=0.08)
    assert (game.slots.position == game.maps.points[picked, 2]).all()
    game.reset(np.ones(600, bool), seeds[::-1].copy())
    np.testing.assert_array_equal(game.slots.map_index, picked[::-1])


def literal_distances(walkable: np.ndarray, x: int, z: int) -> np.ndarray:
    """Breadth-first search with a deque, 32767 where there is no way."""
    distance = np.full(walkable.shape, 32767)
    distance[z, x] = 0
    queue = deque([(z, x)])
    while queue:
        row, column = queue.popleft()
        for near in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            inside = 0 <= near[0] < len(walkable) and 0 <= near[1] < len(walkable)
            if inside and walkable[near] and distance[near] == 32767:
                distance[near] = distance[row, column] + 1
                queue.append(near)
    return distance


def test_distance_fields_equal_a_plain_breadth_first_search() -> None:
    game = make_game("mini", 1, map="random", num_maps=2)
    for walkable, points, distance in zip(game.maps.walkable, game.maps.points, game.maps.distance, strict=True):
        for k, (x, z) in enumerate(points // 500):
            np.testing.assert_array_equal(distance[:, :, k], literal_distances(walkable, x, z))


def test_a_map_of_ones_own_is_played(tmp_path: Path) -> None:
    own = generate_map(RealmRules.MINI, 99)
    path = tmp_path / "own.json"
    path.write_text(json.dumps(map_to_json(own)))
    game = make_game("mini", 1, map=str(path))
    np.testing.assert_array_equal(game.maps.walkable[0], own.walkable)
    np.testing.assert_array_equal(game.maps.points[0], own.points)


def write(path: Path, value: object) -> str:
    path.write_text(json.dumps(value))
    return str(path)


@pytest.mark.parametrize("size", ["mini", "full"])
@pytest.mark.parametrize("form", ["pairs", "objects", "under a key", "objects in the map's own file"])
def test_the_points_of_a_map_may_be_pairs_or_objects_in_its_own_file_or_another(
    tmp_path: Path, size: str, form: str
) -> None:
    own = generate_map(RealmRules.of_size(size), 99)
    record = map_to_json(own)
    pairs = record.pop("Points")
    objects = [{"x": x, "z": z} for x, z in pairs]
    separate = {"pairs": pairs, "objects": objects, "under a key": {"Points": pairs}}
    if form in separate:
        options = {"points": write(tmp_path / "points.json", separate[form])}
    else:
        record["Points"], options = objects, {}
    game = make_game(size, 1, map=write(tmp_path / "own.json", record), **options)
    np.testing.assert_array_equal(game.maps.walkable[0], own.walkable)
    np.testing.assert_array_equal(game.maps.points[0], own.points)


def test_a_file_that_cannot_be_read_as_a_map_is_refused_with_the_reason(tmp_path: Path) -> None:
    record = map_to_json(generate_map(RealmRules.MINI, 99))
    path, bad = write(tmp_path / "own.json", record), tmp_path / "bad.json"
    bad.write_text("{")
    with pytest.raises(
        ValueError, match=r"cannot read the map nowhere\.json: No such file .*'frozen', 'random' or a path"
    ):
        make_game("mini", 1, map="nowhere.json")
    with pytest.raises(ValueError, match=r"bad\.json is not valid JSON"):
        make_game("mini", 1, map=str(bad))
    with pytest.raises(ValueError, match="is not a JSON object with CellWidth"):
        make_game("mini", 1, map=write(tmp_path / "list.json", [1]))
    with pytest.raises(ValueError, match=r"points\.json has no 'Points'"):
        make_game("mini", 1, map=path, points=write(tmp_path / "points.json", {"points": []}))
    with pytest.raises(ValueError, match=r"points=.* needs map=PATH: the frozen map has its own"):
        make_game("mini", 1, points=path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Flags": [2] * 1024}, "has a flag 2; Flags are 1 for walkable cells and 0"),
        ({"Points": None}, "has no 'Points'; or name a file with the points"),
        ({"Points": [[1, 2, 3]] * 9}, "needed are 9 pairs"),
        ({"Points": [{"x": 1}] * 9}, "Points are pairs"),
        ({"Points": 7}, "Points are pairs"),
        ({"Points": [["a", "b"]] * 9}, "Points are pairs"),
        ({"Width": 31}, r"needs \(500, 32, 32\)"),
        ({"Flags": [1, 0]}, "has 2 Flags"),
        ({"Points": [[0, 0]]}, "needed are 9 pairs"),
        ({"Points": [[0, 0]] * 9}, "point 0 at .* is not in a walkable cell"),
        ({"Flags": None}, "has no 'Flags'"),
    ],
)
def test_a_map_that_does_not_fit_is_refused_with_the_reason(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    record = {**map_to_json(generate_map(RealmRules.MINI, 99)), **change}
    path = tmp_path / "own.json"
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))
    with pytest.raises(ValueError, match=message):
        load_map(path, RealmRules.MINI)
