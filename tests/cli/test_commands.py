"""Whole commands on tiny runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import millrace
from millrace.config import Config

from .conftest import ROOT, TINY, Cli

CARTPOLE = ("CartPole-v1", *TINY)
MINI = ("millrace/RealmMini-v0", *TINY)


def test_train_then_resume_then_eval(cli: Cli, tmp_path: Path) -> None:
    said = cli("train", *CARTPOLE)
    assert said.code == 0, said.err
    assert "ended   complete" in said.out
    assert "millrace resume runs/CartPole-v1-" in said.out
    said = cli("resume", "--total-env-steps", "512")
    assert said.code == 0, said.err
    assert "resumed at" in said.out
    assert "exactly where it stopped" in said.out
    said = cli("eval", "--episodes", "3")
    assert said.code == 0, said.err
    lines = [line.split() for line in said.out.splitlines()]
    assert lines[0] == ["episode", "seed", "return", "steps"]
    assert [line[:2] for line in lines[1:4]] == [["0", "0"], ["1", "1"], ["2", "2"]]
    (row,) = (line for line in lines if line[:1] == ["return"])
    assert all(float(figure) >= 0 for figure in row[1:])


def test_eval_compares_runs_on_the_same_episodes(cli: Cli) -> None:
    for name, seed in (("one", "0"), ("two", "1")):
        assert cli("train", *CARTPOLE, "--run-dir", name, "--seed", seed).code == 0
    said = cli("eval", "one", "two", "--episodes", "6", "--quiet")
    assert said.code == 0, said.err
    assert [line.split()[0] for line in said.out.splitlines()[2:5]] == ["return", "one", "two"]
    assert "an episode, interval" in said.out
    figures = json.loads(cli("eval", "one", "two", "--episodes", "6", "--json").out)
    one, two = (figures["policies"][name] for name in ("one", "two"))
    assert [e["seed"] for e in one["episodes"]] == [e["seed"] for e in two["episodes"]] == list(range(6))
    difference = two["mean_return"] - one["mean_return"]
    assert figures["comparisons"]["two"]["difference"] == pytest.approx(difference)
    assert cli("train", *MINI, "--run-dir", "other").code == 0
    assert "name one environment with --env" in cli("eval", "one", "other").err


def test_eval_shows_episodes_step_by_step_also_from_a_recorded_state(cli: Cli) -> None:
    assert cli("train", *CARTPOLE, "--run-dir", "mine").code == 0
    said = cli("eval", "mine", "--episodes", "5", "--detail", "best:2", "--record", "games.jsonl", "--json")
    played = json.loads(said.out)
    returns = [episode["episode_return"] for episode in played["episodes"]]
    assert sorted((returns[int(index)] for index in played["detail"]), reverse=True) == sorted(returns)[:2:-1]
    for index, steps in played["detail"].items():
        assert len(steps) == steps[-1]["return"] == returns[int(index)]
        assert all(sum(step["probabilities"][0]) == pytest.approx(1.0) for step in steps)
    said = cli("eval", "mine", "--start", "games.jsonl:1:3", "--detail", "worst", "--quiet")
    assert said.code == 0, said.err
    steps = said.out.partition("most probable")[2].splitlines()[1:]
    assert steps[0].split()[0] == "3"
    assert len(steps) == returns[1] - 3
    for which in ("5", "good", "best:x", "1,-1"):
        assert "names no episodes" in cli("eval", "mine", "--episodes", "5", "--detail", which).err


def test_eval_quietly_prints_the_summary_alone(cli: Cli) -> None:
    assert cli("train", *CARTPOLE, "--run-dir", "mine").code == 0
    loud, quiet = (cli("eval", "mine", "--episodes", "20", *more).out.splitlines() for more in ((), ("--quiet",)))
    assert len(loud) == len(quiet) + 22
    assert loud[-4:] == quiet[-4:]
    assert quiet[-2].startswith("best:  return ")


def test_json_gives_rows_and_the_result(cli: Cli) -> None:
    said = cli("train", *CARTPOLE, "--json")
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert all("env_steps" in row for row in rows[:-1])
    result = rows[-1]["result"]
    assert result["env_steps"] == rows[-2]["env_steps"] >= 256
    assert "collect" in said.err
    episodes = json.loads(cli("eval", result["run_dir"], "--episodes", "3", "--json").out)["episodes"]
    assert [episode["seed"] for episode in episodes] == [0, 1, 2]


def test_quiet_prints_nothing(cli: Cli) -> None:
    said = cli("train", *CARTPOLE, "--quiet")
    assert (said.code, said.out, said.err) == (0, "", "")


def test_a_second_train_into_a_run_is_refused_and_auto_resume_continues_it(cli: Cli) -> None:
    assert cli("train", *CARTPOLE, "--run-dir", "mine").code == 0
    assert cli("train", *CARTPOLE, "--run-dir", "mine").code == 2
    said = cli("train", *CARTPOLE, "--run-dir", "mine", "--auto-resume", "--total-env-steps", "400")
    assert said.code == 0
    assert "resumed at" in said.out


def test_init_from_starts_a_new_run_from_trained_weights(cli: Cli) -> None:
    assert cli("train", *CARTPOLE, "--run-dir", "first").code == 0
    said = cli("train", *CARTPOLE, "--run-dir", "second", "--init-from", "first")
    assert said.code == 0, said.err
    assert cli("train", *CARTPOLE, "--run-dir", "third", "--init-from", "nowhere").code == 4


def test_the_printed_config_trains_and_comes_out_the_same(cli: Cli, tmp_path: Path) -> None:
    text = cli("config", *CARTPOLE, "--env.kwargs", "sutton_barto_reward=true").out
    (tmp_path / "mine.toml").write_text(text)
    assert cli("config", "mine.toml").out == text.replace("  # auto", "")
    said = cli("train", "mine.toml", "--run-dir", "mine")
    assert said.code == 0, said.err
    trained = Config.from_toml(tmp_path / "mine" / "config.toml")
    assert trained == Config.from_toml(tmp_path / "mine.toml").replace({"run_dir": "mine"})
    assert trained.env.kwargs == {"sutton_barto_reward": True}


def test_a_function_that_no_name_leads_to_is_asked_for_when_resuming(cli: Cli) -> None:
    import gymnasium

    settings = {"metrics.tensorboard": False, "metrics.console": "off"}
    sizes = {"workers": 1, "envs_per_worker": 2, "rollout_steps": 8, "total_env_steps": 16, "backend": "serial"}
    millrace.train(lambda: gymnasium.make("CartPole-v1"), run_dir="mine", settings=settings, **sizes)
    said = cli("eval", "mine")
    assert said.code == 2
    assert "pass it as env=..." in said.err
    assert cli("eval", "mine", "--env", "CartPole-v1", "--episodes", "2").code == 0


def test_config_keeps_auto_values_open_on_request(cli: Cli) -> None:
    assert "\nworkers = 0\n" in cli("config", "CartPole-v1", "--keep-auto").out
    assert "\nworkers = 0\n" not in cli("config", "CartPole-v1").out


def test_tables_on_the_command_line_add_to_those_of_the_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        '[env]\nid = "millrace/RealmMini-v0"\nkwargs = {map = "random", num_maps = 3}\n'
    )
    said = cli("config", "mine.toml", "--env.kwargs", "num_maps=5", "--env.kwargs", "random_start=0.5", "--keep-auto")
    assert 'kwargs = {"map" = "random", "num_maps" = 5, "random_start" = 0.5}' in said.out


def test_play_writes_a_gif_into_the_run(cli: Cli, tmp_path: Path) -> None:
    assert cli("train", *MINI, "--run-dir", "mine", "--env.kwargs", "max_step=10").code == 0
    said = cli("play", "mine")
    assert said.code == 0, said.err
    assert (tmp_path / "mine" / "media" / "game.gif").read_bytes()[:3] == b"GIF"
    assert cli("play", "mine", "--out", "game.avi").code == 2
    assert cli("play", "mine", "--out", "strip.png", "--frames", "3", "--plain").code == 0
    assert (tmp_path / "strip.png").read_bytes()[1:4] == b"PNG"


def test_check_env_reports_spaces_mask_repeatability_and_choices(cli: Cli) -> None:
    said = cli("check-env", "millrace/RealmMini-v0")
    assert said.code == 0, said.err
    for text in (
        "map: uint8[4, 15, 15]",
        "yes, 16 bits",
        "same observations and rewards",
        "exact:",
        "network",
        "score",
    ):
        assert text in said.out


DICE = """
import random
import gymnasium as gym

