"""Asynchronous against lock-step: how much faster millrace is when it collects and learns at the same time.

    python -m benchmarks.asynchronous [--work sleep|realm] [--repeats 5] [--seconds 20]

The two sides differ in `collect.max_policy_lag` alone, 0 or 1, and alternate. From what the lock-step side logs, a
model predicts the other (see `Model`); the last table has the ratio that was measured beside the predicted one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import child, harness
from benchmarks.envs import make_sleep

SIDES = {"lock-step": 0, "asynchronous": 1}
START_AND_END_S = 90.0
"""On top of the time that is measured, before a run has failed."""
COLUMNS = (
    harness.Column("steps_per_second", "steps/s"),
    harness.Column("collect_s", "waiting for rollouts, s an update", 4),
    harness.Column("learn_s", "learning, s an update", 4),
    harness.Column("other_s", "the rest, s an update", 4),
    harness.Column("processor_s", "processor time, s an update", 4),
)


@dataclass(frozen=True)
class Work:
    """What both sides are asked to do."""

    title: str
    env: str | Callable[[], Any]
    settings: dict[str, Any]
    step_computes: bool
    """Whether a step of the environment keeps a processor busy; otherwise it sleeps."""
    balanced: bool = False
    """Choose the epochs by a run of their own, so that learning costs as much as collecting."""


def make_sleepy() -> Any:
    """Every step sleeps 5 ms."""
    return make_sleep(5.0)


WORKS = {
    "sleep": Work(
        "a game that sleeps 5 ms a step, 8 workers of one copy",
        make_sleepy,
        {
            "collect.workers": 8,
            "collect.envs_per_worker": 1,
            "collect.rollout_steps": 64,
            "net.hidden": (512, 512),
            "ppo.epochs": 12,
            "ppo.minibatch_size": 64,
            "ppo.threads": 1,
        },
        step_computes=False,
        balanced=True,
    ),
    "realm": Work(
        "RealmMini, which computes, one worker of 64 slots",
        "realm-mini",
        {
            "collect.workers": 1,
            "collect.envs_per_worker": 64,
            "collect.rollout_steps": 32,
            "ppo.epochs": 4,
            "ppo.threads": 1,
        },
        step_computes=True,
    ),
}


@dataclass(frozen=True)
class Model:
    """What an update takes, in seconds, all of it measured in lock-step.

    In lock-step one thing follows another; asynchronously, collecting goes on while the trainer learns and does the
    rest, so the longer of the two decides. Both slow down once they want more processor time than the cores have.

        T_lock  = collect + learn + other
        T_async = max(collect, learn + other, processor / cores)
    """

    collect_s: float
    """The trainer waited this long for rollouts."""
    learn_s: float
    other_s: float
    processor_s: float
    """Of all processes together."""
    cores: int

    @property
    def lock_step_s(self) -> float:
        """T_lock."""
        return self.collect_s + self.learn_s + self.other_s

    @property
    def asynchronous_s(self) -> float:
        """T_async."""
        return max(self.collect_s, self.learn_s + self.other_s, self.processor_s / self.cores)

    @property
    def ratio(self) -> float:
        """How many times faster asynchronous is."""
        return self.lock_step_s / self.asynchronous_s

    def explain(self) -> str:
        """The model in numbers."""
        return (
            f"T_lock  = collect {self.collect_s:.4f} + learn {self.learn_s:.4f} + other {self.other_s:.4f}"
            f" = {self.lock_step_s:.4f} s an update\n"
            f"T_async = max(collect {self.collect_s:.4f}, learn + other {self.learn_s + self.other_s:.4f}, "
            f"processor {self.processor_s:.4f} / {self.cores} cores) = {self.asynchronous_s:.4f} s an update"
        )


def train(work: Work, max_policy_lag: int, epochs: int, seconds: float) -> None:
    """One side: the figures of its steady state, per update."""
    from benchmarks import millrace_runs as runs  # here: the harness side of this file runs without millrace

    settings = {
        **work.settings,
        "collect.backend": "processes",
        "collect.max_policy_lag": max_policy_lag,
        "ppo.epochs": epochs,
        "stop.wall_s": seconds + runs.START_S,
    }
    rows, _ = runs.train(work.env, settings, child.seed())
    first, last = runs.steady_span(rows)
    figures = {"steps_per_second": runs.rate(first, last), **_seconds_per_update(rows, first, last, work)}
    child.report(figures, ("millrace", "torch", "gymnasium"))


def _seconds_per_update(
    rows: Sequence[dict[str, Any]], first: dict[str, Any], last: dict[str, Any], work: Work
) -> dict[str, float]:
    """Shares are of the time since training began, which the run's clock began before: the first rate says when."""
    begin_s = rows[0]["time_s"] - rows[0]["env_steps"] / rows[0]["steps_per_second"]

    def spent_s(name: str) -> float:
        total_s = [row[name] * (row["time_s"] - begin_s) for row in (first, last)]
        return float((total_s[1] - total_s[0]) / (last["updates"] - first["updates"]))

    busy = ("share_inference", "share_collector_other", *(("share_step",) if work.step_computes else ()))
    learn_s, other_s = spent_s("share_learn"), spent_s("share_trainer_other")
    collectors_s = work.settings["collect.workers"] * sum(spent_s(name) for name in busy)
    return {
        "collect_s": spent_s("share_learner_wait"),
        "learn_s": learn_s,
        "other_s": other_s,
        "processor_s": collectors_s + learn_s * work.settings["ppo.threads"] + other_s,
    }


