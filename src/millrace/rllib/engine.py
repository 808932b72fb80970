"""A run of Millrace's that RLlib trains: its directory, its display, its limits, and checkpoints in RLlib's format."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import threadpoolctl

from millrace import system
from millrace.checkpoints.store import PREFIX
from millrace.config import Config
from millrace.deploy.episodes import eval_return
from millrace.envs.make import EnvMaker
from millrace.errors import CheckpointError
from millrace.interval import Interval
from millrace.logbook import Logbook
from millrace.metrics.sinks import Row
from millrace.resolve import probe_env, resolve
from millrace.rllib.algorithm import DEFAULT_POLICY, SHARED_POLICY, make_algorithm, without_counterpart
from millrace.rllib.envs import offer, require_rllib
from millrace.rundir import RunDirectory
from millrace.stop_rules import reason_to_stop
from millrace.stop_signal import STOPPED_BY, StopSignal

COUNTERS_FILE = "millrace_counters.json"
LOSSES = {
    "policy_loss": "policy_loss",
    "entropy": "entropy",
    "mean_kl_loss": "kl",
    "vf_explained_var": "explained_variance",
}


@dataclasses.dataclass
class Counters:
    """What a run has come to, earlier processes included; beside RLlib's files in every checkpoint."""

    env_steps: int = 0
    episodes: int = 0
    updates: int = 0
    wall_s: float = 0.0
    mean_return: float | None = None
    best_score: float | None = None
    best_env_steps: int = -1


