"""A run: what it is made of, and what happens between updates."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import threadpoolctl

from millrace import system
from millrace.buffer.batch import Batch
from millrace.checkpointer import Checkpointer
from millrace.checkpoints.store import Checkpoint
from millrace.collect.scaling import Scaler
from millrace.composer import NO_EXTRAS, Composer, Extras
from millrace.config import Config
from millrace.curriculum import Curriculum
from millrace.deploy.episodes import eval_return
from millrace.deploy.record import PolicyRecord
from millrace.deploy.rllib_checkpoint import RllibCheckpoint
from millrace.describe import describe_run
from millrace.envs.make import EnvMaker
from millrace.interval import Interval
from millrace.journal import Journal
from millrace.logbook import Logbook
from millrace.publisher import Publisher
from millrace.resolve import Probe, probe_env, resolve
from millrace.stop_rules import RECENT_EPISODES, reason_to_stop
from millrace.stop_signal import STOPPED_BY, StopSignal
from millrace.types import EpisodeRecord
from millrace.warm_start import WarmStart, warm_start
from millrace.watch import Watch

if TYPE_CHECKING:
    from millrace.collect.ray_session import RaySession

SLOW_PROBE_S = 1.0


class Run:
    """Everything that the loop touches. A context manager: leaving it stops workers and closes files."""

    def __init__(
        self,
        config: Config,
        maker: EnvMaker,
        network: Any = None,
        resume_from: Checkpoint | None = None,
        init_from: Checkpoint | RllibCheckpoint | None = None,
        quiet: bool = False,
        started_s: float | None = None,
        extras: Extras = NO_EXTRAS,
    ) -> None:
        self.begin_s = time.perf_counter() if started_s is None else started_s  # resumed: that much earlier
        self.stopping = ""
        self._maker, self._network = maker, network
        self._resume_from, self._init_from = resume_from, init_from
        self._extras = extras
        self._requested = config
        self.logbook = Logbook(config, maker.name, quiet)
        self._opened = contextlib.ExitStack()
        self.signal = StopSignal(self._on_signal, self._kill_workers)
        self.env_steps, self.episodes, self.updates_skipped = 0, 0, 0
        self.imitation_steps = 0
        self.recent: collections.deque[EpisodeRecord] = collections.deque(maxlen=RECENT_EPISODES)
        self.eval_return: float | None = None
        self._watch = Watch()
        self.ray: RaySession | None = None

    def __enter__(self) -> Run:
        try:
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    # Opening -------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._opened.callback(threadpoolctl.threadpool_limits(1, user_api="blas").restore_original_limits)
        if self._requested.collect.backend == "ray":
            from millrace.collect.ray_session import begin

            self.ray = begin(self._requested)  # a cluster takes seconds to come, and so does what follows
            self._opened.callback(self.ray.close)
        self._opened.callback(self.logbook.close)
        self.logbook.open()
        self.directory = self.logbook.directory
        self.probe = self._probe()
        self.config = self._resolve()
        self.directory.write_config(self.config)
        self._compose()
        states = self._checkpointer.restore(self, self._resume_from) if self._resume_from else None
        self.publish()
        self.source.pool.start()
        self.record_faults()
        if self._resume_from:
            self._checkpointer.restore_collectors(self, states)
        self.journal = Journal(self.config.metrics.every_s, self.env_steps)
        settings = self.config.checkpoint
        self._checkpoint_interval = Interval(self.env_steps, settings.every_env_steps, settings.every_s)
        self._eval_interval = Interval(self.env_steps, self.config.eval.every_env_steps)
        self._write_status("running")

    def _probe(self) -> Probe:
        begin_s = time.perf_counter()
        curriculum = Curriculum(self._requested.curriculum, self._requested.total_env_steps)
        probe = probe_env(self._maker, curriculum.stages())
        took_s = time.perf_counter() - begin_s
        if took_s > SLOW_PROBE_S:
            self.logbook.note(f"{self._maker.name} was made ready in {took_s:.1f} s (compiled games are cached)")
        return probe

    def _resolve(self) -> Config:
        config = self._requested
        if self.ray is not None and self.ray.address and not config.collect.workers:
            config = config.replace({"collect.workers": self.ray.workers_that_fit()})
        return dataclasses.replace(resolve(config, self.probe, self._network), run_dir=str(self.directory.path))

    def _compose(self) -> None:
        """Make the parts, from the policy outwards."""
        config, probe = self.config, self.probe
        composer = Composer(config, probe, self._maker, self._network, self._extras)
        curriculum = Curriculum(config.curriculum, config.total_env_steps)
        policy = composer.make_policy()
        start = WarmStart()
        if self._resume_from is None:
            start = warm_start(policy, composer, self._init_from, curriculum.at(0), self.logbook.note)
        self.imitation_steps = start.imitation_steps
        self.learner = composer.make_learner(policy, start.reward_statistics)
        self.signal.install()
        self.source = composer.make_source(self.learner, self.ray)
        self._opened.callback(self.source.close)
        normalizes = config.ppo.normalize_observation
        record = PolicyRecord(config.env, probe.spec, *probe.spaces, config.net, normalizes).to_json()
        self._publisher = Publisher(config, self.learner, self.source, curriculum, record, self.logbook)
        self._checkpointer = Checkpointer(config, record, self.logbook)
        self.scaler = Scaler(config.collect)

    # Between updates -----------------------------------------------------------------------------------------

    def should_stop(self) -> bool:
        """Whether waiting for the next batch has become pointless: asked to stop, and the grace is over."""
        return self.signal.grace_is_over

    def publish(self) -> None:
        """Make the learner's weights the newest ones, and the environment options those of this moment."""
        self._publisher.publish(self.env_steps, self.progress)

    @property
    def progress(self) -> float:
        """Of the run, 0..1, by environment steps."""
        return min(1.0, self.env_steps / self.config.total_env_steps)

    def record(self, batch: Batch, stats: dict[str, float]) -> None:
        """Count a batch, write a row of figures if one is due, and see whether it is time to end."""
        self.env_steps += batch.env_steps
        self.episodes += len(batch.episodes)
        self.recent.extend(batch.episodes)
        self.record_faults()
        change = self.scaler.adjust(self.source, self.progress)
        if change:
            self.logbook.note(change)
        self.stopping = self._reason_to_stop() or self.stopping
        if self.journal.is_due or self.stopping or self.is_complete:
            row = self.journal.row(self, stats)
            self.logbook.write(row)
            for sentence in self._watch.see(row, self.progress):
                self.logbook.note(sentence)

    @property
    def is_complete(self) -> bool:
        return self.env_steps >= self.config.total_env_steps

    @property
    def mean_return(self) -> float:
        """Mean return of the last 100 training episodes; nan before the first."""
        return float(np.mean([e.episode_return for e in self.recent])) if self.recent else float("nan")

    @property
    def wall_s(self) -> float:
        """Seconds of this run, those of earlier processes included."""
        return time.perf_counter() - self.begin_s

    def _reason_to_stop(self) -> str:
        return reason_to_stop(
            self.config.stop,
            updates=self.learner.updates,
            episodes=self.episodes,
            wall_s=self.wall_s,
            mean_return=self.mean_return,
        )

    def record_faults(self) -> None:
        """Tell what happened to workers since the last time."""
        setup = self.source.pool.setup
        while setup.notes:
            self.logbook.note(setup.notes.pop(0))
        while setup.faults:
            fault = setup.faults.pop(0)
            self.logbook.note(fault.report(self.directory.path / "crashes", dataclasses.asdict(self.config.env)))

    def add_notes(self, notes: list[str]) -> None:
        """Sentences to tell at the start."""
        self.logbook.notes += notes

    def evaluate_if_due(self) -> None:
        """Play the fixed evaluation seeds if enough steps have passed."""
        if not self._eval_interval.is_over(self.env_steps):
            return
        self._eval_interval.begin(self.env_steps)
        actor = self.source.pool.setup.actor_maker.make()
        actor.load(self.learner.weights())
        self.eval_return = eval_return(actor, self._maker, self.config.eval)
        if self._checkpointer.note_score(self.eval_return, self.env_steps):
            self.checkpoint()

    def checkpoint_if_due(self) -> None:
        """Write a checkpoint if enough steps or seconds have passed."""
        if self._checkpoint_interval.is_over(self.env_steps):
            self.checkpoint()

    def checkpoint(self) -> Checkpoint | None:
        """Write a checkpoint now; a full disk is told about and survived."""
        self._checkpoint_interval.begin(self.env_steps)
        written = self._checkpointer.write(self)
        if written is not None:
            self._write_status("running")
        return written

    # Beginning and ending ------------------------------------------------------------------------------------

    def announce(self) -> None:
        """Tell the screen, if there is one, what `describe` says."""
        self.logbook.announce(self.describe())

    def describe(self) -> list[str]:
        """What a person wants to read at the start: sizes and the choices that were made."""
        return describe_run(self)

    def finish(self) -> None:
        """The last checkpoint and the last status."""
        if self.signal.was_given and self.source.drain():
            self.logbook.note(f"dropped {self.source.counts.dropped_env_steps} collected steps to stop in time")
        self.checkpoint()
        if self.learner.updates:
            self.logbook.note(self.journal.who_waited(self))
        self._write_status("complete" if self.is_complete else self.stopping or "stopped")

    def _write_status(self, state: str) -> None:
        self.logbook.write_status(state, self.env_steps, self.wall_s, self.mean_return)

    def _on_signal(self, name: str) -> None:
        self.stopping = f"{STOPPED_BY} {name}"

    def _kill_workers(self) -> None:
        pool = self.source.pool if hasattr(self, "source") else None
        for pid in getattr(pool, "pids", list)():
            system.kill(pid)

    def _close(self) -> None:
        self.signal.restore()
        self._opened.close()
