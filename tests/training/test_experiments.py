"""Many runs as one experiment: figures by hand, plans, and what a continued directory accepts."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import millrace
from millrace import system
from millrace.config import Config
from millrace.errors import ConfigError, RunLockedError
from millrace.experiments.curves import Curve, band
from millrace.experiments.directory import ExperimentDirectory
from millrace.experiments.jobs import seeds_from, share_cores
from millrace.experiments.picture import Line, draw_curves
from millrace.experiments.plan import SweepConfig, make_trials, read_plan
from millrace.experiments.records import RunRecord, read_record, spread
from millrace.experiments.sweep import as_toml
from millrace.metrics.rows import last_row, read_rows

TINY = {
    "collect.backend": "serial",
    "collect.workers": 1,
    "collect.envs_per_worker": 4,
    "collect.rollout_steps": 16,
    "collect.max_policy_lag": 0,
    "ppo.threads": 1,
    "metrics.tensorboard": False,
    "metrics.every_s": 0.0,
    "total_env_steps": 256,
}


def write_rows(run_dir: Path, *rows: dict[str, float]) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_mean_deviation_and_range_by_hand():
    figures = spread([2.0, 4.0, float("nan"), 9.0])
    assert (figures.count, figures.mean, figures.lowest, figures.highest) == (3, 5.0, 2.0, 9.0)
    assert figures.deviation == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert math.isnan(spread([1.0]).deviation)
    assert math.isnan(spread([]).mean)


def test_rows_of_a_run_that_went_back_to_a_checkpoint_count_once(run_dir):
    steps = [100, 200, 300, 200, 400]
    write_rows(run_dir, *({"env_steps": s, "order": i} for i, s in enumerate(steps)))
    with open(run_dir / "metrics.jsonl", "a") as file:
        file.write('{"env_steps": 500, "or')  # killed while writing
    assert [(row["env_steps"], row["order"]) for row in read_rows(run_dir)] == [(100, 0), (200, 3), (400, 4)]
    assert last_row(run_dir)["order"] == 4
    assert read_rows(run_dir / "nowhere") == []
    assert last_row(run_dir / "nowhere") is None


def test_the_last_row_of_a_long_file_is_found_from_its_end(run_dir):
    write_rows(run_dir, *({"env_steps": s, "padding": 1 / 3} for s in range(5000)))
    assert (run_dir / "metrics.jsonl").stat().st_size > 2 * 65_536
    assert last_row(run_dir)["env_steps"] == 4999


def test_a_record_by_hand(run_dir):
    common = {"episodes": 7, "steps_per_second": 1.0}
    write_rows(
        run_dir,
        {"env_steps": 100, "time_s": 1.0, "episode_return": 3.0, **common},
        {"env_steps": 300, "time_s": 2.0, "episode_return": 9.0, "eval_return": 4.0, **common},
        {"env_steps": 500, "time_s": 3.0, "episode_return": 5.0, "eval_return": 2.0, **common},
    )
    (run_dir / "status.json").write_text('{"state": "stop.updates=3 reached"}')
    record = read_record(11, run_dir)
    assert record.finished
    assert (record.seed, record.env_steps, record.mean_return, record.wall_s) == (11, 500, 5.0, 3.0)
    assert record.best_return == 4.0  # evaluations are better evidence than training's own mean
    assert record.steps_per_second == 200.0
    (run_dir / "status.json").write_text('{"state": "running"}')
    assert read_record(11, run_dir).state == "cut off"


def test_a_band_by_hand():
    first = Curve(np.array([0.0, 100.0]), np.array([0.0, 10.0]))
    second = Curve(np.array([50.0, 200.0]), np.array([1.0, 1.0]))
    together = band([first, second])
    assert (together.env_steps[0], together.env_steps[-1]) == (50.0, 100.0)
    assert (together.mean[0], together.mean[-1]) == pytest.approx((3.0, 5.5))
    assert together.deviation[-1] == pytest.approx(9.0 / math.sqrt(2))
    assert band([first, Curve(np.array([101.0]), np.array([1.0]))]) is None
    assert band([]) is None


def test_curves_are_drawn_in_their_colours(tmp_path):
    from PIL import Image

    flat = Curve(np.array([0.0, 1000.0]), np.array([5.0, 5.0]))
    steep = Curve(np.array([0.0, 1000.0]), np.array([0.0, 10.0]))
    draw_curves(tmp_path / "curves.png", "both", [Line("flat", [flat]), Line("steep", [steep])])
    with Image.open(tmp_path / "curves.png") as picture:
        pixels = np.asarray(picture.convert("RGB"), np.int64)
    for colour in ((0, 114, 178), (213, 94, 0)):
        assert (abs(pixels - colour).sum(axis=2) < 20).sum() > 500, "the line and its mark in the legend"


def test_a_share_of_the_cores_fills_in_only_what_is_auto(monkeypatch):
    monkeypatch.setattr(system, "available_cores", lambda: 8)
    assert share_cores(Config(), 1) == Config()
    shared = share_cores(Config(), 2)
    assert (shared.collect.backend, shared.collect.workers, shared.ppo.threads) == ("auto", 3, 1)
    alone = share_cores(Config(), 8)
    assert (alone.collect.backend, alone.collect.workers, alone.ppo.threads) == ("serial", 1, 1)
    mine = Config().replace({"collect.workers": 5, "ppo.threads": 2, "collect.backend": "processes"})
    assert share_cores(mine, 8) == mine
    with pytest.raises(ConfigError, match="--parallel 0"):
        share_cores(Config(), 0)


def test_seeds_are_counted_or_named():
    assert seeds_from(3, 10) == [10, 11, 12]
    assert seeds_from([3, 7], 10) == [3, 7]
    for seeds in (0, [], [1, 1]):
        with pytest.raises(ConfigError, match="seed"):
            seeds_from(seeds, 0)


# Plans -------------------------------------------------------------------------------------------------------


def plan_of(tmp_path: Path, text: str) -> list[dict[str, object]]:
    file = tmp_path / "plan.toml"
    file.write_text(text)
    return make_trials(*read_plan(file))


def test_a_grid_takes_every_combination_and_the_last_list_changes_fastest(tmp_path):
    trials = plan_of(tmp_path, '[sweep.settings]\n"ppo.clip" = [0.1, 0.2]\nnet.hidden = [[8], [16, 16]]\n')
    assert [(trial["ppo.clip"], trial["net.hidden"]) for trial in trials] == [
        (0.1, (8,)),
        (0.1, (16, 16)),
        (0.2, (8,)),
        (0.2, (16, 16)),
    ]


RANDOM = """
[sweep]
method = "random"
draws = {draws}
seed = {seed}
[sweep.settings]
"ppo.learning_rate" = {{low = 1e-4, high = 1e-2, log = true}}
"ppo.epochs" = {{low = 2, high = 4}}
"ppo.gamma" = {{low = 0, high = 1}}
"net.activation" = ["tanh", "relu"]
"""


def test_random_draws_repeat_by_seed_and_more_of_them_begin_alike(tmp_path):
    few = plan_of(tmp_path, RANDOM.format(draws=20, seed=3))
    assert plan_of(tmp_path, RANDOM.format(draws=20, seed=3)) == few
    assert plan_of(tmp_path, RANDOM.format(draws=40, seed=3))[:20] == few
    assert plan_of(tmp_path, RANDOM.format(draws=20, seed=4)) != few


def test_random_draws_stay_in_their_range_and_integers_are_integers(tmp_path):
    trials = plan_of(tmp_path, RANDOM.format(draws=300, seed=0))
    rates = np.array([trial["ppo.learning_rate"] for trial in trials])
    assert ((rates >= 1e-4) & (rates <= 1e-2)).all()
    assert 0.4 < (rates < 1e-3).mean() < 0.6, "a logarithmic draw has half of its values in each decade"
    epochs = [trial["ppo.epochs"] for trial in trials]
    assert {type(value) for value in epochs} == {int}
    assert all(70 < epochs.count(value) < 130 for value in (2, 3, 4))
    assert len({trial["ppo.gamma"] for trial in trials}) == 300, "a real setting with whole bounds is still real"
    assert {trial["net.activation"] for trial in trials} == {"tanh", "relu"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[sweep]\nsedes = 2\n", "sweep.sedes; did you mean sweep.seeds?"),
        ('[sweep]\nmethod = "gird"\n', "did you mean 'grid'"),
        ("[metrics]\n", "no table [sweep]"),
        ("sweep = 3\n", "no table [sweep]"),
        ("[sweep]\n", "[sweep.settings] is empty"),
        ('[sweep.settings]\n"ppo.clipp" = [0.1]\n', "did you mean ppo.clip?"),
        ("[sweep.settings]\nppo.clipp = [0.1]\n", "did you mean ppo.clip?"),
        ('[sweep.settings]\n"ppo.clipp" = {low = 0.1, high = 0.2}\n', "did you mean ppo.clip?"),
        ('[sweep.settings]\n"ppo.clip" = [-1.0]\n', "ppo.clip=-1.0 must be above 0"),
        ('[sweep.settings]\n"ppo.clip" = 0.1\n', "must be a list of values or a range"),
        ('[sweep.settings]\n"ppo.clip" = []\n', "must be a list of values or a range"),
        ('[sweep.settings]\n"ppo.clip" = {low = 0.1, high = 0.2}\n', 'method = "random" draws'),
        ('[sweep.settings]\n"ppo.clip" = {low = 0.3, high = 0.2}\n', "low must be below high"),
        ('[sweep.settings]\n"ppo.clip" = {low = 0.1, hihg = 0.2}\n', "a range is {low"),
        ('[sweep.settings]\n"ppo.entropy_coef" = {low = 0, high = 1, log = true}\n', "low above 0 with log"),
        ('[sweep.settings]\n"net.activation" = {low = 0, high = 1}\n', "is no number"),
        ('[sweep.settings]\n"seed" = [1, 2]\n', "sweep.seeds"),
    ],
)
def test_a_mistake_in_a_plan_is_told_with_what_to_write(tmp_path, text, told):
    with pytest.raises(ConfigError) as error:
        plan_of(tmp_path, text)
    assert told in str(error.value)


def test_the_defaults_of_a_plan_are_as_documented():
    text = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "| `" in f"| {line}"]
    told = {cells[0].strip("`"): cells[-1].strip("`") for cells in rows if len(cells) == 3}
    for name, value in vars(SweepConfig()).items():
        assert told[name] == ("" if name == "settings" else str(value))


def test_the_best_settings_come_as_toml_that_reads_back(tmp_path):
    settings = {"ppo.clip": 0.1, "net.hidden": (8, 8), "total_env_steps": 5, "ppo.epochs": 3}
    (tmp_path / "best.toml").write_text(as_toml(settings))
    assert Config.from_toml(tmp_path / "best.toml") == Config().replace(settings)


# Directories -------------------------------------------------------------------------------------------------


def test_a_directory_takes_the_same_settings_again_and_no_others(tmp_path):
    config = Config().replace({"ppo.clip": 0.1, "run_dir": "x", "env.kwargs": {"sizes": (1, 2)}})
    with ExperimentDirectory(tmp_path / "all") as directory:
        directory.settle(config)
        directory.settle(config.replace({"seed": 5, "metrics.console": "json", "run_dir": "y"}))
        with pytest.raises(ConfigError, match=r"begun with ppo.clip=0.1, and now it is 0.2"):
            directory.settle(config.replace({"ppo.clip": 0.2}))
        with pytest.raises(RunLockedError), ExperimentDirectory(tmp_path / "all"):
            pass
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(ConfigError, match="holds a single run"), ExperimentDirectory(tmp_path):
        pass


# Runs --------------------------------------------------------------------------------------------------------


def test_a_function_of_the_caller_trains_under_seeds_and_a_killed_run_is_told(tmp_path):
    def make_env():
        if sys.argv[-1].endswith("seed_1"):  # the process of that run is named by its directory
            os.kill(os.getpid(), signal.SIGKILL)
        return gymnasium.make("CartPole-v1")

    result = millrace.train_seeds(
        make_env, seeds=2, parallel=2, settings=TINY, run_dir=str(tmp_path / "all"), quiet=True
    )
    good, killed = result.results
    assert (good.state, killed.state) == ("complete", "failed")
    assert killed.error == "its process was killed by signal 9"
    assert result.exit_code == 1
    assert result.mean_return == good.mean_return
    assert math.isnan(result.deviation)
    assert good.policy.act([0.0, 0.0, 0.0, 0.0]) in (0, 1)


def test_runs_in_processes_of_their_own_learn_what_a_run_in_this_process_does(tmp_path):
    alone = millrace.train("CartPole-v1", settings=TINY, seed=4, run_dir=str(tmp_path / "alone"), quiet=True)
    result = millrace.train_seeds("CartPole-v1", seeds=[4], settings=TINY, run_dir=str(tmp_path / "all"), quiet=True)
    (record,) = result.results
    assert isinstance(record, RunRecord)
    assert record.mean_return == alone.mean_return
    names = [next((path / "checkpoints").glob("step_*")) for path in (alone.run_dir, record.run_dir)]
    weights = [(name / "policy.safetensors").read_bytes() for name in names]
    assert weights[0] == weights[1]


def test_what_cannot_be_sent_to_a_process_is_refused_before_anything_starts(tmp_path):
    import threading

    lock = threading.Lock()
    with pytest.raises(ConfigError, match="cannot be sent"):
        millrace.train_seeds(lambda: lock, seeds=1, settings=TINY, run_dir=str(tmp_path / "all"), quiet=True)
