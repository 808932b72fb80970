"""Random play, the walker and the oracle: what a score of Realm is compared with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from realm_arena import arena, step

from millrace.games.realm import RealmRules, make_game
from millrace.games.realm.maps import RealmMap, map_to_json
from millrace.games.realm.oracle import oracle_actions, oracle_games, oracle_scores, random_scores, walker_scores
from millrace.games.realm.play import play_games, random_policy
from millrace.games.realm.walker import walker_actions

SEEDS = range(100)


def test_random_play_reaches_the_end_of_the_frozen_map_in_fewer_than_2_per_cent_of_games() -> None:
    assert (random_scores("mini", range(1500)) > 0).mean() < 0.02


def test_random_play_flashes_only_when_it_may() -> None:
    played = play_games(make_game("mini", 50), range(50), random_policy())
    flashes_tried = [int((actions >= 8).sum()) for actions in played.actions]
    assert flashes_tried == played.of("flashes").tolist()
    assert min(flashes_tried) >= 1


@pytest.mark.parametrize("options", [{}, {"map": "random", "num_maps": 8}, {"rules": "2025", "n_treasures": 6}])
def test_the_walker_takes_every_treasure_and_the_oracle_takes_them_in_fewer_steps(options: dict[str, object]) -> None:
    walked = play_games(make_game("mini", 100, **options), SEEDS, walker_actions)
    best = oracle_games("mini", SEEDS, **options)
    for played in (walked, best):
        assert played.of("finished").min() == 1
        assert played.of("treasures_missed").max() == 0
    assert (best.of("score") >= walked.of("score")).all()
    assert (best.of("score") > walked.of("score")).mean() > 0.95
    assert best.of("steps").mean() < 0.75 * walked.of("steps").mean()


def test_with_little_time_the_oracle_still_finishes_and_gives_up_only_what_does_not_fit() -> None:
    options = {"max_step": 36, "n_treasures": 4}
    best, walked = oracle_games("mini", SEEDS, **options), walker_scores("mini", SEEDS, **options)
    assert best.of("finished").min() == 1
    assert 2.5 < best.of("treasures").mean() < 4
    assert (best.of("score") >= walked).all()
    assert (walked > 0).mean() < 0.2


def test_the_oracle_starts_anywhere_and_with_any_number_of_treasures() -> None:
    options = {"random_start": 1.0, "n_treasures": "uniform"}
    best = oracle_games("mini", SEEDS, **options)
    assert best.of("finished").min() == 1
    assert best.of("treasures_missed").max() == 0
    assert (best.of("score") >= walker_scores("mini", SEEDS, **options)).all()


def test_the_oracle_plays_the_full_size_far_better_than_the_walker() -> None:
    best, walked = oracle_scores("full", range(4)), walker_scores("full", range(4))
    assert (best > walked + 10).all()


def test_playing_the_oracles_actions_scores_what_it_says() -> None:
    for seed in range(5):
        game = make_game("mini", 1)
        game.reset(np.ones(1, bool), np.array([seed], np.uint64))
        ended = [step(game, int(action))[1] for action in oracle_actions("mini", seed)]
        assert ended == [False] * (len(ended) - 1) + [True]
        assert game.episode_figures(0)["score"] == oracle_scores("mini", [seed])[0]


def open_ground(tmp_path: Path, points: dict[int, tuple[int, int]]) -> str:
    ground = arena(points=points)
    path = tmp_path / "open.json"
    path.write_text(json.dumps(map_to_json(RealmMap(ground.maps.walkable[0], ground.maps.points[0]))))
    return str(path)


@pytest.mark.parametrize(
    ("end", "least_steps"),
    [
        ((15_000, 8000), 1 + 3),  # flash 4000, then 2000 to the disc: 3 walks
        ((8000, 1000), 1 + 3),
        ((8000, 8000 + 2400), 2),  # a flash would go past
        ((8000 + 2828 + 1200, 8000 + 2828 + 1200), 1 + 1),
    ],
)
def test_on_open_ground_the_oracle_needs_the_steps_that_geometry_says(
    tmp_path: Path, end: tuple[int, int], least_steps: int
) -> None:
    path = open_ground(tmp_path, {1: end})
    assert len(oracle_actions("mini", 0, map=path, n_treasures=0)) == least_steps


def test_on_the_way_to_a_treasure_the_oracle_goes_around_the_end(tmp_path: Path) -> None:
    treasures = dict.fromkeys(range(3, 9), (14000, 8000))
    path = open_ground(tmp_path, {1: (11_000, 8000), **treasures})
    best = oracle_games("mini", [0], map=path, n_treasures=1)
    assert best.of("treasures").tolist() == [1]
    assert best.of("finished").tolist() == [1]


def test_yardsticks_repeat() -> None:
    for scores in (random_scores, walker_scores, oracle_scores):
        np.testing.assert_array_equal(scores("mini", range(10)), scores("mini", range(10)))


def test_a_policy_is_asked_for_one_seed_per_slot() -> None:
    with pytest.raises(ValueError, match="3 seeds for a game of 2 slots"):
        play_games(make_game("mini", 2), range(3), walker_actions)
    assert RealmRules.of_size("mini") is RealmRules.MINI
