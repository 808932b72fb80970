"""The rows of figures of a run that RLlib trains, from what RLlib tells."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from millrace.metrics.sinks import Row
from millrace.rllib.algorithm import DEFAULT_POLICY, SHARED_POLICY

if TYPE_CHECKING:
    from millrace.rllib.engine import RllibRun

LOSSES = {
    "policy_loss": "policy_loss",
    "entropy": "entropy",
    "mean_kl_loss": "kl",
    "vf_explained_var": "explained_variance",
}


class RllibJournal:
    """Reads figures off a run and RLlib's results; alters nothing.

    Args:
        every_s: seconds between rows.
        env_steps: of the run when training began, or went on.
    """

    def __init__(self, every_s: float, env_steps: int) -> None:
        self._every_s = every_s
        self._last_s, self._last_steps = time.perf_counter(), env_steps

    @property
    def is_due(self) -> bool:
        return time.perf_counter() - self._last_s >= self._every_s

    def row(self, run: RllibRun, results: dict[str, Any]) -> Row:
        """Figures under the names of `millrace.metrics.catalogue`."""
        now_s = time.perf_counter()
        runners, counters = results.get("env_runners", {}), run.counters
        row: Row = {
            "env_steps": counters.env_steps,
            "time_s": round(run.wall_s, 4),
            "updates": counters.updates,
            "episodes": counters.episodes,
            "steps_per_second": (counters.env_steps - self._last_steps) / max(now_s - self._last_s, 1e-9),
        }
        if counters.mean_return is not None:
            row |= {"episode_return": counters.mean_return, "episode_length_steps": runners.get("episode_len_mean")}
        if run.eval_return is not None:
            row["eval_return"] = run.eval_return
        learned = results.get("learners", {}).get(DEFAULT_POLICY if run.config.rllib.seats == 1 else SHARED_POLICY, {})
        row |= {name: learned.get(theirs) for theirs, name in LOSSES.items()}
        row |= {
            "value_loss": _half(learned.get("vf_loss")),
            "learning_rate": learned.get("default_optimizer_learning_rate"),
        }
        row |= _shares(results.get("timers", {}))
        self._last_s, self._last_steps = now_s, counters.env_steps
        return _finite(row)


def _half(value: Any) -> Any:
    return None if value is None else value / 2


def _shares(timers: dict[str, Any]) -> Row:
    """Where an iteration's time went: the trainer waits while RLlib samples."""
    whole = timers.get("training_iteration")
    if not whole:
        return {}
    learn, wait = (timers.get(f"{name}_timer", 0.0) / whole for name in ("learner_update", "env_runner_sampling"))
    return {"share_learn": learn, "share_learner_wait": wait, "share_trainer_other": max(0.0, 1 - learn - wait)}


def _finite(row: Row) -> Row:
    """Plain numbers alone: RLlib leaves out or gives nan for what it does not know yet."""
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in row.items()}
    return {name: value for name, value in plain.items() if isinstance(value, int | float) and math.isfinite(value)}
