"""`train --seeds` and `sweep` as a person types them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from millrace.config import Config

from .conftest import ROOT, TINY, Cli

CARTPOLE = ("CartPole-v1", *TINY)
SLOW_GAME = """
import time
from pathlib import Path

import gymnasium as gym

class Slowed(gym.Wrapper):
    def step(self, action):
        time.sleep(0.02 if Path("slow").exists() else 0)
        return super().step(action)

def make_env():
    return Slowed(gym.make("CartPole-v1"))
"""
SWEEP = """
total_env_steps = 128
[collect]
backend = "serial"
workers = 1
envs_per_worker = 4
rollout_steps = 16
[metrics]
tensorboard = false
every_s = 0.0
[sweep.settings]
"ppo.clip" = [0.1, 0.3]
"""


def test_seeds_end_with_a_table_a_summary_and_curves(cli: Cli, tmp_path: Path) -> None:
    said = cli("train", *CARTPOLE, "--seeds", "3,7", "--parallel", "2", "--run-dir", "all")
    assert said.code == 0, said.err
    summary = json.loads((tmp_path / "all" / "summary.json").read_text())
    returns = [run["mean_return"] for run in summary["runs"]]
    assert [run["seed"] for run in summary["runs"]] == [3, 7]
    assert summary["over_seeds"]["mean"] == pytest.approx(sum(returns) / 2)
    assert summary["over_seeds"]["deviation"] == pytest.approx(abs(returns[0] - returns[1]) / 2**0.5)
    assert "2 of 2 finished" in said.out
    assert "all/seed_7" in said.out
    assert (tmp_path / "all" / "curves.png").stat().st_size > 0
    assert Config.from_toml(tmp_path / "all" / "seed_7" / "config.toml").seed == 7
    assert cli("eval", "all/seed_3", "--episodes", "2").code == 0
    # Again: nothing is trained twice, and other settings do not belong here.
    again = cli("train", *CARTPOLE, "--seeds", "3,7", "--parallel", "2", "--run-dir", "all", "--json")
    assert again.code == 0
    lines = [json.loads(line) for line in again.out.splitlines()]
    assert [run["mean_return"] for run in lines[-1]["result"]["runs"]] == returns
    assert len(lines) == 1
    assert "seed 3: finished already" in again.err
    assert cli("train", *CARTPOLE, "--seeds", "2", "--run-dir", "all", "--ppo.clip", "0.1").code == 2


def test_a_seed_that_fails_does_not_end_the_others(cli: Cli, tmp_path: Path) -> None:
    damaged = tmp_path / "all" / "seed_0" / "checkpoints" / "step_000000000064"
    damaged.mkdir(parents=True)
    (damaged / "manifest.json").write_text("{")
    said = cli("train", *CARTPOLE, "--seeds", "2", "--run-dir", "all")
    assert said.code == 4, "the exit code is that of the run that failed"
    rows = {line.split()[0]: line for line in said.out.splitlines() if "all/seed_" in line and line[:1].isdigit()}
    assert "failed" in rows["0"]
    assert "complete" in rows["1"]
    assert "1 of 2 finished" in said.out
    assert "seed 0 failed: " in said.out
    shutil.rmtree(damaged)
    assert cli("train", *CARTPOLE, "--seeds", "2", "--run-dir", "all").code == 0, "a failed one is tried again"


def started_slow_seeds(tmp_path: Path) -> subprocess.Popen[str]:
    """Two seeds one after another, the first of which has learned something and is far from its end."""
    (tmp_path / "slow_game.py").write_text(SLOW_GAME)
    (tmp_path / "slow").touch()
    process = subprocess.Popen(
        [sys.executable, "-m", "millrace", "train", "slow_game:make_env", *TINY, "--seeds", "2", "--run-dir", "all"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    rows, deadline_s = tmp_path / "all" / "seed_0" / "metrics.jsonl", time.monotonic() + 60
    while not (rows.exists() and rows.stat().st_size) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return process


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(cli: Cli, tmp_path: Path) -> None:
    process = started_slow_seeds(tmp_path)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped by SIGINT" in out
    assert "not started" in out
    assert "goes on with what is not finished" in out
    assert list((tmp_path / "all" / "seed_0" / "checkpoints").glob("step_*/manifest.json"))
    (tmp_path / "slow").unlink()
    said = cli("train", "slow_game:make_env", *TINY, "--seeds", "2", "--run-dir", "all")
    assert said.code == 0, said.out
    assert "2 of 2 finished" in said.out
    assert "resumed at" in (tmp_path / "all" / "seed_0" / "log.txt").read_text()


def test_runs_save_and_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    process = started_slow_seeds(tmp_path)
    (child,) = psutil.Process(process.pid).children()
    process.kill()
    process.communicate()
    child.wait(timeout=60)
    assert json.loads((tmp_path / "all" / "seed_0" / "status.json").read_text())["state"] == "stopped by SIGINT"


def test_a_sweep_sorts_its_trials_and_goes_on(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(SWEEP)
    said = cli("sweep", "mine.toml", "--run-dir", "all", "--parallel", "2")
    assert said.code == 0, said.err
    trials = json.loads((tmp_path / "all" / "table.json").read_text())["trials"]
    means = [trial["metric"]["mean"] for trial in trials]
    assert means == sorted(means, reverse=True)
    assert {trial["settings"]["ppo.clip"] for trial in trials} == {0.1, 0.3}
    for trial in trials:
        trained = Config.from_toml(tmp_path / trial["run_dir"] / "seed_0" / "config.toml")
        assert trained.ppo.clip == trial["settings"]["ppo.clip"]
    assert f"[ppo]\nclip = {trials[0]['settings']['ppo.clip']}" in said.out
    with open(tmp_path / "all" / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["mean_return"]) for row in rows] == means
    # Continued with a value more, only that one is trained; with another first value it is another sweep.
    (tmp_path / "mine.toml").write_text(SWEEP.replace("0.3]", "0.3, 0.2]"))
    said = cli("sweep", "mine.toml", "--run-dir", "all", "--parallel", "2", "--json")
    assert said.code == 0, said.err
    assert [json.loads(line).get("run") for line in said.out.splitlines()] == ["trial 2, seed 0", None]
    (tmp_path / "mine.toml").write_text(SWEEP.replace("0.1,", "0.15,"))
    said = cli("sweep", "mine.toml", "--run-dir", "all", "--parallel", "2")
    assert said.code == 2
    assert "trial 0 had {'ppo.clip': 0.1}" in said.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("train", "CartPole-v1", "--parallel", "2"), "goes with --seeds"),
        (("train", "CartPole-v1", "--seeds", "many"), "give how many"),
        (("train", "CartPole-v1", "--seeds", "0"), "give how many"),
        (("train", "CartPole-v1", "--seeds", "2", "--parallel", "0"), "must be 1 or more"),
        (("sweep", "nowhere.toml"), "cannot read the settings file"),
    ],
)
def test_mistakes_are_told_before_anything_starts(cli: Cli, tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    said = cli(*words)
    assert said.code == 2
    assert told in said.err
    assert not list(tmp_path.iterdir())


def test_the_example_of_a_sweep_is_valid() -> None:
    from millrace.experiments.plan import make_trials, read_plan

    base, plan = read_plan(ROOT / "examples" / "sweep-cartpole.toml")
    assert len(make_trials(base, plan)) == 6
