"""Different settings side by side: every combination of some values, or random draws."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.config import Config, toml_line
from millrace.errors import ConfigError
from millrace.experiments.campaign import Campaign, exit_code_of
from millrace.experiments.directory import ExperimentDirectory
from millrace.experiments.jobs import Job, seeds_from, share_cores
from millrace.experiments.picture import MOST_LINES
from millrace.experiments.plan import LOWER_IS_BETTER, Settings, SweepConfig, make_trials, read_plan
from millrace.experiments.progress import make_progress
from millrace.experiments.records import RunRecord, Spread, jsonable, spread
from millrace.experiments.seeds import CURVES, draw, seed_job
from millrace.rundir import new_run_path

TABLE = "table.json"
SPREADSHEET = "table.csv"


@dataclass(frozen=True)
class Trial:
    """One choice of settings and its runs.

    Attributes:
        settings: those that the sweep tries, by dotted name.
        metric: over the seeds that finished.
    """

    number: int
    run_dir: Path
    settings: Settings
    runs: list[RunRecord]
    metric: Spread

    @property
    def num_finished(self) -> int:
        return sum(record.finished for record in self.runs)

    def mean_of(self, name: str) -> float:
        """Mean over the seeds that finished of a figure of `RunRecord`."""
        return _spread_of(self.runs, name).mean

    def plain(self) -> dict[str, Any]:
        """As in `table.json`."""
        own = {field.name: jsonable(getattr(self, field.name)) for field in dataclasses.fields(self)}
        runs = [record.plain() for record in self.runs]
        return {**own, "metric": jsonable(dataclasses.asdict(self.metric)), "runs": runs}


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to.

    Attributes:
        run_dir: holds `trial_NNN/seed_N/`, `table.json`, `table.csv` and `curves.png` of the best.
        trials: the best first; those without a finished run last.
        metric: what they are sorted by.
        interrupted: whether a signal ended it; the same call with the same `run_dir` continues.
    """

    run_dir: Path
    trials: list[Trial]
    metric: str
    interrupted: bool = False

    @property
    def best(self) -> Trial | None:
        """None where no run finished."""
        return self.trials[0] if self.trials[0].num_finished else None

    @property
    def exit_code(self) -> int:
        """0 where all finished, the code of the first that failed, 130 where some were interrupted."""
        ordered = sorted(self.trials, key=lambda trial: trial.number)
        return exit_code_of([record for trial in ordered for record in trial.runs])

    def plain(self) -> dict[str, Any]:
        """The content of `table.json`."""
        trials = [trial.plain() for trial in self.trials]
        return {"metric": self.metric, "interrupted": self.interrupted, "trials": trials}


def sweep(
    file: str | Path,
    *,
    parallel: int = 1,
    settings: Mapping[str, Any] | None = None,
    run_dir: str | Path | None = None,
    quiet: bool = False,
) -> SweepResult:
    """Train under all settings that a file names; what is finished in `run_dir` already is not trained again.

    Args:
        file: a settings file with a table `[sweep]`; see docs/experiments.md.
        parallel: runs at a time; where it is above 1, `auto` settings are those for a share of the cores.
        settings: overrule those of the file that all trials share.

    Raises:
        MillraceError: one of its kinds, before any run starts; what goes wrong in a run stands in its record.
    """
    base, plan = read_plan(file)
    overrules = {**(settings or {}), **({"run_dir": str(run_dir)} if run_dir else {})}
    return run_sweep(base.replace(overrules), plan, Path(file).stem, parallel, quiet)