class Dice(gym.ObservationWrapper):
    def observation(self, observation):
        return observation + random.random()

def make():
    return Dice(gym.make("CartPole-v1"))
"""


def test_check_env_notices_what_is_not_repeatable(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "dice_game.py").write_text(DICE)
    said = cli("check-env", "dice_game:make", "--json")
    assert said.code == 0, said.err
    assert "obs differs" in json.loads(said.out)["deterministic"]


def test_bench_repeat_tells_runs_that_repeat_from_those_that_do_not(cli: Cli, tmp_path: Path) -> None:
    said = cli("bench", "repeat", "CartPole-v1", "--", "--rollout-steps", "8")
    assert said.code == 0, said.err
    assert "the run repeats; its workers differ" in said.out
    assert [line.split()[-1] for line in said.out.splitlines()[1:5]] == ["same", "same", "same", "other"]
    (tmp_path / "dice_game.py").write_text(DICE)
    said = cli("bench", "repeat", "dice_game:make", "--json", "--", "--rollout-steps", "8")
    assert said.code == 1
    assert json.loads(said.out)["repeats"] is False


def test_envs_lists_and_filters(cli: Cli) -> None:
    said = cli("envs", "--json")
    rows = json.loads(said.out)
    names = [row["id"] for row in rows["environments"]]
    assert names[:2] == ["millrace/RealmMini-v0", "millrace/Realm-v0"]
    assert "CartPole-v1" in names
    assert {"name": "cartpole-quick", "id": "CartPole-v1"} in rows["recipes"]
    assert "Acrobot-v1" not in cli("envs", "cart").out


def test_bench_scaling_measures_each_number_of_workers(cli: Cli) -> None:
    said = cli(
        "bench", "scaling", "CartPole-v1", "--workers", "1", "--seconds", "4", "--json", "--", "--rollout-steps", "8"
    )
    assert said.code == 0, said.err
    point = json.loads(said.out)
    assert point["workers"] == 1
    assert point["steps_per_second"] > 100
    assert point["memory_mb"] > 50 or sys.platform != "linux"


def test_the_demo_compares_with_the_yardsticks(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yardsticks = pytest.importorskip("millrace.cli.yardsticks")
    monkeypatch.setattr(yardsticks, "GAMES", 2)
    monkeypatch.setattr(yardsticks, "UNSEEN_MAPS", {"map": "random", "num_maps": 2, "map_seed": 1})
    said = cli("demo", *TINY, "--run-dir", "mine", "--ppo.minibatch_size", "0")
    assert said.code == 0, said.err
    for text in ("random", "walker", "trained", "oracle", "training map", "unseen maps", "next:"):
        assert text in said.out
    assert (tmp_path / "mine" / "media" / "game.gif").exists()


def test_ctrl_c_saves_and_says_so_with_exit_code_130(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    words = ["train", *CARTPOLE, "--total-env-steps", "1000000000", "--run-dir", "mine", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "millrace", *words],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert json.loads(out.splitlines()[-1])["result"]["reason"] == "stopped by SIGINT"
    assert list((tmp_path / "mine" / "checkpoints").glob("step_*/manifest.json"))
