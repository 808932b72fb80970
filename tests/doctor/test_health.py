"""Each thing that holds a run back, from figures written for it and, where that is cheap, from a run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import toys
from helpers import quick_train
from millrace.config import Config
from millrace.doctor.findings import Finding
from millrace.doctor.health import examine_run
from millrace.errors import WorkerError
from millrace.metrics.catalogue import CATALOGUE, unhealthy
from millrace.rundir import RunDirectory

NUM_ROWS = 100
TOTAL_STEPS = 200_000
HEALTHY = {
    "steps_per_second": 4000.0,
    "episode_return": lambda i: 100.0 + i % 7,
    "entropy": lambda i: 0.7 - 0.003 * i,
    "kl": 0.01,
    "clip_share": 0.1,
    "effective_sample_share": 0.97,
    "explained_variance": 0.8,
    "target_mean": 10.0,
    "target_deviation": 3.0,
    "skipped_steps": 0,
    "skipped_updates": 0,
    "restarts": 0,
    "stale_rollouts": 0,
    "bad_values": 0,
    "share_step": 0.6,
    "share_inference": 0.2,
    "share_collector_wait": 0.2,
    "share_learn": 0.4,
    "share_learner_wait": 0.5,
    "share_trainer_other": 0.1,
    "workers_up": 2,
    "worker_memory_mb": 45.0,
}
Change = Callable[[int], Any]


def wrote(run_dir: Path, settings: dict[str, Any] | None = None, state: str = "complete", **figures: Any) -> Path:
    """A run of 100 rows, half of its steps. A figure is a value, or a function of the row's number."""
    run_dir.mkdir()
    rows = []
    for i in range(NUM_ROWS):
        row = {"env_steps": 1000 * (i + 1), "time_s": 2.0 * i, "updates": 10 * i}
        row |= {name: value(i) if callable(value) else value for name, value in {**HEALTHY, **figures}.items()}
        rows.append(json.dumps(row))
    (run_dir / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    sizes = {"total_env_steps": TOTAL_STEPS, "collect.backend": "processes", "collect.max_policy_lag": 1}
    (run_dir / "config.toml").write_text(Config().replace({**sizes, **(settings or {})}).to_toml())
    (run_dir / "status.json").write_text(json.dumps({"state": state, "pid": 4711}))
    return run_dir


def found(run_dir: Path) -> dict[str, Finding]:
    return {finding.subject: finding for finding in examine_run(run_dir)}


def test_a_healthy_run_gets_one_sentence_with_what_limits_its_speed(run_dir: Path) -> None:
    findings = list(examine_run(wrote(run_dir)))
    assert [(f.level, f.subject) for f in findings] == [("ok", "health")]
    assert findings[0].what == (
        "nothing holds it back: 4,000 steps/s, limited by environment steps, 60% of the collectors' time"
    )


@pytest.mark.parametrize(
    ("figures", "limit"),
    [
        ({"share_learn": 0.7, "share_learner_wait": 0.2}, "learning, 70% of the trainer's time"),
        ({"share_step": 0.2, "share_inference": 0.6}, "inference, 60% of the collectors' time"),
    ],
)
def test_speed_is_limited_by_learning_or_by_inference(run_dir: Path, figures: dict[str, float], limit: str) -> None:
    assert found(wrote(run_dir, **figures))["health"].what.endswith(f"limited by {limit}")


@pytest.mark.parametrize(
    ("figures", "subject", "said", "remedy"),
    [
        ({"share_learner_wait": 0.95}, "starved learner", "0.95, above 0.8", "--workers"),
        ({"share_collector_wait": 0.95}, "starved collectors", "0.95, above 0.9", "--ppo.epochs"),
        ({"share_trainer_other": 0.4}, "busy trainer", "0.4, above 0.3", "--eval.every_env_steps"),
        ({"effective_sample_share": 0.3}, "stale data", "0.3, below 0.5", "--max-policy-lag"),
        ({"kl": 0.5}, "large steps", "kl is 0.5 or more in a quarter of the rows, above 0.2", "--ppo.learning_rate"),
        ({"clip_share": 0.7}, "large steps", "clip_share is 0.7 or more", "--ppo.learning_rate"),
        ({"kl": lambda i: 4.0 if i % 3 == 0 else 0.1}, "large steps", "kl is 4 or more", "--ppo.learning_rate"),
        (
            {"explained_variance": lambda i: 0.8 if i < 60 else -0.4},
            "value collapse",
            "explained_variance fell from 0.8 to -0.4, below 0 since step 63,000",
            "--ppo.normalize_reward",
        ),
        ({"explained_variance": -0.1}, "value not learned", "-0.1, below 0 since step 1,000", "--ppo.normalize_reward"),
        ({"episode_return": -200.0, "explained_variance": -9.0}, "no reward", "episode_return = -200", "--rnd.coef"),
        ({"entropy": lambda i: 0.6 if i < 40 else 1e-4}, "entropy gone", "since step 43,000", "--ppo.entropy_coef"),
        ({"entropy": 0.69}, "entropy stuck", "as at the beginning", "--ppo.learning_rate"),
        ({"skipped_steps": lambda i: max(0, i - 50) // 3}, "not finite", "since step 54,000", "check-env"),
        ({"bad_values": lambda i: i // 5}, "bad values", "since step 6,000", "--env.on_bad_value refuse"),
        ({"skipped_updates": lambda i: i // 5}, "skipped updates", "no row was valid", "log.txt"),
        ({"stale_rollouts": lambda i: i // 2}, "stale data", "too old", "--collect.on_stale wait"),
        ({"worker_memory_mb": lambda i: 50.0 + 5 * i}, "memory", "grew from 110 MB to 498 MB", "environment keeps"),
        ({"worker_memory_mb": 1e9}, "memory", "2 workers of 1,000,000,000 MB nearly fill", "--workers"),
    ],
)
def test_what_holds_a_run_back_is_named_with_the_setting_to_change(
    run_dir: Path, figures: dict[str, Any], subject: str, said: str, remedy: str
) -> None:
    findings = found(wrote(run_dir, **figures))
    assert set(findings) == {subject, "speed"}
    assert findings[subject].level == "warning"
    assert said in findings[subject].what
    assert remedy in findings[subject].remedy


@pytest.mark.parametrize(
    "figures",
    [
        {"kl": lambda i: 5.0 if i % 10 == 0 else 0.01},  # single rows
        {"kl": math.nan, "explained_variance": math.nan},
        {"explained_variance": -0.05, "target_mean": 99.0, "target_deviation": 0.1},  # mastered: all values are alike
        {"entropy": lambda i: -0.5 - 0.01 * i},  # of continuous actions
        {"entropy": 0.69, "episode_return": lambda i: 10.0 + i},  # undecided, and better all the time
        {"entropy": lambda i: 0.6 - 0.003 * i if i < 98 else 0.0},
        {"worker_memory_mb": lambda i: 40.0 + 0.5 * i},
    ],
)
def test_what_is_no_cause_for_thought_is_left_alone(run_dir: Path, figures: dict[str, Any]) -> None:
    assert set(found(wrote(run_dir, **figures))) == {"health"}


@pytest.mark.parametrize("figures", [{"explained_variance": -0.1}, {"entropy": 0.69}, {"episode_return": 0.0}])
def test_a_young_run_need_not_have_learned_anything(run_dir: Path, figures: dict[str, float]) -> None:
    assert set(found(wrote(run_dir, {"total_env_steps": 10**9}, **figures))) == {"health"}


def test_collecting_in_the_same_process_starves_nobody(run_dir: Path) -> None:
    waits = {"share_learner_wait": 0.95, "share_learn": 0.04}
    assert set(found(wrote(run_dir, {"collect.backend": "serial"}, **waits))) == {"health"}


def test_lock_step_where_each_waits_for_the_other_is_worth_a_note(run_dir: Path) -> None:
    settings = {"collect.max_policy_lag": 0}
    finding = found(wrote(run_dir, settings, share_learner_wait=0.5, share_collector_wait=0.5))["lock-step"]
    assert finding.level == "note"
    assert "--max-policy-lag 1" in finding.remedy


def test_gradient_steps_that_are_all_skipped_are_an_error(run_dir: Path) -> None:
    finding = found(wrote(run_dir, skipped_steps=lambda i: i))["not finite"]
    assert finding.level == "error"
    assert "learning has stopped" in finding.what


def test_what_happened_once_and_no_more_is_a_note(run_dir: Path) -> None:
    findings = found(wrote(run_dir, bad_values=lambda i: int(i > 3)))
    assert findings["bad values"].level == "note"
    assert "none lately" in findings["bad values"].what
    assert findings["health"].level == "ok"


def add_crash(run_dir: Path, kind: str, message: str) -> Path:
    crashes = run_dir / "crashes"
    crashes.mkdir()
    (crashes / "worker-0.json").write_text(json.dumps({"kind": kind, "message": message}))
    return crashes / "worker-0.json"


@pytest.mark.parametrize(
    ("kind", "message", "remedy"),
    [
        ("raised", "worker 0, step 9: ValueError: no", "millrace replay "),
        ("hung", "worker 0, step 9: no step finished", "--collect.step_timeout_s"),
        ("failed to start", "worker 0, step 0: not ready", "--collect.start_timeout_s"),
        ("died", "worker 0, step 9: the process ended by signal 9", "usually memory"),
    ],
)
def test_a_crash_loop_is_an_error_with_the_last_crash_and_its_remedy(
    run_dir: Path, kind: str, message: str, remedy: str
) -> None:
    wrote(run_dir, restarts=lambda i: i // 10)
    add_crash(run_dir, kind, message)
    finding = found(run_dir)["crash loop"]
    assert (finding.level, finding.exit_code) == ("error", 3)
    assert "9 restarts of workers in the last 198 s, 9 in all" in finding.what
    assert f"{message} ({kind})" in finding.what
    assert remedy in finding.remedy


@pytest.mark.parametrize(("window_s", "level"), [(600.0, "warning"), (10.0, "note")])
def test_restarts_now_and_then_are_no_loop(run_dir: Path, window_s: float, level: str) -> None:
    settings = {"collect.restart_window_s": window_s}
    assert found(wrote(run_dir, settings, restarts=lambda i: i // 40))["crashes"].level == level


def test_a_run_that_was_cut_off_can_be_resumed(run_dir: Path) -> None:
    finding = found(wrote(run_dir, state="running"))["state"]
    assert finding.level == "warning"
    assert "process 4711 is gone" in finding.what
    assert finding.remedy == f"millrace resume {run_dir}"


def test_a_live_run_that_writes_nothing_is_noticed(run_dir: Path) -> None:
    wrote(run_dir, state="running")
    lock = RunDirectory(run_dir).lock
    lock.acquire()
    try:
        assert set(found(run_dir)) == {"health"}
        os.utime(run_dir / "metrics.jsonl", (0, 0))
        assert "has written no figures for" in found(run_dir)["state"].what
    finally:
        lock.release()


def test_too_few_rows_are_not_judged(run_dir: Path) -> None:
    wrote(run_dir)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    (run_dir / "metrics.jsonl").write_text("\n".join(lines[:3]) + "\n")
    assert found(run_dir)["health"].what == "3 rows of figures are too few to judge it by"


def test_every_remedy_in_the_catalogue_belongs_to_a_side_that_can_be_left() -> None:
    for metric in CATALOGUE.values():
        assert not metric.below or metric.healthy[0] is not None, metric.name
        if metric.healthy[1] is not None and metric.name not in ("dropped_env_steps",):
            assert metric.above, metric.name


def test_a_row_outside_its_range_is_told_as_ever() -> None:
    assert unhealthy({"kl": 0.5, "clip_share": 0.1, "workers_up": 3}) == [
        "kl = 0.5 is above 0.2 (KL from the acting to the present policy, approximate)"
    ]
    assert unhealthy({"effective_sample_share": 0.25})[0].startswith("effective_sample_share = 0.25 is below 0.5 (")


# From real runs -----------------------------------------------------------------------------------------------


def faulty(kind: str, tokens: str) -> Callable[[], Any]:
    return lambda: toys.Faulty(kind, tokens)


def test_a_real_run_whose_rewards_are_not_numbers(run_dir: Path, tmp_path: Path) -> None:
    env = faulty("reward is nan", toys.tokens(tmp_path / "tokens", 500))
    quick_train(env, run_dir, {"stop.updates": 8}, backend="serial")
    assert found(run_dir)["bad values"].level == "warning"


def test_a_real_run_whose_workers_crash_in_a_loop(run_dir: Path, tmp_path: Path) -> None:
    env = faulty("raises", toys.tokens(tmp_path / "tokens", 500))
    with pytest.raises(WorkerError):
        quick_train(env, run_dir, {"collect.max_restarts": 3}, backend="serial")
    finding = found(run_dir)["crash loop"]
    assert (finding.level, finding.exit_code) == ("error", 3)
    assert "collect.max_restarts=3 was used up" in finding.what
    assert "ValueError: the dragon has no head (raised)" in finding.what
    assert finding.remedy.startswith("millrace replay ")
    assert Path(finding.remedy.removeprefix("millrace replay ")).is_file()


def test_a_real_run_without_any_reward(run_dir: Path) -> None:
    quick_train(lambda: toys.Doors(30), run_dir, {"stop.updates": 101}, backend="serial", total_env_steps=5_000)
    assert found(run_dir)["no reward"].level == "warning"


def test_a_real_run_that_decides_at_once(run_dir: Path) -> None:
    settings = {"stop.updates": 12, "ppo.learning_rate": 0.5, "ppo.epochs": 10}
    quick_train("CartPole-v1", run_dir, settings, backend="serial")
    finding = found(run_dir)["entropy gone"]
    assert finding.level == "warning"
    assert "--ppo.learning_rate" in finding.remedy
