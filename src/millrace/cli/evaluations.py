"""Episodes and what came of them, for people and for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from millrace.cli.output import number, print_table
from millrace.deploy.detail import Step
from millrace.deploy.statistics import deviation, mean_interval

if TYPE_CHECKING:
    from millrace.deploy.compare import Comparison
    from millrace.deploy.evaluate import Evaluation
    from millrace.types import EpisodeRecord

SUMMARY = ("", "mean", "deviation", "from", "to", "min", "max")
SUMMARY_NOTE = "from .. to: the 95 % interval of the mean (bootstrap)"
STEP_HEADER = ("step", "action", "probability", "entropy", "value", "reward", "return", "most probable")
MOST_OPTIONS = 3


class EpisodeLines:
    """A line for each episode, in the order of their indices, and below them, on a terminal, how far it is."""

    def __init__(self, episodes: int) -> None:
        self._waiting: dict[int, EpisodeRecord] = {}
        self._next = 0
        self._widths: list[int] = []
        self._figures: list[str] = []
        self._bar = _Bar(episodes) if sys.stdout.isatty() else None

    def __enter__(self) -> EpisodeLines:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def tell(self, index: int, record: EpisodeRecord) -> None:
        """An episode that has ended; it is shown when those before it have been."""
        self._waiting[index] = record
        if self._bar is not None:
            self._bar.advance()
        while self._next in self._waiting:
            self._show(self._next, self._waiting.pop(self._next))
            self._next += 1

    def _show(self, index: int, record: EpisodeRecord) -> None:
        if not self._widths:
            self._figures = list(record.figures)
            header = ["episode", "seed", "return", "steps", *self._figures]
            self._widths = [max(len(cell), 7) for cell in header]
            self._print(header)
        figures = [number(record.figures.get(name, float("nan"))) for name in self._figures]
        self._print([str(index), str(record.seed), number(record.episode_return), str(record.length_steps), *figures])

    def _print(self, cells: list[str]) -> None:
        line = "  ".join(cell.rjust(width) for cell, width in zip(cells, self._widths, strict=True))
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.print(line)


class _Bar:
    """Progress on a terminal, below what is printed."""

    def __init__(self, episodes: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("episodes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, transient=True)
        self._task = self._progress.add_task("", total=episodes)
        self._progress.start()

    def advance(self) -> None:
        self._progress.advance(self._task)

    def print(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False, no_wrap=True, overflow="ellipsis")

    def close(self) -> None:
        self._progress.stop()


def print_summary(played: Evaluation) -> None:
    """Return, length and the game's own figures; the best and the worst episode."""
    print_table([[name, *_summary(values)] for name, values in _columns(played).items()], SUMMARY)
    print(f"\n{SUMMARY_NOTE}")
    for name, index in (("best", played.best), ("worst", played.worst)):
        record = played.episodes[index]
        print(f"{name + ':':<6} return {number(record.episode_return)} in episode {index}, seed {record.seed}")


def _columns(played: Evaluation) -> dict[str, Any]:
    lengths = [episode.length_steps for episode in played.episodes]
    figures = {name: played.figure(name) for name in played.episodes[0].figures}
    return {"return": played.returns, "length (steps)": lengths, **figures}


def _summary(values: Any) -> list[str]:
    # A figure may be missing from some episodes.
    known = np.asarray(values, float)[~np.isnan(np.asarray(values, float))]
    if not len(known):
        return ["-"] * (len(SUMMARY) - 1)
    figures = (known.mean(), deviation(known), *mean_interval(known), known.min(), known.max())
    return [number(float(figure)) for figure in figures]


def plain(played: Evaluation) -> dict[str, Any]:
    """For JSON."""
    return {
        "mean_return": played.mean_return,
        "deviation": _or_none(played.deviation),
        "confidence_interval": [_or_none(bound) for bound in played.confidence_interval],
        "best": played.best,
        "worst": played.worst,
        "episodes": [vars(episode) for episode in played.episodes],
    }


def _or_none(value: float) -> float | None:
    return None if value != value else value


def print_comparison(evaluations: Mapping[str, Evaluation], comparisons: Mapping[str, Comparison]) -> None:
    """A row for each policy, and a sentence for each but the first, with which they are compared."""
    print_table([[name, *_summary(played.returns)] for name, played in evaluations.items()], ("return", *SUMMARY[1:]))
    print(f"\n{SUMMARY_NOTE}\n")
    first = next(iter(evaluations))
    for name, comparison in comparisons.items():
        print(comparison.sentence(name, first))
    if len(comparisons) > 1:
        print(f"\nIntervals and p allow for {len(comparisons)} comparisons at once.")


def print_steps(steps: Iterable[Step]) -> None:
    """A line for each step."""
    print_table([_step_cells(step) for step in steps], STEP_HEADER)


def _step_cells(step: Step) -> list[str]:
    insight = step.insight
    figures = (insight.probability, insight.entropy, insight.value, step.reward, step.return_so_far)
    return [str(step.step), action_text(step.action), *map(number, figures), _most_probable(step)]


def _most_probable(step: Step) -> str:
    """The likeliest categories, or where the continuous columns lie."""
    insight, many = step.insight, len(step.insight.probabilities) > 1
    likely = sorted(insight.options, key=lambda option: -option.probability)[:MOST_OPTIONS]
    words = [f"{f'{o.column}:' * many}{o.category} {o.probability:.0%}" for o in likely if o.probability >= 0.005]
    words += [f"{mean:.2f}±{deviation:.2f}" for mean, deviation in zip(insight.mean, insight.deviation, strict=True)]
    return ", ".join(words)


def action_text(action: Any) -> str:
    """An action in one word."""
    if isinstance(action, dict):
        return "{" + ",".join(f"{key}:{action_text(part)}" for key, part in action.items()) + "}"
    if isinstance(action, tuple | list | np.ndarray) and np.ndim(action):
        return "[" + ",".join(action_text(part) for part in action) + "]"
    return f"{float(action):.4g}"


def plain_step(step: Step) -> dict[str, Any]:
    """For JSON."""
    return {
        "step": step.step,
        "action": action_text(step.action),
        "probability": step.insight.probability,
        "entropy": step.insight.entropy,
        "value": step.insight.value,
        "reward": step.reward,
        "return": step.return_so_far,
        "probabilities": [column.tolist() for column in step.insight.probabilities],
        "mean": step.insight.mean.tolist(),
        "deviation": step.insight.deviation.tolist(),
    }
