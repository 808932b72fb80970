"""Realm through Gymnasium, its pictures, and what importing and compiling it costs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from numba.core.caching import CacheImpl

from millrace.compiled import kernel
from millrace.envs.realm import RealmEnv, RealmVectorEnv
from millrace.envs.registration import register_envs
from millrace.games.realm import make_game
from millrace.games.realm.oracle import oracle_actions


@pytest.fixture(autouse=True)
def registered() -> None:
    register_envs()


def test_both_ids_make_environments_that_gymnasium_accepts() -> None:
    for env_id, side in (("millrace/RealmMini-v0", 15), ("millrace/Realm-v0", 51)):
        env = gymnasium.make(env_id, render_mode="rgb_array")
        check_env(env.unwrapped)
        assert env.observation_space["map"].shape == (4, side, side)


def test_registering_twice_is_no_error() -> None:
    register_envs()
    register_envs()


def test_a_seeded_reset_is_the_game_of_that_seed_and_later_ones_follow_from_it() -> None:
    env, game = RealmEnv(), make_game("mini", 1)
    env.reset(seed=12)
    game.reset(np.ones(1, bool), np.array([12], np.uint64))
    assert env.game.slots.treasures[0] == game.slots.treasures[0]
    later = []
    for _ in range(2):
        env.reset(seed=12)
        later.append([int(env.reset()[0]["vector"][2:8] @ 2 ** np.arange(6)) for _ in range(8)])
    assert later[0] == later[1]
    assert len(set(later[0])) > 1


def test_the_last_info_holds_the_figures_and_the_others_nothing() -> None:
    env = RealmEnv()
    env.reset(seed=3)
    infos = [env.step(action)[4] for action in oracle_actions("mini", 3)]
    assert infos[:-1] == [{}] * (len(infos) - 1)
    assert infos[-1]["score"] > 500
    assert infos[-1]["treasures"] == 3


def test_the_vector_environment_gives_what_single_ones_give() -> None:
    together = gymnasium.make_vec("millrace/RealmMini-v0", 3, max_step=25)
    apart = gymnasium.make_vec("millrace/RealmMini-v0", 3, vectorization_mode="sync", max_step=25)
    assert together.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert_same(together.reset(seed=5), apart.reset(seed=5))
    for actions in np.random.default_rng(0).integers(0, 16, (80, 3)):
        assert_same(together.step(actions), apart.step(actions))


def assert_same(mine: tuple[Any, ...], theirs: tuple[Any, ...]) -> None:
    for key, array in mine[0].items():
        np.testing.assert_array_equal(array, theirs[0][key])
    for array, other in zip(mine[1:-1], theirs[1:-1], strict=True):
        np.testing.assert_array_equal(array, other.astype(array.dtype))
    assert mine[-1].keys() == theirs[-1].keys()
    for key, array in mine[-1].items():
        np.testing.assert_array_equal(array, theirs[-1][key])


def test_seeds_may_be_given_slot_by_slot() -> None:
    env = RealmVectorEnv(2)
    first = env.reset(seed=[9, 9])[0]["vector"]
    np.testing.assert_array_equal(first[0], first[1])
    with pytest.raises(ValueError, match="3 seeds for 2 slots"):
        env.reset(seed=[1, 2, 3])


@pytest.mark.parametrize("make", [RealmEnv, lambda: RealmVectorEnv(3, max_step=30)])
def test_an_environment_goes_on_from_its_saved_state_over_later_resets_too(make: Any) -> None:
    env, other = make(), make()
    env.reset(seed=1)
    actions = env.action_space
    actions.seed(0)
    for _ in range(20):
        env.step(actions.sample())
    other.reset(seed=77)
    other.load_state(env.save_state())
    for turn in range(60):
        if turn == 30:
            assert_equal_observations(env.reset()[0], other.reset()[0])
        action = actions.sample()
        mine, theirs = env.step(action), other.step(action)
        assert_equal_observations(mine[0], theirs[0])
        np.testing.assert_array_equal(mine[1], theirs[1])


def assert_equal_observations(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    for key, array in mine.items():
        np.testing.assert_array_equal(array, theirs[key])


def test_a_picture_shows_the_hero_where_he_stands_and_stays_the_same_for_the_same_state() -> None:
    env = RealmEnv(render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    assert before is not None
    assert before.shape == (32 * 12 + 24, 32 * 12, 3)
    assert before.dtype == np.uint8
    np.testing.assert_array_equal(before, env.render())
    x, z = env.game.slots.position[0] * 12 // 500
    assert before[32 * 12 - z, x].tolist() == [222, 66, 54]
    for action in oracle_actions("mini", 0):
        env.step(action)
    assert (env.render() != before).any()
    assert RealmEnv().render() is None


@pytest.mark.parametrize(("size", "scale"), [("mini", 12), ("full", 4)])
def test_a_picture_shows_the_way_treasures_left_and_taken_and_the_buff(size: str, scale: int) -> None:
    env = RealmEnv(size, render_mode="rgb_array")
    env.reset(seed=0)
    game = env.game

    def colour(point_id: int) -> list[int]:
        picture = env.render()
        assert picture is not None
        x, z = game.maps.points[0, point_id] * scale // 500
        return picture[game.rules.width_cells * scale - 1 - z, x].tolist()

    placed = int(game.slots.placed[0])
    present = [k for k in range(3, game.rules.num_points) if placed >> k & 1]
    absent = [k for k in range(3, game.rules.num_points) if not placed >> k & 1]
    gold, taken, buff = [240, 180, 32], [248, 246, 240], [60, 178, 208]
    assert [colour(k) for k in present] == [gold] * len(present)
    assert all(colour(k) not in (gold, taken) for k in absent)
    assert colour(0) == buff
    game.slots.treasures[0] = 0
    game.slots.buff_wait[0] = 9
    assert all(colour(k) != gold for k in present)
    assert colour(0) != buff
    before = env.render()
    trail_colour = np.array([72, 108, 188])
    for action in oracle_actions(size, 0)[:12]:
        env.step(action)
    after = env.render()
    assert before is not None
    assert after is not None
    on_the_way = [(np.abs(picture.astype(int) - trail_colour).sum(-1) < 40).sum() for picture in (before, after)]
    assert on_the_way[1] > on_the_way[0] + 20


def test_values_colour_the_ground_of_a_picture_from_lowest_to_highest() -> None:
    game = make_game("mini", 1)
    game.reset(np.ones(1, bool), np.zeros(1, np.uint64))
    asked = []

    def west_to_east(positions: np.ndarray) -> np.ndarray:
        asked.append(positions)
        return positions[:, 0].astype(float)

    picture = game.render(0, values=west_to_east)
    (positions,) = asked
    cells = positions // 500
    assert len(positions) == game.maps.walkable[0].sum()
    assert (game.maps.walkable[0, cells[:, 1], cells[:, 0]] == 1).all()

    def colours(x: int) -> set[tuple[int, ...]]:
        return {tuple(picture[32 * 12 - 1 - z * 12 - 6, x * 12 + 6]) for column, z in cells if column == x}

    assert (68, 1, 84) in colours(int(cells[:, 0].min()))
    assert (253, 231, 37) in colours(int(cells[:, 0].max()))
    with pytest.raises(ValueError, match=r"values gave shape \(3,\)"):
        game.render(0, values=lambda positions: np.zeros(3))


def test_observing_elsewhere_gives_what_the_hero_would_see_there_and_moves_nobody() -> None:
    game = make_game("mini", 2)
    game.reset(np.ones(2, bool), np.array([4, 5], np.uint64))
    before = game.save_state()
    positions = game.maps.points[0][[1, 2, 5]]
    seen = game.observe_at(1, positions)
    for name, array in game.save_state().items():
        np.testing.assert_array_equal(array, before[name])
    for i, position in enumerate(positions):
        game.slots.position[1] = position
        now = {key: np.zeros((2, *one.shape), one.dtype) for key, one in game.observation_fields.items()}
        game.observe(now)
        for key, array in seen.items():
            np.testing.assert_array_equal(array[i], now[key][1])


def test_an_unknown_render_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="no render_mode 'human'"):
        RealmEnv(render_mode="human")


def test_playing_needs_neither_torch_nor_gymnasium_nor_pillow() -> None:
    program = (
        "import sys, numpy as np\n"
        "from millrace.games.realm import make_game\n"
        "game = make_game('mini', 1)\n"
        "game.reset(np.ones(1, bool), np.zeros(1, np.uint64))\n"
        "print(sorted({'torch', 'gymnasium', 'PIL'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_a_place_for_a_cache_a_kernel_compiles_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    monkeypatch.setattr("numba.core.caching.CodeLibraryCacheImpl._locator_classes", [], raising=False)

    @kernel
    def double(number: int) -> int:
        return 2 * number

    assert double(21) == 42


def test_gymnasium_makes_the_games_once_they_are_registered():
    import millrace

    millrace.register_envs()
    env = gymnasium.make("millrace/RealmMini-v0")
    observation, _ = env.reset(seed=3)
    assert env.observation_space.contains(observation)
    assert gymnasium.make_vec("millrace/RealmMini-v0", 2).num_envs == 2
