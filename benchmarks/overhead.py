"""What supervision, metrics and display cost together: steps per second with all on and with all off.

`python -m benchmarks.overhead`; millrace runs in this interpreter. On and off alternate. The display draws
into a pseudo-terminal, as for a person who watches. Supervision itself has no switch: what can be turned off
of it is the action log and the checkpoints by time.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from benchmarks import child, harness

COMMON: dict[str, Any] = {
    "collect.backend": "processes",
    "collect.workers": 1,
    "collect.envs_per_worker": 64,
    "collect.max_policy_lag": 1,
    "ppo.epochs": 4,
}
SIDES: dict[str, dict[str, Any]] = {
    "on": {"metrics.console": "live", "metrics.tensorboard": True},
    "off": {
        "metrics.console": "off",
        "metrics.tensorboard": False,
        "metrics.every_s": 3600.0,
        "collect.action_log_steps": 0,
        "checkpoint.every_s": 0.0,
    },
}
COLUMNS = (
    harness.Column("steps_per_second", "steps/s"),
    harness.Column("cpu_us_per_step", "CPU time, microseconds a step", 2),
)
TIMEOUT_S = 180.0


def train(side: str, env_steps: int) -> None:
    """One side, at the same number of steps, so that start and end weigh the same."""
    import millrace  # here: the harness side of this file runs without it

    settings = {**COMMON, **SIDES[side], "total_env_steps": env_steps, "seed": child.seed()}
    settings["run_dir"] = str(child.scratch() / "run")
    result = millrace.train("CartPole-v1", settings=settings, quiet=side == "off")
    figures = {
        "steps_per_second": result.steps_per_second,
        "train_s": result.wall_s,
        "cpu_us_per_step": 1e6 * _cpu_s() / result.env_steps,
    }
    child.report(figures, ("millrace", "torch", "gymnasium"))


def _cpu_s() -> float:
    """Processor time of this process and of its workers, which have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def overhead_percent(runs: list[harness.Run]) -> float:
    """How much slower on is than off, by medians."""
    groups = harness.by_candidate(runs)
    rates = {name: harness.spread(group, "steps_per_second") for name, group in groups.items()}
    on, off = rates["millrace, on"], rates["millrace, off"]
    if on is None or off is None:
        raise SystemExit("one side never finished")
    return 100 * (1 - on.median / off.median)


def main() -> None:
    """Measure, or be measured (`--train`)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--env-steps", type=int, default=3_000_000)
    parser.add_argument("--train", choices=tuple(SIDES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.train, arguments.env_steps)
        return
    script = (sys.executable, "-m", "benchmarks.overhead", "--env-steps", str(arguments.env_steps))
    candidates = [harness.Candidate(f"millrace, {side}", (*script, "--train", side), terminal=True) for side in SIDES]
    runs = harness.measure("overhead", candidates, COLUMNS, arguments.repeats, TIMEOUT_S, warmups=1)
    print(f"overhead {overhead_percent(runs):.1f} % (must: 3, aim: 1)")


if __name__ == "__main__":
    main()
