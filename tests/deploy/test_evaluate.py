"""Evaluation: the same episodes however many processes play them, from any state, and lost processes are explained."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

import millrace
from helpers import quick_train
from millrace.deploy import evaluate as evaluation
from millrace.deploy import processes
from millrace.deploy.episodes import Lanes
from millrace.deploy.recorded_games import RecordedGame, read_games, write_games
from millrace.errors import ConfigError, EnvError, WorkerError
from toys import Clock, Paced, PileRounds, Recall

RECURRENT = {"net.memory": "lstm", "net.memory_size": 8}


@pytest.mark.parametrize("episodes", [1, 7, 16, 17, 64, 100, 513, 3000])
@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_every_episode_is_played_once_wherever(episodes: int, parts: int):
    lanes = Lanes.of(episodes)
    shares = lanes.split(min(parts, len(lanes.tiles)))
    indices = [index for share in shares for lane in share.numbers for index in range(lane, episodes, share.num_lanes)]
    assert sorted(indices) == list(range(episodes))
    assert [share.num_episodes for share in shares] == [
        sum(len(range(lane, episodes, share.num_lanes)) for lane in share.numbers) for share in shares
    ]
    assert min(share.num_episodes for share in shares) > 0


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(
    ("env", "settings"),
    [("CartPole-v1", {}), (lambda: Recall(4), RECURRENT), ("millrace/RealmMini-v0", {"env.kwargs": {"max_step": 30}})],
    ids=["CartPole", "recurrent", "Realm"],
)
def test_the_number_of_processes_changes_nothing(env, settings, deterministic, run_dir: Path, nothing_left_behind):
    quick_train(env, run_dir, {"stop.updates": 1, **settings}, backend="serial")
    factory = None if isinstance(env, str) else env
    told: list[int] = []
    alone, shared = (
        millrace.evaluate(
            run_dir,
            factory,
            episodes=40,
            seed=5,
            deterministic=deterministic,
            keep_games=True,
            parallel=parallel,
            on_episode=lambda index, record: told.append(index),
        )
        for parallel in (1, 3)
    )
    assert shared == alone
    assert [episode.seed for episode in alone.episodes] == list(range(5, 45))
    assert sorted(told) == sorted([*range(40), *range(40)])


def test_others_take_over_what_takes_long_and_nothing_is_told_twice(run_dir: Path, monkeypatch, nothing_left_behind):
    quick_train("CartPole-v1", run_dir, {"stop.updates": 1}, backend="serial")
    alone = millrace.evaluate(run_dir, episodes=40, parallel=1)
    monkeypatch.setattr(evaluation, "PATIENCE_S", 0.0)
    monkeypatch.setattr(evaluation, "WORTH_S", 0.0)
    monkeypatch.setattr(evaluation.system, "available_cores", lambda: 2)
    started = []
    monkeypatch.setattr(processes._Player, "start", _noting(processes._Player.start, started))
    told: list[int] = []
    shared = millrace.evaluate(run_dir, episodes=40, on_episode=lambda index, record: told.append(index))
    assert shared == alone
    assert sorted(told) == list(range(40))
    assert len(started) == 2


def _noting(function, calls):
    def call(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return call


def test_a_short_evaluation_starts_no_process(run_dir: Path, monkeypatch):
    quick_train("CartPole-v1", run_dir, {"stop.updates": 1}, backend="serial")
    monkeypatch.setattr(evaluation, "PATIENCE_S", 1e9)
    monkeypatch.setattr(processes, "Parcel", None)  # which anything else would need
    assert len(millrace.evaluate(run_dir, episodes=40).episodes) == 40


class Breaking(Clock):
    """Fails in one episode, in a way of its own."""

    how = ""

    def reset(self, *, seed=None, options=None):
        self.is_bad = seed == 33
        return super().reset(seed=seed)

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if self.is_bad and os.environ.get("MILLRACE_TEST_BREAKS") == "1":
            if self.how == "dies":
                os._exit(9)
            if self.how == "raises":
                raise ZeroDivisionError("a trap")
            if self.how == "refuses":
                reward = float("nan")
            if self.how == "hangs":
                time.sleep(60)
        return observation, reward, terminated, truncated, info


def breaking(how: str):
    def make():
        env = Breaking()
        env.how = how
        return env

    return make


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("dies", WorkerError, r"evaluation process 0 ended with exit code 9; --parallel 1"),
        ("raises", WorkerError, r"(?s)evaluation process 0 failed:.*ZeroDivisionError: a trap"),
        ("refuses", EnvError, r"slot 17, episode seed 33: the reward is nan"),
        ("hangs", WorkerError, r"evaluation process 0 gave no sign of life within 1 s"),
    ],
)
def test_a_lost_process_is_an_explained_error(how, error, words, run_dir: Path, monkeypatch, nothing_left_behind):
    quick_train(Breaking, run_dir, {"stop.updates": 1}, backend="serial")
    monkeypatch.setenv("MILLRACE_TEST_BREAKS", "1")
    monkeypatch.setattr(processes, "STEP_TIMEOUT_S", 1.0)
    with pytest.raises(error, match=words):
        millrace.evaluate(run_dir, breaking(how), episodes=64, parallel=2)


def test_what_cannot_be_shared_is_played_here_unless_that_was_asked_for(run_dir: Path, monkeypatch):
    quick_train(PileRounds, run_dir, {"stop.updates": 1}, backend="serial")
    monkeypatch.setattr(evaluation, "PATIENCE_S", 0.0)
    monkeypatch.setattr(evaluation, "WORTH_S", 0.0)
    assert len(millrace.evaluate(run_dir, PileRounds, episodes=40).episodes) == 40
    with pytest.raises(ConfigError, match="draws its own seeds, so that its episodes cannot be shared"):
        millrace.evaluate(run_dir, PileRounds, episodes=40, parallel=2)
    with pytest.raises(ConfigError, match="parallel=0 must be 1 or more"):
        millrace.evaluate(run_dir, PileRounds, episodes=40, parallel=0)


def test_mean_spread_interval_best_and_worst(run_dir: Path):
    quick_train(Clock, run_dir, {"stop.updates": 1}, backend="serial")
    played = millrace.evaluate(run_dir, Clock, episodes=30, seed=100)
    returns = played.returns
    assert played.mean_return == pytest.approx(np.mean(returns))
    assert played.deviation == pytest.approx(np.std(returns, ddof=1))
    low, high = played.confidence_interval
    assert low < played.mean_return < high
    assert played.episodes[played.best].episode_return == max(returns)
    assert played.episodes[played.worst].episode_return == min(returns)


# From a recorded state --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, RECURRENT, {"env.frame_stack": 3}], ids=["plain", "recurrent", "stacked"])
def test_a_policy_that_takes_over_its_own_game_plays_it_to_the_same_end(settings, run_dir: Path, tmp_path: Path):
    """With memory too: it has seen what led there."""
    quick_train("CartPole-v1", run_dir, {"stop.updates": 3, **settings}, backend="serial")
    path = tmp_path / "games.jsonl"
    whole = millrace.evaluate(run_dir, episodes=4, seed=50, record=path)
    for index, step in ((0, 0), (2, 3), (3, 6)):
        begun = millrace.evaluate(run_dir, episodes=1, start=f"{path}:{index}:{step}", keep_games=True)
        record = begun.episodes[0]
        assert record.episode_return == whole.episodes[index].episode_return - step
        assert record.length_steps == whole.episodes[index].length_steps - step
        assert record.seed == 50 + index
        assert begun.games[0] == read_games(path)[index]


def test_draws_from_one_state_go_different_ways(run_dir: Path, tmp_path: Path):
    quick_train("CartPole-v1", run_dir, {"stop.updates": 3}, backend="serial")
    path = tmp_path / "games.jsonl"
    millrace.evaluate(run_dir, episodes=1, record=path)
    begun = [
        millrace.evaluate(
            run_dir, episodes=40, start=f"{path}:0:4", deterministic=False, keep_games=True, parallel=parallel
        )
        for parallel in (1, 2)
    ]
    assert begun[0] == begun[1]
    assert len({tuple(map(tuple, game.actions)) for game in begun[0].games}) > 10
    assert {tuple(map(tuple, game.actions[:4])) for game in begun[0].games} == {
        tuple(map(tuple, read_games(path)[0].actions[:4]))
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("games.jsonl", "write GAMES.jsonl:EPISODE:STEP"),
        ("games.jsonl:0:-1", "write GAMES.jsonl:EPISODE:STEP"),
        ("games.jsonl:2:0", "holds 1 games; the last is 0"),
        ("games.jsonl:0:40", "is over after 40 steps; name an earlier one"),
        ("missing.jsonl:0:0", "cannot read the recorded games missing.jsonl"),
    ],
)
def test_a_state_that_is_not_there_is_refused(name, words, run_dir: Path, tmp_path: Path, monkeypatch):
    quick_train("CartPole-v1", run_dir, {"stop.updates": 1}, backend="serial")
    monkeypatch.chdir(tmp_path)
    write_games("games.jsonl", [RecordedGame(1, [[1]] * 40)])
    with pytest.raises(ConfigError, match=words):
        millrace.evaluate(run_dir, episodes=1, start=name)


def test_a_game_of_another_environment_leads_nowhere(run_dir: Path, tmp_path: Path):
    quick_train("CartPole-v1", run_dir, {"stop.updates": 1}, backend="serial")
    write_games(tmp_path / "games.jsonl", [RecordedGame(1, [[1]] * 400)])
    with pytest.raises(EnvError, match=r"the game is over after \d+ steps here, and was not where it was recorded"):
        millrace.evaluate(run_dir, episodes=1, start=f"{tmp_path / 'games.jsonl'}:0:300")


def test_an_environment_with_seeds_of_its_own_has_no_state_to_begin_from(run_dir: Path, tmp_path: Path):
    quick_train(PileRounds, run_dir, {"stop.updates": 1}, backend="serial")
    write_games(tmp_path / "games.jsonl", [RecordedGame(1, [[1]] * 400)])
    with pytest.raises(EnvError, match="draws its own seeds"):
        millrace.evaluate(run_dir, PileRounds, episodes=1, start=f"{tmp_path / 'games.jsonl'}:0:1")


def test_options_of_the_recorded_game_hold_from_its_start_on(run_dir: Path, tmp_path: Path):
    quick_train(Paced, run_dir, {"stop.updates": 1}, backend="serial")
    write_games(tmp_path / "games.jsonl", [RecordedGame(1, [[1]] * 9, {"length": 9})])
    begun = millrace.evaluate(run_dir, Paced, episodes=2, start=f"{tmp_path / 'games.jsonl'}:0:3", keep_games=True)
    assert [episode.length_steps for episode in begun.episodes] == [6, 6]
    assert begun.games[0].options == {"length": 9}