class RllibRun:
    """One run. A context manager: leaving it shuts down whatever of Ray it started.

    Args:
        resume_from: a checkpoint of the run in `config.run_dir`.
    """

    def __init__(
        self, config: Config, maker: EnvMaker, quiet: bool, started_s: float, resume_from: Path | None = None
    ) -> None:
        self._begin_s, self._requested, self._maker = started_s, config, maker
        self.logbook = Logbook(config, maker.name, quiet)
        self._resume_from = resume_from
        self.counters = Counters()
        self.stopping = ""
        self._owns_ray = False
        self._algorithm: Any = None
        self.eval_return: float | None = None
        self.signal = StopSignal(self._on_signal, lambda: None)

    def __enter__(self) -> RllibRun:
        try:
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _open(self) -> None:
        require_rllib()
        requested = self._requested
        self.logbook.open()
        self.directory = self.logbook.directory
        probe = probe_env(self._maker)
        self.config = dataclasses.replace(resolve(requested, probe), run_dir=str(self.directory.path))
        before = Config() if self._resume_from is None else self.directory.read_config()
        self.directory.write_config(self.config)
        lost = without_counterpart(requested, before, probe.spec)
        if lost:
            self.logbook.notes.append(f"RLlib has no counterpart of {', '.join(lost)}: left out")
        if self._resume_from is not None:
            self._load_counters(self._resume_from)
        self.signal.install()
        self._start_ray()
        _use_threads(self.config.ppo.threads)
        self._algorithm = make_algorithm(
            self.config, probe.spec, offer(self._maker, self.config, self.config.rllib.seats)
        )
        if self._resume_from is not None:
            self._algorithm.restore_from_path(str(self._resume_from.resolve()))
            self.logbook.notes.append(f"resumed at {self.counters.env_steps:,} steps, with new episodes")
        self._trained_s = self._last_row_s = time.perf_counter()
        self._first_steps = self._last_row_steps = self.counters.env_steps
        settings = self.config.checkpoint
        self._checkpoint_interval = Interval(self._first_steps, settings.every_env_steps, settings.every_s)
        self._eval_interval = Interval(self._first_steps, self.config.eval.every_env_steps)
        self._write_status("running")

    def _start_ray(self) -> None:
        """A local Ray without dashboard, unless there is one already."""
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what it will be by default
        import ray

        if ray.is_initialized():
            return
        self._owns_ray = True
        cores = max(system.available_cores(), self.config.collect.workers + 1)
        ray.init("local", num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)

    # Training ------------------------------------------------------------------------------------------------

    @property
    def is_complete(self) -> bool:
        return self.counters.env_steps >= self.config.total_env_steps

    @property
    def wall_s(self) -> float:
        """Seconds of this run, those of earlier processes included."""
        return time.perf_counter() - self._begin_s

    @property
    def steps_per_second(self) -> float:
        """Of this process, without its start."""
        return (self.counters.env_steps - self._first_steps) / max(time.perf_counter() - self._trained_s, 1e-9)

    def loop(self) -> None:
        """Have RLlib train, one batch after another, until the run is complete or asked to stop."""
        while not self.is_complete and not self.stopping:
            results = self._algorithm.train()
            self._record(results)
            self._evaluate_if_due()
            self._checkpoint_if_due()

    def _record(self, results: dict[str, Any]) -> None:
        """Count what an iteration brought, and write a row of figures if one is due."""
        runners, counters = results.get("env_runners", {}), self.counters
        before = counters.env_steps
        counters.env_steps = int(_first(results, runners, "num_env_steps_sampled_lifetime", counters.env_steps))
        counters.episodes = int(runners.get("num_episodes_lifetime", counters.episodes))
        counters.updates += counters.env_steps > before  # APPO returns now and then before anything has come
        mean_return = float(runners.get("episode_return_mean", math.nan))
        counters.mean_return = None if math.isnan(mean_return) else mean_return
        reason = reason_to_stop(
            self.config.stop,
            updates=counters.updates,
            episodes=counters.episodes,
            wall_s=self.wall_s,
            mean_return=counters.mean_return,
        )
        self.stopping = reason or self.stopping
        now_s = time.perf_counter()
        if now_s - self._last_row_s < self.config.metrics.every_s and not self.stopping and not self.is_complete:
            return
        self.logbook.write(self._row(results, now_s))
        self._last_row_s, self._last_row_steps = now_s, counters.env_steps

    def _row(self, results: dict[str, Any], now_s: float) -> Row:
        """Figures under the names of `millrace.metrics.catalogue`."""
        runners, counters = results.get("env_runners", {}), self.counters
        row: Row = {
            "env_steps": counters.env_steps,
            "time_s": round(self.wall_s, 4),
            "updates": counters.updates,
            "episodes": counters.episodes,
            "steps_per_second": (counters.env_steps - self._last_row_steps) / max(now_s - self._last_row_s, 1e-9),
        }
        if counters.mean_return is not None:
            row |= {"episode_return": counters.mean_return, "episode_length_steps": runners.get("episode_len_mean")}
        if self.eval_return is not None:
            row["eval_return"] = self.eval_return
        learned = results.get("learners", {}).get(DEFAULT_POLICY if self.config.rllib.seats == 1 else SHARED_POLICY, {})
        row |= {name: learned.get(theirs) for theirs, name in LOSSES.items()}
        row |= {
            "value_loss": _half(learned.get("vf_loss")),
            "learning_rate": learned.get("default_optimizer_learning_rate"),
        }
        row |= _shares(results.get("timers", {}))
        return _finite(row)

    def _evaluate_if_due(self) -> None:
        """Play the fixed evaluation seeds with the policy as it would be loaded."""
        if not self._eval_interval.is_over(self.counters.env_steps):
            return
        from millrace.deploy.policy import load_policy

        self._eval_interval.begin(self.counters.env_steps)
        written = self.checkpoint()
        if written is None:
            return
        actor = load_policy(written, trust=True).actor
        self.eval_return = eval_return(actor, self._maker, self.config.eval)

    # Checkpoints ---------------------------------------------------------------------------------------------

    def _checkpoint_if_due(self) -> None:
        if self._checkpoint_interval.is_over(self.counters.env_steps):
            self.checkpoint()

    def checkpoint(self) -> Path | None:
        """Write a checkpoint of RLlib's, aside first: it is either whole or not there. A full disk is survived."""
        counters = self.counters
        self._checkpoint_interval.begin(counters.env_steps)
        counters.wall_s = self.wall_s
        if counters.mean_return is not None and counters.mean_return > (counters.best_score or -math.inf):
            counters.best_score, counters.best_env_steps = counters.mean_return, counters.env_steps
        final = self.directory.checkpoints / f"{PREFIX}{counters.env_steps:012d}"
        aside = final.with_name(f".{final.name}.writing")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            self._algorithm.save_to_path(str(aside.resolve()))
            (aside / COUNTERS_FILE).write_text(json.dumps(dataclasses.asdict(counters)), encoding="utf-8")
            shutil.rmtree(final, ignore_errors=True)
            aside.replace(final)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            self.logbook.note(
                f"no checkpoint could be written at {counters.env_steps} steps ({error}); training goes on"
            )
            return None
        self._retire()
        self._write_status("running")
        return final

    def _retire(self) -> None:
        """Delete all but the newest and the best."""
        kept = self.config.checkpoint.keep_last
        best = f"{PREFIX}{self.counters.best_env_steps:012d}"
        for path in checkpoints_of(self.directory)[:-kept] if kept else []:
            if path.name != best:
                shutil.rmtree(path, ignore_errors=True)

    def _load_counters(self, checkpoint: Path) -> None:
        try:
            data = json.loads((checkpoint / COUNTERS_FILE).read_text(encoding="utf-8"))
            self.counters = Counters(**data)
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{checkpoint} cannot be resumed: its counters are not readable: {error}") from None
        self._begin_s -= self.counters.wall_s

    # Beginning and ending ------------------------------------------------------------------------------------

    def announce(self) -> None:
        """What a person wants to read at the start."""
        collect, ppo = self.config.collect, self.config.ppo
        place = "this process" if collect.backend == "serial" else f"{collect.workers} environment runners of Ray"
        lines = [
            f"run       {self.directory.path}",
            f"engine    RLlib's {self.config.rllib.algorithm}",
            f"collect   {place}, {collect.workers} x {collect.envs_per_worker} slots x {collect.rollout_steps} steps",
            f"learn     {ppo.epochs} epochs of minibatches of {ppo.minibatch_size}, {ppo.threads} threads, "
            f"{self.config.device}",
        ]
        self.logbook.announce(lines)

    def finish(self) -> None:
        """The last checkpoint and the last status."""
        self.checkpoint()
        self._write_status("complete" if self.is_complete else self.stopping or "stopped")

    def _write_status(self, state: str) -> None:
        self.logbook.write_status(state, self.counters.env_steps, self.wall_s, self.counters.mean_return)

    def _on_signal(self, name: str) -> None:
        self.stopping = f"{STOPPED_BY} {name}"

    def _close(self) -> None:
        if self._algorithm is not None:
            self._algorithm.stop()
        if self._owns_ray:
            import ray

            ray.shutdown()
        self.signal.restore()
        self.logbook.close()


def checkpoints_of(directory: RunDirectory) -> list[Path]:
    """Of a run that RLlib trained, oldest first."""
    found = directory.checkpoints.glob(f"{PREFIX}*/{COUNTERS_FILE}")
    return sorted(path.parent for path in found)


def newest_checkpoint(run: Path) -> Path:
    """The newest checkpoint of a run, or the one that is named.

    Raises:
        CheckpointError: there is none.
    """
    if (run / COUNTERS_FILE).is_file():
        return run
    found = checkpoints_of(RunDirectory(run))
    if not found:
        raise CheckpointError(f"there is no checkpoint in {run}")
    return found[-1]


def _use_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(max(1, threads))
    threadpoolctl.threadpool_limits(1, user_api="blas")


def _first(results: dict[str, Any], runners: dict[str, Any], name: str, default: Any) -> Any:
    return results.get(name, runners.get(name, default))


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
