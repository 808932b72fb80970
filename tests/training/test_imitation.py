"""A warm start: whom a policy can imitate, what it learns from them, and what it counts."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest

import millrace
from helpers import QUICK, differences, learned, log_of, opened, quick_train, rows_of
from millrace.collect.collector import Collector
from millrace.config import Config, EnvConfig
from millrace.deploy.episodes import Task
from millrace.deploy.recorded_games import RecordedGame, read_games, write_games
from millrace.envs.make import EnvMaker
from millrace.errors import ConfigError, EnvError
from millrace.imitation import make_players
from millrace.players import make_player
from millrace.types import RolloutLayout
from toys import Clock, Everything, Masked, PileRounds, Recall, always_two, first_allowed, lean

SIZES = {"collect.workers": 1, "collect.envs_per_worker": 8, "collect.rollout_steps": 32}


class Silent:
    """An actor whose opinion nobody asks."""

    state_size = 0

    def __init__(self, spec) -> None:
        self.num_params = spec.action.num_params

    def load(self, weights):
        pass

    def forward(self, observation, state=None):
        rows = len(next(iter(observation.values())))
        return np.zeros((rows, self.num_params), np.float32), np.zeros(rows, np.float32)


def rollouts(env, player, count: int, steps: int = 16):
    """Rollouts acted by a player, and the episodes that it finished."""
    layout = RolloutLayout(env.spec, steps, env.num_slots, env.same_step_reset)
    collector = Collector(env, Silent(env.spec), layout, np.random.default_rng(0), player)
    found, episodes = [], []
    for _ in range(count):
        found.append(layout.allocate())
        episodes += collector.collect(found[-1], 0, np.zeros(1, np.int64)).episodes
    env.close()
    return found, episodes


def imitated(env, run_dir, player: str, env_steps: int, **settings):
    """What a fresh policy makes of a player, without a step of PPO."""
    wanted = {"imitate.player": player, "imitate.env_steps": env_steps, "net.hidden": [32], **SIZES, **settings}
    with opened(env, run_dir, **wanted) as run:
        run.checkpoint()
    return log_of(run_dir)


def agreement_in(log: str) -> float:
    return float(log.split("agrees with ")[-1].split("%")[0]) / 100


def test_a_linear_player_is_imitated_within_a_second(run_dir: Path):
    log = imitated("CartPole-v1", run_dir, "toys:lean", 12_000, **{"imitate.learning_rate": 3e-3})
    assert agreement_in(log) > 0.95
    assert "imitated toys:lean for 12,0" in log
    # The value has begun to learn too, and the clone is about as good as the player.
    assert float(millrace.load_policy(run_dir).value(np.zeros(4, np.float32))[0]) > 5
    choose = lambda spec, lanes: lambda obs, mask, begins: lean(obs, mask)[:, None]  # noqa: E731
    player = Task(choose, EnvMaker(EnvConfig("CartPole-v1")), 20, 0).play_all()
    score = np.mean([played.record.episode_return for played in player])
    assert millrace.evaluate(run_dir, episodes=20).mean_return > 0.8 * score > 100


@pytest.mark.parametrize(("memory", "is_enough"), [("gru", True), ("none", False)])
def test_a_player_that_remembers_is_imitated_by_a_policy_that_remembers(memory, is_enough, run_dir: Path):
    settings = {"net.memory": memory, "net.memory_size": 16, "imitate.learning_rate": 0.01}
    log = imitated(functools.partial(Recall, 3), run_dir, "toys:remembering", 6_000, **settings)
    assert (agreement_in(log) > 0.97) == is_enough


def test_continuous_actions_are_imitated_by_their_density(run_dir: Path):
    log = imitated("Pendulum-v1", run_dir, "toys:swing", 8_000, **{"imitate.learning_rate": 3e-3})
    assert "agrees" not in log
    assert float(log.split("log-probability ")[-1]) > -0.5  # a standard normal's is -0.92 at its very middle
    policy = millrace.load_policy(run_dir)
    actions = [policy.act(np.array([1.0, 0.0, speed], np.float32))[0] for speed in (-1.0, 1.0)]
    np.testing.assert_allclose(actions, [-1.0, 1.0], atol=0.3)


@pytest.mark.parametrize("where", ["observation", "info"])
def test_a_masked_player_is_imitated_under_its_mask(where, run_dir: Path):
    """Its choice follows from the mask alone, which the networks do not see: what they learn is the order."""
    env = functools.partial(Masked, where)
    assert agreement_in(imitated(env, run_dir, "toys:first_allowed", 8_000, **{"imitate.learning_rate": 0.01})) > 0.95


def test_every_kind_of_space_and_seat_can_be_imitated(run_dir: Path):
    for number, env in enumerate((Everything, PileRounds)):
        settings = {"ppo.normalize_observation": True, "ppo.precision": "bf16"}
        assert "imitated random for" in imitated(env, run_dir / str(number), "random", 600, **settings)


def test_gradients_that_are_not_finite_are_skipped_counted_and_told(run_dir: Path, monkeypatch):
    monkeypatch.setattr("millrace.learner.cloning.losses.value_loss", lambda value, *_, **__: value.sum() * np.nan)
    imitated(Clock, run_dir, "random", 600)
    assert re.search(r"; [1-9]\d* steps skipped, which were not finite", log_of(run_dir))


def test_demonstrations_count_apart_and_leave_statistics_and_a_fresh_optimiser(run_dir: Path):
    settings = {"ppo.normalize_observation": True, "ppo.normalize_reward": True, "metrics.every_s": 0.0}
    wanted = {"imitate.player": "toys:lean", "imitate.env_steps": 1_000, **SIZES, **settings}
    with opened("CartPole-v1", run_dir, **wanted) as run:
        state = run.learner.save_state()
        assert (run.env_steps, run.episodes, run.learner.updates) == (0, 0, 0)
        assert run.imitation_steps >= 1_000
        assert state["adam"]["steps"] == 0
        assert state["reward_scaler"]["count"] == run.imitation_steps
        assert state["reward_scaler"]["running"] == {}
        ((_, normalizer),) = run.learner.policy.normalizers()
        assert float(normalizer.row_count) == run.imitation_steps


def test_a_resumed_run_does_not_imitate_again_and_goes_on_bit_for_bit(tmp_path: Path):
    settings = {"imitate.env_steps": 200, "ppo.normalize_reward": True}
    short = {"backend": "serial", "imitate": "toys:always_two"}
    quick_train(Clock, tmp_path / "whole", {"stop.updates": 4, **settings}, **short)
    quick_train(Clock, tmp_path / "parts", {"stop.updates": 2, **settings}, **short)
    millrace.resume(tmp_path / "parts", env=Clock, settings={"stop.updates": 4}, quiet=True)
    assert not differences(learned(tmp_path / "whole"), learned(tmp_path / "parts"))
    assert log_of(tmp_path / "parts").count("imitated toys:always_two for") == 1
    assert rows_of(tmp_path / "parts")[-1]["imitation_steps"] >= 200
    with pytest.raises(ConfigError, match="are two starts; give one"):
        quick_train(Clock, tmp_path / "third", {}, init_from=tmp_path / "whole", **short)


def test_imitating_changes_none_of_the_run_s_own_episodes(tmp_path: Path):
    seeds = []
    for name in ("", "random"):
        settings = {"imitate.player": name, "imitate.env_steps": 100}
        with opened(Clock, tmp_path / (name or "none"), **settings) as run:
            seeds.append([episode.seed for _ in range(3) for episode in run.source.next_batch().episodes][:20])
            run.learner.updates += 1
    assert seeds[0] == seeds[1]


# Recorded games -------------------------------------------------------------------------------------------------


def recorded(path: Path, maker: EnvMaker, function, games: int = 5):
    """A file of games of a player, and what it scored."""
    choose = lambda spec, lanes: lambda obs, mask, begins: np.asarray(function(obs, mask))[:, None]  # noqa: E731
    played = Task(choose, maker, games, 3, keeps_games=True).play_all()
    write_games(path, [one.game for one in played])
    return [one.record for one in played]


@pytest.mark.parametrize(
    ("maker", "function"),
    [
        (EnvMaker(EnvConfig("CartPole-v1", max_episode_steps=60)), lean),
        (EnvMaker(EnvConfig(), functools.partial(Clock, 6)), always_two),
        (EnvMaker(EnvConfig(), functools.partial(Masked, "info")), first_allowed),
    ],
    ids=["CartPole", "Clock", "Masked"],
)
def test_recorded_games_give_the_rollouts_of_the_player_that_was_recorded(maker, function, tmp_path: Path):
    path = tmp_path / "games.jsonl"
    episodes = recorded(path, maker, function)
    games = read_games(path)
    assert [game.seed for game in games] == [3, 4, 5, 6, 7]
    assert [len(game.actions) for game in games] == [episode.length_steps for episode in episodes]

    env, player, check = make_players(str(path), maker, 2, 0, {})
    again, records = rollouts(env, player, 20)
    live = maker.make_seeded(2, lambda slot, episode: games[(slot + 2 * episode) % 5].seed)
    wanted, _ = rollouts(live, lambda env, row: np.asarray(function(row.observation, row.action_mask))[:, None], 20)
    assert len(records) >= 10
    for record in records:
        check(record)
        assert record.episode_return == episodes[record.seed - 3].episode_return
    for first, second in zip(again, wanted, strict=True):
        (first_fields, second_fields) = dict(first.fields()), dict(second.fields())
        # What is said where the step resets does not count.
        first_fields["action"], second_fields["action"] = first.action[first.valid], second.action[second.valid]
        assert not differences(first_fields, second_fields)


def test_a_policy_s_evaluation_is_recorded_and_imitated(tmp_path: Path):
    quick_train("CartPole-v1", tmp_path / "run", {"stop.updates": 1}, backend="serial")
    path = tmp_path / "games.jsonl"
    played = millrace.evaluate(tmp_path / "run", episodes=70, seed=5, record=path)
    games = read_games(path)
    assert [game.seed for game in games] == list(range(5, 75))
    assert [game.episode_return for game in games] == played.returns.tolist()
    log = imitated("CartPole-v1", tmp_path / "clone", str(path), 3_000, **{"imitate.learning_rate": 0.01})
    assert agreement_in(log) > 0.9


def written(path: Path, games: list[RecordedGame]) -> str:
    path.write_text("".join(game.to_line() for game in games))
    return str(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": [[2]] * 99}, r"seed 7 leads elsewhere here: it is over after \d of its 99 steps"),
        ({"actions": [[2]]}, "seed 7 leads elsewhere here: it is not over after 1 of its 1 steps"),
        ({"episode_return": 1e6}, r"its return is .* and was 1e\+06, after all of its"),
        ({"actions": [[3]] * 9}, r"chose \[3\] in slot 0, episode seed 7: column 0 is not within 0..2, or masked"),
    ],
)
def test_a_recording_that_leads_elsewhere_is_refused(change, message, tmp_path: Path):
    env = Clock(6)
    env.reset(seed=7)
    good = {"seed": 7, "actions": [[2]] * env.length}
    maker = functools.partial(Clock, 6)
    imitated(maker, tmp_path / "good", written(tmp_path / "good.jsonl", [RecordedGame(**good)]), 100)
    with pytest.raises(EnvError, match=message):
        imitated(maker, tmp_path / "bad", written(tmp_path / "bad.jsonl", [RecordedGame(**{**good, **change})]), 100)


def test_a_recording_against_the_mask_is_refused(tmp_path: Path):
    env = Masked("info")
    env.reset(seed=7)
    forbidden = int(np.flatnonzero(env.mask == 0)[0])
    path = written(tmp_path / "games.jsonl", [RecordedGame(7, [[forbidden]] * env.length)])
    with pytest.raises(EnvError, match=rf"chose \[{forbidden}\] in slot 0, episode seed 7"):
        imitated(functools.partial(Masked, "info"), tmp_path / "run", path, 100)


def test_games_with_options_are_played_under_them(tmp_path: Path):
    from toys import Paced

    games = [RecordedGame(seed, [[1]] * 4, {"length": 4}) for seed in range(3)]
    path = written(tmp_path / "games.jsonl", games)
    assert "imitated" in imitated(Paced, tmp_path / "run", path, 200)
    path = written(tmp_path / "games.jsonl", [*games, RecordedGame(9, [[1]] * 2, {"length": 2})])
    with pytest.raises(ConfigError, match="its games have different options"):
        imitated(Paced, tmp_path / "other", path, 200)


@pytest.mark.parametrize(
    "text", ["", "no json\n", '{"seed": 1}\n', '{"seed": 1, "actions": []}\n', '{"seed": 1, "actions": [3]}\n']
)
def test_a_file_that_holds_no_games_is_refused_with_its_line(text, tmp_path: Path):
    path = tmp_path / "games.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match="holds no games" if not text else "line 1 is not a game"):
        read_games(path)
    with pytest.raises(ConfigError, match="cannot read the recorded games"):
        read_games(tmp_path / "missing.jsonl")


def test_games_without_seeds_cannot_be_recorded_or_played(tmp_path: Path):
    choose = lambda spec, lanes: lambda obs, mask, begins: np.ones((len(obs["obs"]), 1), np.int64)  # noqa: E731
    played = Task(choose, EnvMaker(EnvConfig(), PileRounds), 4, 0, keeps_games=True).play_all()
    with pytest.raises(ConfigError, match="draws its own seeds"):
        write_games(tmp_path / "games.jsonl", [one.game for one in played])
    with pytest.raises(EnvError, match="draws its own seeds"):
        imitated(PileRounds, tmp_path / "run", written(tmp_path / "g.jsonl", [RecordedGame(1, [[1]])]), 100)


# Players --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("player", "error", "message"),
    [
        ("toys:always_too", ConfigError, "imitate.player: toys has no 'always_too'; did you mean always_two"),
        ("stranger", ConfigError, "imitate.player='stranger' is nobody; use walker, oracle, random"),
        ("walker", ConfigError, "imitate.player=walker plays Realm alone"),
        ("toys:always_two", EnvError, r"chose \[2\] in slot 0.*not within 0..1"),
        ("toys:too_many", EnvError, r"gave actions \[8, 5\]; they must be \[8, 1\]"),
    ],
)
def test_a_player_that_cannot_play_is_refused(player, error, message, run_dir: Path):
    with pytest.raises(error, match=message):
        imitated("CartPole-v1", run_dir, player, 100)


@pytest.mark.parametrize("name", ["walker", "oracle"])
def test_realm_s_players_play_through_episodes_and_their_ends(name):
    from millrace.games.realm.oracle import random_scores

    maker = EnvMaker(EnvConfig("millrace/RealmMini-v0", kwargs={"map": "random", "num_maps": 3}))
    env = maker.make(4, 0)
    _, episodes = rollouts(env, make_player(name, env, 0), count=30)
    assert len(episodes) > 8
    assert {episode.figures["finished"] for episode in episodes} == {1.0}
    assert np.mean([episode.figures["score"] for episode in episodes]) > 300 > random_scores("mini", range(20)).mean()


def test_the_walker_s_clone_is_nearly_as_good_as_the_walker(run_dir: Path):
    """The walker scores some 518 of the oracle's 523, and playing at random 0."""
    config = Config.named("realm-mini").replace({**QUICK, "net.hidden": [64, 64], "run_dir": str(run_dir)})
    settings = {"imitate.env_steps": 60_000, "stop.updates": 1, "ppo.learning_rate": 1e-9}
    millrace.train(config, settings=settings, backend="serial", imitate="walker", quiet=True)
    assert millrace.evaluate(run_dir, episodes=50).figure("score").mean() > 400


def test_the_command_line_records_and_imitates(tmp_path: Path, monkeypatch, capfd):
    from millrace.cli.main import main

    monkeypatch.chdir(tmp_path)
    quick_train("CartPole-v1", tmp_path / "run", {"stop.updates": 1}, backend="serial")
    assert main(["eval", "run", "--episodes", "3", "--record", "games.jsonl"]) == 0
    assert len((tmp_path / "games.jsonl").read_text().splitlines()) == 3
    assert json.loads((tmp_path / "games.jsonl").read_text().splitlines()[0]).keys() == {
        "seed",
        "options",
        "actions",
        "return",
    }
    words = ["train", "CartPole-v1", "--imitate", "games.jsonl", "--imitate.env_steps", "300", "--stop.updates", "1"]
    assert main([*words, "--run-dir", "clone", "--backend", "serial"]) == 0
    assert "imitated games.jsonl for" in capfd.readouterr().out