def candidate(name: str, side: str, epochs: int, seconds: float) -> harness.Candidate:
    """The command that runs one side."""
    script = (sys.executable, "-m", "benchmarks.asynchronous", "--work", name, "--seconds", str(seconds))
    return harness.Candidate(side, (*script, "--train", side, "--epochs", str(epochs)))


def balanced_epochs(name: str, seconds: float) -> int:
    """As many epochs as make learning take as long as collecting, from one lock-step run."""
    epochs: int = WORKS[name].settings["ppo.epochs"]
    run = harness.run_once(candidate(name, "lock-step", epochs, seconds), -1, seconds + START_AND_END_S)
    if run.error:
        raise SystemExit(f"the run that chooses the epochs failed: {run.error}")
    return max(1, round(epochs * run.figures["collect_s"] / run.figures["learn_s"]))


def measure(name: str, repeats: int, seconds: float) -> None:
    """Both sides in turn, their table, the model, and how far it is off."""
    work = WORKS[name]
    epochs = balanced_epochs(name, seconds) if work.balanced else work.settings["ppo.epochs"]
    print(f"{work.title}; {epochs} epochs")
    candidates = [candidate(name, side, epochs, seconds) for side in SIDES]
    runs = harness.measure(f"asynchronous-{name}", candidates, COLUMNS, repeats, seconds + START_AND_END_S)
    lock_step, asynchronous = (
        {figure: _median(runs, side, figure) for figure in (column.figure for column in COLUMNS)} for side in SIDES
    )
    measured = asynchronous["steps_per_second"] / lock_step.pop("steps_per_second")
    model = Model(**lock_step, cores=harness.machine()["cores"])
    print(f"{model.explain()}\n\n| | asynchronous / lock-step |\n| --- | --- |")
    print(f"| predicted | {model.ratio:.2f} |\n| measured | {measured:.2f} |")
    print(f"| measured / predicted | {measured / model.ratio:.2f} |\n", flush=True)


def _median(runs: Sequence[harness.Run], side: str, figure: str) -> float:
    spread = harness.spread(harness.by_candidate(runs)[side], figure)
    if spread is None:
        raise SystemExit(f"{side} never finished")
    return spread.median


def main() -> None:
    """Measure, or be measured (`--train`)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=tuple(WORKS), help="default: both")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--epochs", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--train", choices=tuple(SIDES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train(WORKS[arguments.work], SIDES[arguments.train], arguments.epochs, arguments.seconds)
        return
    for name in (arguments.work,) if arguments.work else WORKS:
        measure(name, arguments.repeats, arguments.seconds)


if __name__ == "__main__":
    main()
