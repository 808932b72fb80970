"""What `train --seeds` and `sweep` have in common: options, and the tables at the end."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from millrace.cli.output import number, print_table, seconds
from millrace.errors import ConfigError

if TYPE_CHECKING:
    from millrace.experiments.records import RunRecord, Spread
    from millrace.experiments.seeds import SeedsResult
    from millrace.experiments.sweep import SweepResult

SPARK_POINTS = 48


def add_parallel(options: argparse.ArgumentParser) -> None:
    """The option for runs beside each other."""
    options.add_argument(
        "--parallel", type=int, metavar="N", help="runs at a time, each in a process of its own with its share of cores"
    )


def parse_seeds(text: str) -> int | list[int]:
    """`5` as how many, `3,7,11` as which.

    Raises:
        ConfigError: neither.
    """
    try:
        numbers = [int(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise ConfigError(f"--seeds {text!r}: give how many, for example 5, or name them: 3,7,11") from None
    return numbers if "," in text else numbers[0] if numbers else []


def print_seeds(result: SeedsResult) -> None:
    """A row per seed, the figures over seeds, and the curve."""
    from millrace.metrics.console import sparkline

    print()
    print_table([_seed_row(record) for record in result.results], SEED_HEADER)
    print()
    rows = [("over seeds", _over_seeds(result.spread, len(result.results)))]
    curve = result.mean_curve()
    if len(curve):
        step = max(1, len(curve) // SPARK_POINTS)
        rows.append(("curve", f"{sparkline(list(curve[::step]))} {number(curve[0])} .. {number(curve[-1])}"))
    print_table([*rows, ("files", _files(result.run_dir, "summary.json", "curves.png", "seed_*"))])
    _print_errors([(f"seed {record.seed}", record) for record in result.results])
    if result.exit_code:
        print(f"\nthe same command with --run-dir {result.run_dir} goes on with what is not finished")


SEED_HEADER = ("seed", "return", "best", "steps", "steps/s", "wall", "ended", "run")


def _seed_row(record: RunRecord) -> list[str]:
    returns = [number(record.mean_return), number(record.best_return)]
    speed = [f"{record.env_steps:,}", number(record.steps_per_second), seconds(record.wall_s)]
    return [str(record.seed), *returns, *speed, record.state, str(record.run_dir)]


def _over_seeds(spread: Spread, num_seeds: int) -> str:
    if not spread.count:
        return f"none of {num_seeds} finished"
    return (
        f"mean {number(spread.mean)}, deviation {number(spread.deviation)}, "
        f"range {number(spread.lowest)} .. {number(spread.highest)}, {spread.count} of {num_seeds} finished"
    )


def _files(directory: Path, *patterns: str) -> str:
    return f"{directory}: {', '.join(name for name in patterns if any(directory.glob(name)))}"


def print_sweep(result: SweepResult) -> None:
    """A row per trial, the best first, and its settings as TOML."""
    from millrace.experiments.sweep import as_toml, shown

    names = list(result.trials[0].settings)
    print()
    header = ("trial", *names, result.metric, "deviation", "finished", "steps/s", "wall")
    print_table(
        [
            [
                str(trial.number),
                *(shown(trial.settings[name]) for name in names),
                *map(number, (trial.metric.mean, trial.metric.deviation)),
                f"{trial.num_finished}/{len(trial.runs)}",
                number(trial.mean_of("steps_per_second")),
                seconds(trial.mean_of("wall_s")) if trial.num_finished else "-",
            ]
            for trial in result.trials
        ],
        header,
    )
    print("\nfiles ", _files(result.run_dir, "table.json", "table.csv", "curves.png", "trial_*"))
    if result.best is not None:
        print(f"\nthe best, {result.best.run_dir}:\n\n{as_toml(result.best.settings)}")
    _print_errors([(f"trial {trial.number}, seed {run.seed}", run) for trial in result.trials for run in trial.runs])
    if result.exit_code:
        print(f"\nthe same command with --run-dir {result.run_dir} goes on with what is not finished")


def _print_errors(runs: list[tuple[str, RunRecord]]) -> None:
    failed = [(name, record) for name, record in runs if record.failed]
    for name, record in failed:
        print(f"\n{name} failed: {record.error}\n  all that it printed: {record.run_dir}/output.txt")
