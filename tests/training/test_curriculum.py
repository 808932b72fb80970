"""Environment options that follow training progress."""

from __future__ import annotations

import json

import pytest

import millrace
from helpers import log_of, quick_train, rows_of
from millrace.curriculum import Curriculum
from millrace.errors import ConfigError, EnvError
from toys import Faulty, Paced


def test_a_list_takes_equal_shares_of_progress():
    curriculum = Curriculum({"n": ["norm", 13, "uniform"]}, 300)
    assert [curriculum.at(steps)["n"] for steps in (0, 99, 100, 199, 200, 299, 300, 900)] == [
        *["norm"] * 2, *[13] * 2, *["uniform"] * 4
    ]  # fmt: skip


def test_values_begin_where_they_are_said_to():
    curriculum = Curriculum({"p": {"values": [0.3, 0.0], "at": [0.0, 0.7]}}, 1000)
    assert [curriculum.at(steps)["p"] for steps in (0, 699, 700, 1000)] == [0.3, 0.3, 0.0, 0.0]


def test_a_ramp_moves_in_hundredths_and_keeps_whole_numbers_whole():
    curriculum = Curriculum({"p": {"from": 1.0, "to": 0.0, "until": 0.5}, "n": {"from": 2, "to": 5}}, 1000)
    assert [curriculum.at(steps)["p"] for steps in (0, 250, 254, 500, 1000)] == [1.0, 0.5, 0.5, 0.0, 0.0]
    assert [curriculum.at(steps)["n"] for steps in (0, 500, 1000)] == [2, 4, 5]
    # 51 values of p; of n's three changes only the one at five sixths comes when p rests.
    assert len(curriculum.stages()) == 52


def test_tables_in_tables_are_names_with_dots():
    assert Curriculum({"reward": {"step": [0.0, -0.2]}}, 10).at(9) == {"reward.step": -0.2}


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (3, "must be a list"),
        ([], "has no values"),
        ({"values": [1, 2], "att": [0, 1]}, "did you mean at"),
        ({"values": [1, 2], "at": [0.0]}, "as many values"),
        ({"values": [1, 2], "at": [0.2, 0.4]}, "rise from 0.0"),
        ({"values": [1, 2], "at": [0.0, 1.0]}, "never begin"),
        ({"from": 0, "until": 0.5}, "needs 'to'"),
        ({"from": 0, "to": 1, "until": 2}, "must lie in"),
    ],
)
def test_a_schedule_of_another_form_is_refused_with_a_sentence(schedule, said):
    with pytest.raises(ConfigError, match=said):
        Curriculum({"length": schedule}, 100)


@pytest.mark.parametrize("backend", ["serial", "processes"])
def test_options_change_on_live_workers_with_the_next_episodes(backend, run_dir, nothing_left_behind):
    settings = {"curriculum": {"length": [2, 5]}, "checkpoint.every_env_steps": 1}
    quick_train(Paced, run_dir, settings, backend=backend, total_env_steps=1200)
    rows = rows_of(run_dir)
    assert {row["option/length"] for row in rows} == {2, 5}
    first = next(row for row in rows if row["env_steps"] >= 400)
    assert first["episode_length_steps"] == 2
    assert rows[-1]["episode_length_steps"] == 5
    assert rows[-1]["restarts"] == 0
    assert "length=5" in log_of(run_dir)


def test_a_resumed_run_is_where_its_progress_says(run_dir):
    quick_train(Paced, run_dir, {"curriculum": {"length": [2, 5]}, "stop.updates": 30}, total_env_steps=1000)
    assert rows_of(run_dir)[-1]["option/length"] == 5
    millrace.resume(run_dir, env=Paced, quiet=True, settings={"stop.updates": 31})
    assert rows_of(run_dir)[-1]["option/length"] == 5


def test_a_value_that_the_environment_refuses_is_told_before_training_begins(run_dir):
    with pytest.raises(EnvError, match="length=0 must be"):
        quick_train(Paced, run_dir, {"curriculum": {"length": [3, 0]}}, backend="serial")


@pytest.mark.parametrize("vectorization", ["native", "single"])
def test_the_built_in_games_take_options_either_way(vectorization, run_dir):
    table = {"n_treasures": [1, 4], "max_step": 20, "reward.step": [0.0, -0.2]}
    settings = {"curriculum": {**table, "max_step": [20]}, "env.vectorization": vectorization}
    quick_train("millrace/RealmMini-v0", run_dir, settings, backend="serial", total_env_steps=8000)
    rows = rows_of(run_dir)
    before = [row for row in rows if 2000 < row["env_steps"] < 4000]
    assert all(row["game/treasures"] + row["game/treasures_missed"] == 1 for row in before)
    assert rows[-1]["game/treasures"] + rows[-1]["game/treasures_missed"] == 4
    assert rows[-1]["option/reward.step"] == -0.2


def test_vector_environments_cannot_take_options(run_dir):
    with pytest.raises(EnvError, match=r"env\.vectorization=single"):
        quick_train("CartPole-v1", run_dir, {"curriculum": {"low": [0.1]}}, backend="serial")


def test_a_crash_file_tells_the_options_that_each_episode_began_under(run_dir, tmp_path):
    (tmp_path / "1.token").touch()

    class Breaks(Paced, Faulty):
        def __init__(self):
            Faulty.__init__(self, "raises", str(tmp_path), at_tick=4)

    quick_train(Breaks, run_dir, {"curriculum": {"length": [3, 6]}}, backend="serial", total_env_steps=800)
    (crash,) = (run_dir / "crashes").glob("*.json")
    slots = json.loads(crash.read_text())["slots"]
    # Only an episode of the longer kind reaches the fourth step; the other slot may still be in a short one.
    assert {"length": 6} in [slot["options"] for slot in slots]
    assert all(len(slot["actions"]) <= slot["options"]["length"] for slot in slots)
