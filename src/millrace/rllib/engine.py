"""A run of Millrace's that RLlib trains: the same directory, display and limits, around RLlib's algorithm."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from pathlib import Path
from typing import Any

import threadpoolctl

from millrace.collect.ray_session import RaySession
from millrace.config import Config, RayConfig
from millrace.deploy.episodes import eval_return
from millrace.envs.make import EnvMaker
from millrace.interval import Interval
from millrace.logbook import Logbook
from millrace.resolve import probe_env, resolve
from millrace.rllib.algorithm import make_algorithm, without_counterpart
from millrace.rllib.checkpoints import Counters, retire, write_checkpoint
from millrace.rllib.envs import offer, require_rllib
from millrace.rllib.journal import RllibJournal
from millrace.stop_rules import reason_to_stop
from millrace.stop_signal import STOPPED_BY, StopSignal


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
        self._opened = contextlib.ExitStack()
        self.eval_return: float | None = None
        self.signal = StopSignal(self._on_signal, lambda: None)

    def __enter__(self) -> RllibRun:
        try:
            self._open()
        except BaseException:
            self._opened.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def _open(self) -> None:
        require_rllib()
        requested = self._requested
        self._opened.callback(self.logbook.close)
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
            self.counters = Counters.read(self._resume_from)
            self._begin_s -= self.counters.wall_s
        self._opened.callback(self.signal.restore)
        self.signal.install()
        self._start_ray()
        _use_threads(self.config.ppo.threads)
        self._algorithm = make_algorithm(
            self.config, probe.spec, offer(self._maker, self.config, self.config.rllib.seats)
        )
        self._opened.callback(self._algorithm.stop)
        if self._resume_from is not None:
            self._algorithm.restore_from_path(str(self._resume_from.resolve()))
            self.logbook.notes.append(f"resumed at {self.counters.env_steps:,} steps, with new episodes")
        self._trained_s, self._first_steps = time.perf_counter(), self.counters.env_steps
        self._journal = RllibJournal(self.config.metrics.every_s, self._first_steps)
        settings = self.config.checkpoint
        self._checkpoint_interval = Interval(self._first_steps, settings.every_env_steps, settings.every_s)
        self._eval_interval = Interval(self._first_steps, self.config.eval.every_env_steps)
        self._write_status("running")

    def _start_ray(self) -> None:
        """A local Ray without dashboard, unless there is one already."""
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what it will be by default
        session = RaySession(dataclasses.replace(self.config, ray=RayConfig()))  # [ray] is about our own actors
        self._opened.callback(session.close)
        session.wait()

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
        steps, before = "num_env_steps_sampled_lifetime", counters.env_steps
        counters.env_steps = int(results.get(steps, runners.get(steps, before)))
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
        if self._journal.is_due or self.stopping or self.is_complete:
            self.logbook.write(self._journal.row(self, results))

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
        """Write one now and delete those that are no longer kept; a full disk is told about and survived."""
        counters = self.counters
        self._checkpoint_interval.begin(counters.env_steps)
        counters.wall_s = self.wall_s
        best_score = -math.inf if counters.best_score is None else counters.best_score
        if counters.mean_return is not None and counters.mean_return > best_score:
            counters.best_score, counters.best_env_steps = counters.mean_return, counters.env_steps
        try:
            written = write_checkpoint(self._algorithm, counters, self.directory)
        except OSError as error:
            self.logbook.note(
                f"no checkpoint could be written at {counters.env_steps} steps ({error}); training goes on"
            )
            return None
        retire(self.directory, self.config.checkpoint.keep_last, counters.best_env_steps)
        self._write_status("running")
        return written

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


def _use_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(max(1, threads))
    threadpoolctl.threadpool_limits(1, user_api="blas")
