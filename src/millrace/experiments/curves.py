"""Learning curves: return against steps, of one run and of several together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from millrace.metrics.rows import read_rows
from millrace.types import Array

POINTS = 200


@dataclass(frozen=True)
class Curve:
    """Mean return of the last 100 episodes, [N], at `env_steps`, [N], which ascend."""

    env_steps: Array
    episode_return: Array


@dataclass(frozen=True)
class Band:
    """Mean and sample standard deviation over curves, [N] each; the deviation of a single curve is 0."""

    env_steps: Array
    mean: Array
    deviation: Array


def read_curve(run_dir: Path) -> Curve | None:
    """The curve of a run; None where no episode has ended yet."""
    rows = [row for row in read_rows(run_dir) if row.get("episode_return") is not None]
    if not rows:
        return None
    return Curve(*(np.array([row[name] for row in rows], np.float64) for name in ("env_steps", "episode_return")))


def band(curves: list[Curve]) -> Band | None:
    """Curves together, over the steps that all of them cover; None where there are no such steps."""
    if not curves:
        return None
    first = max(curve.env_steps[0] for curve in curves)
    last = min(curve.env_steps[-1] for curve in curves)
    if last < first:
        return None
    env_steps = np.linspace(first, last, POINTS)
    returns = np.stack([np.interp(env_steps, curve.env_steps, curve.episode_return) for curve in curves])
    deviation = returns.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(POINTS)
    return Band(env_steps, returns.mean(axis=0), deviation)