def run_sweep(base: Config, plan: SweepConfig, name: str, parallel: int = 1, quiet: bool = False) -> SweepResult:
    """The same for settings and a plan at hand; the directory is `base.run_dir`, or runs/NAME-TIME-sweep."""
    base = share_cores(base, parallel)
    trials = make_trials(base, plan)
    path = Path(base.run_dir) if base.run_dir else new_run_path(name, kind="-sweep")
    with ExperimentDirectory(path) as directory:
        directory.settle(base)
        _check_trials(path, trials)
        jobs = [_trial_jobs(base, plan, path, number, trial) for number, trial in enumerate(trials)]
        progress = make_progress("off" if quiet else base.metrics.console, str(path), base.total_env_steps)
        progress.note(f"{len(trials)} trials of {plan.seeds} seeds in {path}, {parallel} runs at a time")
        campaign = Campaign([job for group in jobs for job in group], progress)
        _write(directory, _result(path, plan, trials, jobs, campaign))
        for _ in campaign.run(parallel):
            _write(directory, _result(path, plan, trials, jobs, campaign))
        result = _result(path, plan, trials, jobs, campaign)
        _write(directory, result)
        finished = [trial for trial in result.trials if trial.num_finished][:MOST_LINES]
        curves = {_label(trial): [record.run_dir for record in trial.runs if record.finished] for trial in finished}
        draw(path / CURVES, f"{name}: the best {len(finished)} by {plan.metric}", curves, progress)
    return result


def _trial_jobs(base: Config, plan: SweepConfig, path: Path, number: int, trial: Settings) -> list[Job]:
    config, parent = base.replace(trial), path / f"trial_{number:03d}"
    seeds = seeds_from(plan.seeds, base.seed)
    return [seed_job(f"trial {number}, seed {seed}", config, seed, parent) for seed in seeds]


def _check_trials(path: Path, trials: list[Settings]) -> None:
    """Trial N of a sweep that is continued must be what it was, or its runs would be under the wrong name."""
    if not (path / TABLE).exists():
        return
    table = json.loads((path / TABLE).read_text(encoding="utf-8"))
    before = {trial["number"]: trial["settings"] for trial in table["trials"]}
    for number, trial in enumerate(trials):
        if number in before and before[number] != jsonable(trial):
            raise ConfigError(
                f"{path} was begun with other values: trial {number} had {before[number]} and now has {trial}; "
                "give the same [sweep] to continue it (a random one may have more draws), or choose another --run-dir"
            )


def _spread_of(runs: list[RunRecord], name: str) -> Spread:
    return spread([getattr(record, name) for record in runs if record.finished])


def _result(
    path: Path, plan: SweepConfig, trials: list[Settings], jobs: list[list[Job]], campaign: Campaign
) -> SweepResult:
    found = []
    for number, (settings, group) in enumerate(zip(trials, jobs, strict=True)):
        runs = [campaign.records[job.name] for job in group]
        found.append(Trial(number, group[0].run_dir.parent, settings, runs, _spread_of(runs, plan.metric)))
    sign = 1 if plan.metric in LOWER_IS_BETTER else -1
    found.sort(key=lambda trial: (not trial.metric.count, sign * trial.metric.mean if trial.metric.count else 0))
    return SweepResult(path, found, plan.metric, campaign.interrupted)


def _write(directory: ExperimentDirectory, result: SweepResult) -> None:
    directory.write_json(TABLE, result.plain())
    directory.write_text(SPREADSHEET, _spreadsheet(result))


def _spreadsheet(result: SweepResult) -> str:
    text = io.StringIO()
    names = list(result.trials[0].settings)
    out = csv.writer(text, lineterminator="\n")
    out.writerow(
        ["rank", "trial", *names, result.metric, "deviation", "finished", "steps_per_second", "wall_s", "run_dir"]
    )
    for rank, trial in enumerate(result.trials, 1):
        values = [trial.settings[name] for name in names]
        figures = [trial.metric.mean, trial.metric.deviation, trial.num_finished]
        speed = [trial.mean_of("steps_per_second"), trial.mean_of("wall_s")]
        out.writerow([rank, trial.number, *values, *figures, *speed, trial.run_dir])
    return text.getvalue()


def _label(trial: Trial) -> str:
    words = (f"{name.rpartition('.')[2]}={shown(value)}" for name, value in trial.settings.items())
    return f"trial {trial.number}: {', '.join(words)}"


def shown(value: Any) -> str:
    """A value of a setting for people: numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def as_toml(settings: Settings) -> str:
    """Settings by dotted name as TOML, to paste into a settings file."""
    tables: dict[str, list[str]] = {}
    for name, value in settings.items():
        table, _, key = name.rpartition(".")
        tables.setdefault(table, []).append(toml_line(key, value))
    # What stands in no table must come before all tables.
    blocks = [([f"[{table}]"] if table else []) + lines for table, lines in sorted(tables.items())]
    return "\n\n".join("\n".join(block) for block in blocks)
