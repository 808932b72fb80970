"""The same settings under several seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from millrace.config import Config
from millrace.errors import MissingExtraError
from millrace.experiments.campaign import Campaign, exit_code_of
from millrace.experiments.curves import band, read_curve
from millrace.experiments.directory import ExperimentDirectory
from millrace.experiments.jobs import Job, seeds_from, share_cores
from millrace.experiments.picture import Line, draw_curves
from millrace.experiments.progress import Progress, make_progress
from millrace.experiments.records import RunRecord, Spread, spread
from millrace.rundir import new_run_path
from millrace.training import make_config
from millrace.types import Array

SUMMARY = "summary.json"
CURVES = "curves.png"


@dataclass(frozen=True)
class SeedsResult:
    """What several seeds came to. Figures over seeds are of those that finished.

    Attributes:
        run_dir: holds `seed_N/`, each an ordinary run, `summary.json` and `curves.png`.
        results: one record a seed, in order.
        interrupted: whether a signal ended it; the same call with the same `run_dir` continues.
    """

    run_dir: Path
    results: list[RunRecord]
    interrupted: bool = False

    @property
    def spread(self) -> Spread:
        return spread([record.mean_return for record in self.results if record.finished])

    @property
    def mean_return(self) -> float:
        """Mean over seeds of the mean return of the last 100 training episodes; nan where none finished."""
        return self.spread.mean

    @property
    def deviation(self) -> float:
        """Its sample standard deviation over seeds; nan for fewer than two."""
        return self.spread.deviation

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest of the seeds."""
        return self.spread.lowest, self.spread.highest

    @property
    def exit_code(self) -> int:
        """0 where all finished, the code of the first that failed, 130 where some were interrupted."""
        return exit_code_of(self.results)

    def mean_curve(self) -> Array:
        """Mean over the finished seeds of the return at evenly spaced steps; empty where there is none."""
        curves = [curve for record in self.results if record.finished and (curve := read_curve(record.run_dir))]
        together = band(curves)
        return np.zeros(0) if together is None else together.mean

    def plain(self) -> dict[str, Any]:
        """The content of `summary.json`."""
        return {
            "over_seeds": dataclasses.asdict(self.spread),
            "interrupted": self.interrupted,
            "runs": [record.plain() for record in self.results],
        }


def train_seeds(
    env: str | Callable[..., Any] | Config,
    *,
    seeds: int | list[int] | tuple[int, ...] = 5,
    parallel: int = 1,
    settings: Mapping[str, Any] | None = None,
    network: Any = None,
    init_from: str | Path | None = None,
    quiet: bool = False,
    **short: Any,
) -> SeedsResult:
    """Train once per seed, each in a process of its own; what is finished in `run_dir` already is not trained again.

    A run that fails does not end the others. Ctrl-C stops those at work, which save; the same call with the same
    `run_dir` goes on from there.

    Args:
        env, settings, network, init_from, quiet, short: as of `millrace.train`; `run_dir` will hold all runs.
        seeds: how many, counted from `seed`, or which.
        parallel: how many at a time; where it is above 1, `auto` settings are those for a share of the cores.

    Raises:
        MillraceError: one of its kinds, before any run starts; what goes wrong in a run stands in its record.
    """
    config, maker = make_config(env, settings, **short)
    numbers = seeds_from(seeds, config.seed)
    config = share_cores(config, parallel)
    path = Path(config.run_dir) if config.run_dir else new_run_path(maker.name, kind="-seeds")
    with ExperimentDirectory(path) as directory:
        directory.settle(config)
        jobs = [seed_job(f"seed {seed}", config, seed, path) for seed in numbers]
        jobs = [dataclasses.replace(job, factory=maker.factory, network=network, init_from=init_from) for job in jobs]
        progress = make_progress("off" if quiet else config.metrics.console, str(path), config.total_env_steps)
        progress.note(f"{len(jobs)} seeds in {path}, {min(parallel, len(jobs))} at a time")
        campaign = Campaign(jobs, progress)
        for _ in campaign.run(parallel):
            directory.write_json(SUMMARY, _result(path, jobs, campaign).plain())
        result = _result(path, jobs, campaign)
        directory.write_json(SUMMARY, result.plain())
        runs = [record.run_dir for record in result.results if record.finished]
        draw(path / CURVES, f"{maker.name}, {len(runs)} seeds", {maker.name: runs}, progress)
    return result


def seed_job(name: str, config: Config, seed: int, parent: Path) -> Job:
    """One seed in `parent/seed_N`."""
    own = {"seed": seed, "run_dir": str(parent / f"seed_{seed}"), "metrics.console": "lines"}
    return Job(name, config.replace(own))


def draw(path: Path, title: str, runs: Mapping[str, list[Path]], progress: Progress) -> None:
    """Draw the curves of groups of runs by label, where there are any and Pillow is installed."""
    lines = [Line(label, [curve for run in paths if (curve := read_curve(run))]) for label, paths in runs.items()]
    lines = [line for line in lines if line.curves]
    try:
        if lines:
            draw_curves(path, title, lines)
    except MissingExtraError as error:
        progress.note(f"no {path.name}: {error}")


def _result(path: Path, jobs: list[Job], campaign: Campaign) -> SeedsResult:
    return SeedsResult(path, [campaign.records[job.name] for job in jobs], campaign.interrupted)
