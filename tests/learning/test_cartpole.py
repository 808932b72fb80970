"""Learning to a threshold, end to end."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

import millrace

TO_475 = {"stop.mean_return": 475.0, "metrics.tensorboard": False}


def recipe(name: str) -> str:
    return str(resources.files("millrace") / "recipes" / f"{name}.toml")


def test_cartpole_is_solved_within_150_000_steps(run_dir: Path):
    result = millrace.train(recipe("cartpole-quick"), run_dir=str(run_dir), quiet=True, settings=TO_475)
    assert result.reason == "stop.mean_return=475 reached"
    assert result.env_steps <= 150_000
    assert millrace.evaluate(result.policy, episodes=20).mean_return > 450


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("max_policy_lag", [0, 1, 2])
@pytest.mark.parametrize("backend", ["serial", "processes"])
def test_cartpole_is_solved_at_any_lag_and_place(backend, max_policy_lag, seed, run_dir: Path):
    result = millrace.train(
        recipe("cartpole-quick"), run_dir=str(run_dir), quiet=True, seed=seed, settings=TO_475,
        backend=backend, max_policy_lag=max_policy_lag,
    )  # fmt: skip
    assert result.reason == "stop.mean_return=475 reached"
