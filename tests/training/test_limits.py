"""When a run ends before its steps are done, and when something is due again."""

from __future__ import annotations

import time

import pytest

from millrace.config import StopConfig
from millrace.interval import Interval
from millrace.stop_rules import reason_to_stop

NOW = {"updates": 5, "episodes": 100, "wall_s": 60.0, "mean_return": 3.0}


@pytest.mark.parametrize(
    ("rules", "now", "reason"),
    [
        ({}, {}, ""),
        ({"updates": 5}, {}, "stop.updates=5 reached"),
        ({"updates": 6}, {}, ""),
        ({"episodes": 100}, {}, "stop.episodes=100 reached"),
        ({"wall_s": 60.0}, {}, "stop.wall_s=60 reached"),
        ({"wall_s": 60.5}, {}, ""),
        ({"mean_return": 3.0}, {}, "stop.mean_return=3 reached"),
        ({"mean_return": 0.0}, {"mean_return": -1.0}, ""),
        ({"mean_return": 0.0}, {"mean_return": 0.0}, "stop.mean_return=0 reached"),
        ({"mean_return": 3.0}, {"episodes": 99}, ""),
        ({"mean_return": 3.0}, {"mean_return": float("nan")}, ""),
        ({"mean_return": 3.0}, {"mean_return": None}, ""),
        ({"updates": 5, "episodes": 1}, {}, "stop.updates=5 reached"),
    ],
)
def test_a_run_ends_by_the_first_rule_that_holds(rules, now, reason):
    assert reason_to_stop(StopConfig(**rules), **{**NOW, **now}) == reason


def test_an_interval_is_over_by_steps_or_by_seconds_whichever_comes_first(monkeypatch):
    now_s = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now_s)
    interval = Interval(1000, every_env_steps=50, every_s=10.0)
    assert not interval.is_over(1049)
    assert interval.is_over(1050)
    now_s = 110.0
    assert interval.is_over(1000)
    interval.begin(1000)
    assert not interval.is_over(1049)


def test_an_interval_of_nothing_is_never_over(monkeypatch):
    now_s = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now_s)
    interval = Interval(0, every_env_steps=0)
    now_s = 1e9
    assert not interval.is_over(10**9)
