"""The rows of figures that a run writes between updates."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from millrace.run import Run

Row = dict[str, Any]  # numbers; an environment option may be a word


class Journal:
    """Reads figures off a run; alters nothing.

    Args:
        every_s: seconds between rows.
        env_steps: of the run when training began, or went on.
    """

    def __init__(self, every_s: float, env_steps: int) -> None:
        self._every_s = every_s
        self._begin_s = self._last_s = time.perf_counter()
        self._last_steps = env_steps

    @property
    def is_due(self) -> bool:
        return time.perf_counter() - self._last_s >= self._every_s

    def row(self, run: Run, stats: Row) -> Row:
        """Everything of `millrace.metrics.catalogue` that is known now."""
        now_s = time.perf_counter()
        row: Row = {
            "env_steps": run.env_steps,
            "time_s": round(run.wall_s, 4),
            "updates": run.learner.updates,
            "episodes": run.episodes,
            "imitation_steps": run.imitation_steps,
            "steps_per_second": (run.env_steps - self._last_steps) / max(now_s - self._last_s, 1e-9),
            **episode_figures(run),
            **stats,
            "skipped_steps": run.learner.skipped_steps,
            "skipped_updates": run.updates_skipped,
            **vars(run.source.counts),
            "worker_lag": run.source.worker_lag,
            "rollout_latency_s": run.source.rollout_latency_s,
            **run.source.buffer.figures(),
            **self.time_shares(run),
            **{f"option/{name}": value for name, value in run.source.pool.options.current.items()},
            "workers_up": sum(run.source.pool.is_up(worker) for worker in range(run.config.collect.workers)),
        }
        memory = run.source.pool.memory_bytes()
        if memory:
            row["worker_memory_mb"] = max(memory) / 2**20
        self._last_s, self._last_steps = now_s, run.env_steps
        return row

    def time_shares(self, run: Run) -> Row:
        """Where collectors and trainer spent their time since training began."""
        times = run.source.times
        collected_s = max(times.step_s + times.inference_s + times.other_s + times.wait_s, 1e-9)
        trained_s = max(time.perf_counter() - self._begin_s, 1e-9)
        learn, wait = run.learner.busy_s / trained_s, run.source.learner_wait_s / trained_s
        return {
            "share_step": times.step_s / collected_s,
            "share_inference": times.inference_s / collected_s,
            "share_collector_other": times.other_s / collected_s,
            "share_collector_wait": times.wait_s / collected_s,
            "share_learn": learn,
            "share_learner_wait": wait,
            "share_trainer_other": max(0.0, 1.0 - learn - wait),
        }

    def who_waited(self, run: Run) -> str:
        """One sentence on what held the run back."""
        shares = self.time_shares(run)
        if shares["share_learner_wait"] > shares["share_collector_wait"]:
            return (
                f"the learner waited {shares['share_learner_wait']:.0%} of the time for collectors, which spent "
                f"{shares['share_step']:.0%} in the environment: more workers or environments would help"
            )
        return (
            f"collectors waited {shares['share_collector_wait']:.0%} of the time for the learner, which learned "
            f"{shares['share_learn']:.0%} of it: fewer epochs or larger minibatches would help"
        )


def episode_figures(run: Run) -> Row:
    """Means over the last 100 training episodes, the game's own numbers among them."""
    if not run.recent:
        return {}
    figures = {
        "episode_return": run.mean_return,
        "episode_length_steps": float(np.mean([episode.length_steps for episode in run.recent])),
    }
    for name in run.recent[-1].figures:
        values = [episode.figures[name] for episode in run.recent if name in episode.figures]
        figures[f"game/{name}"] = float(np.mean(values))
    if run.eval_return is not None:
        figures["eval_return"] = run.eval_return
    return figures
