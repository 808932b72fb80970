"""Composition of a run: its directory, its parts, and what happens between updates."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import threadpoolctl

from millrace import __version__, system
from millrace.buffer.batch import Batch
from millrace.buffer.queue import RolloutQueue
from millrace.buffer.slab import Slab
from millrace.checkpoints.store import Checkpoint, CheckpointStore
from millrace.collect.load import LoadMeter
from millrace.collect.pool import CollectorPool
from millrace.collect.scaling import workers_scheduled, workers_wanted
from millrace.collect.setup import PoolSetup
from millrace.collect.source import Buffer, RolloutSource
from millrace.collect.supervision import INFERENCE
from millrace.config import Config, RayConfig
from millrace.curriculum import Curriculum
from millrace.deploy.episodes import play_episodes
from millrace.deploy.policy_pool import PolicyPool
from millrace.deploy.record import PolicyRecord
from millrace.deploy.rllib_checkpoint import RllibCheckpoint
from millrace.describe import describe_correction, describe_inference, describe_lag, describe_replay
from millrace.envs.make import EnvMaker
from millrace.envs.protocol import episode_seed
from millrace.errors import CheckpointError, ConfigError
from millrace.interval import Interval
from millrace.journal import Journal
from millrace.learner.intrinsic import Intrinsic
from millrace.learner.ppo import Learner
from millrace.logbook import Logbook
from millrace.nets.actor import ActorMaker
from millrace.nets.inputs import image_keys
from millrace.resolve import Probe, batch_size_rows, items_per_rollout, probe_env, resolve
from millrace.stop_rules import RECENT_EPISODES, reason_to_stop
from millrace.stop_signal import STOPPED_BY, StopSignal
from millrace.types import EpisodeRecord, RolloutLayout
from millrace.watch import Watch

if TYPE_CHECKING:
    from millrace.collect.ray_session import RaySession
    from millrace.nets.policy import Policy

SLOW_PROBE_S = 1.0
SPARE_ROLLOUTS = 1  # one more place than the lag allows in flight, so that a grant never waits for a copy


@dataclasses.dataclass(frozen=True)
class Extras:
    """What a user adds to learning from Python.

    Attributes:
        intrinsic: makes a `millrace.learner.intrinsic.Intrinsic` from the `SlotSpec`.
        auxiliary: makes a `millrace.learner.auxiliary.Auxiliary` from the `Policy`.
    """

    intrinsic: Callable[..., Any] | None = None
    auxiliary: Callable[..., Any] | None = None


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
        extras: Extras = Extras(),
    ) -> None:
        self._begin_s = time.perf_counter() if started_s is None else started_s
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
        self._earlier_s = 0.0  # spent by earlier processes of this run
        self._best_score = -np.inf
        self.eval_return: float | None = None
        self._last_published_s = 0.0
        self._watch = Watch()
        self.ray: RaySession | None = None
        self._loads = LoadMeter()

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
        config = self._requested
        if config.collect.backend == "ray":
            from millrace.collect.ray_session import begin

            self.ray = begin(config)  # a cluster takes seconds to come, and so does what follows
            self._opened.callback(self.ray.close)
        self._opened.callback(self.logbook.close)
        self.logbook.open()
        self.directory = self.logbook.directory
        self.probe: Probe = self._probe()
        if self.ray is not None and self.ray.address and not config.collect.workers:
            config = config.replace({"collect.workers": self.ray.workers_that_fit()})
        self.config = dataclasses.replace(resolve(config, self.probe, self._network), run_dir=str(self.directory.path))
        self.directory.write_config(self.config)
        self.store = CheckpointStore(self.directory.checkpoints, self.config.checkpoint)
        self.curriculum = Curriculum(self.config.curriculum, self.config.total_env_steps)
        self.learner = self._make_learner()
        self.signal.install()
        self.source = self._make_source()
        self._opened.callback(self.source.close)
        states = self._restore() if self._resume_from else None
        self.publish()
        self.source.pool.start()
        self.record_faults()
        if self._resume_from:
            self._restore_collectors(states)
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

    def _make_learner(self) -> Learner:
        import torch

        from millrace.nets.policy import Policy

        torch.set_num_threads(self.config.ppo.threads)
        torch.manual_seed(self.config.seed)
        policy = Policy(self.probe.spec, self.config.net, self.config.ppo.normalize_observation, self._network)
        policy.to(self.config.device)
        if image_keys(self.probe.spec, self.config.net):
            system.keep_freed_memory()
        reward_statistics = self._warm_start(policy)
        auxiliary = None if self._extras.auxiliary is None else self._extras.auxiliary(policy).to(self.config.device)
        learner = Learner(
            policy,
            self.config.ppo,
            self.config.total_env_steps,
            self.config.seed,
            self._make_intrinsic(),
            auxiliary,
            self.config.replay,
        )
        if reward_statistics is not None:
            learner.load_reward_statistics(reward_statistics)
        return learner

    def _warm_start(self, policy: Policy) -> dict[str, Any] | None:
        """Weights to begin with besides random ones; the reward statistics that their values are in units of."""
        if self._init_from is not None:
            load_into(policy, self._init_from)
            return self._statistics_of(self._init_from)
        if not self.config.imitate.player or self._resume_from is not None:
            return None
        from millrace.imitation import imitate

        options = self.curriculum.at(0)
        done = imitate(policy, self._actor_maker(), self._maker, self.config, options, self.logbook.note)
        self.imitation_steps = done.env_steps
        self.logbook.note(
            f"imitated {self.config.imitate.player} for {done.env_steps:,} steps, which count apart, in "
            f"{done.wall_s:.1f} s: {done.describe()}"
        )
        return {"reward_scaler": done.reward_statistics}

    def _statistics_of(self, checkpoint: Checkpoint | RllibCheckpoint) -> dict[str, Any] | None:
        """Of rewards, by the learner that wrote the checkpoint; None where only its policy is whole."""
        try:
            statistics: dict[str, Any] = checkpoint.read_trainer()["learner"]
            return statistics
        except CheckpointError as error:
            self.logbook.note(f"reward statistics begin anew: {error}")
            return None

    def _actor_maker(self) -> ActorMaker:
        config = self.config
        return ActorMaker(self.probe.spec, config.net, config.ppo.normalize_observation, self._network)

    def _make_intrinsic(self) -> Intrinsic | None:
        config = self.config
        if self._extras.intrinsic is not None and config.replay.is_on:
            raise ConfigError("intrinsic=... is a reward as of now, which replay makes stale; leave [replay] out")
        if not config.rnd.coef:
            return None if self._extras.intrinsic is None else self._extras.intrinsic(self.probe.spec)
        if self._extras.intrinsic is not None:
            raise ConfigError(f"rnd.coef={config.rnd.coef} and intrinsic=... are both rewards; set rnd.coef=0")
        from millrace.learner.rnd import RND

        return RND(self.probe.spec, config.net, config.rnd, config.device, config.seed)

    def _make_source(self) -> RolloutSource:
        config = self.config
        policy = self.learner.policy
        layout = RolloutLayout(
            self.probe.spec,
            config.collect.rollout_steps,
            config.collect.envs_per_worker,
            self.probe.same_step_reset,
            policy.state_size,
        )
        held = num_rollouts(config)
        self.buffer_bytes = Slab.nbytes(layout, held)
        refuse_beyond_memory(self.buffer_bytes, f"the {held:,} rollouts that the buffer holds")
        setup = PoolSetup(
            env_maker=self._maker,
            actor_maker=self._actor_maker(),
            layout=layout,
            config=config.collect,
            seed=config.seed,
            num_rollouts=held,
            weights_size=len(self.learner.weights()),
            num_versions=config.collect.max_policy_lag + 2 if config.collect.deterministic else 2,
            device=config.device,
            keeps_rollouts=config.replay.is_on,
        )
        pool = make_pool(setup, config.ray, self.ray)
        return RolloutSource(pool, config.collect, make_buffer(pool.slab, config), config.replay.is_on)

    # Between updates -----------------------------------------------------------------------------------------

    def should_stop(self) -> bool:
        """Whether waiting for the next batch has become pointless: asked to stop, and the grace is over."""
        return self.signal.grace_is_over

    def publish(self) -> None:
        """Make the learner's weights the newest ones, and the environment options those of this moment."""
        self.source.updates, self.source.progress = self.learner.updates, self.progress
        if self._is_publishing_due:
            self.source.publish(self.learner.weights())
            self._last_published_s = time.perf_counter()
        self._add_to_pool()
        options = self.curriculum.at(self.env_steps)
        if options != self.source.pool.options.current:
            self.source.pool.options.current = options
            self.logbook.log(f"at {self.env_steps:,} steps: " + ", ".join(f"{k}={v}" for k, v in options.items()))

    def _add_to_pool(self) -> None:
        """The policy as a file among those of recent updates, if they are wanted; a full disk is survived."""
        settings = self.config.checkpoint
        if not settings.pool_versions or self.learner.updates % settings.pool_every_updates:
            return
        pool = PolicyPool(self.directory.path / "pool", settings.pool_versions)
        try:
            pool.add(self._policy_record(), self._policy_arrays(), self.learner.updates, self.env_steps, __version__)
        except CheckpointError as error:
            self.logbook.note(f"{error}; training goes on")

    @property
    def _is_publishing_due(self) -> bool:
        settings = self.config.collect
        passed = self.learner.updates - self.source.version
        if not self.source.has_published:
            return True
        is_time = time.perf_counter() - self._last_published_s >= settings.publish_every_s
        return passed >= settings.publish_every_updates and is_time

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
        self._scale_workers()
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
        return self._earlier_s + time.perf_counter() - self._begin_s

    def _scale_workers(self) -> None:
        """As many workers as the schedule or the machine says, if either is asked; each change is told."""
        pool, settings = self.source.pool, self.config.collect
        before, reason = pool.active, ""
        if settings.workers_schedule:
            pool.active = workers_scheduled(settings.workers_schedule, self.progress, settings.workers)
            reason = f"{self.progress:.0%} of the run is done"
        elif settings.scaling == "machine":
            load = self._loads.since_last(self.source)
            if load is not None:
                pool.active, reason = workers_wanted(before, settings.min_workers, settings.workers, load)
        if pool.active != before:
            self.logbook.note(f"{pool.active} workers instead of {before}: {reason}")

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
        faults = setup.faults
        while faults:
            fault = faults.pop(0)
            if fault.worker == INFERENCE:
                self.logbook.note(f"{fault.message} ({fault.kind}): restarted; what it was asked waits")
                continue
            try:
                file = fault.write(self.directory.path / "crashes", self._env_record())
                # A worker that had not begun, or a killed actor on Ray, leaves no episodes to play again.
                where = f"; reproduce: millrace replay {file}" if fault.slots else f"; {file} has what is known of it"
            except OSError as error:
                where = f"; its crash file could not be written: {error.strerror}"
            self.logbook.note(f"{fault.message} ({fault.kind}): restarted{where}")

    def add_notes(self, notes: list[str]) -> None:
        """Sentences to tell at the start."""
        self.logbook.notes += notes

    def _env_record(self) -> dict[str, Any]:
        return dataclasses.asdict(self.config.env)

    def evaluate_if_due(self) -> None:
        """Play the fixed evaluation seeds if enough steps have passed."""
        if not self._eval_interval.is_over(self.env_steps):
            return
        self._eval_interval.begin(self.env_steps)
        settings = self.config.eval
        actor_maker = self.source.pool.setup.actor_maker
        actor = actor_maker.make()
        actor.load(self.learner.weights())
        maker = self._maker.with_kwargs(**settings.kwargs)
        records = play_episodes(actor, maker, settings.episodes, settings.seed, settings.deterministic)
        self.eval_return = float(np.mean([record.episode_return for record in records]))
        if self.eval_return > self._best_score:
            self._best_score = self.eval_return
            self.store.best_env_steps = self.env_steps
            self.checkpoint()

    def checkpoint_if_due(self) -> None:
        """Write a checkpoint if enough steps or seconds have passed."""
        if self._checkpoint_interval.is_over(self.env_steps):
            self.checkpoint()

    def checkpoint(self) -> Checkpoint | None:
        """Write a checkpoint now; a full disk is told about and survived."""
        self._checkpoint_interval.begin(self.env_steps)
        if not self.config.eval.every_env_steps and self.recent and self.mean_return > self._best_score:
            self._best_score, self.store.best_env_steps = self.mean_return, self.env_steps
        try:
            written = self.store.write(
                self.env_steps, self._policy_record(), self._policy_arrays(), self._trainer_state(), __version__
            )
            for path in self.store.retire():
                self.logbook.log(
                    f"deleted the checkpoint {path.name}: checkpoint.keep_last={self.config.checkpoint.keep_last}"
                )
            self._write_status("running")
            return written
        except OSError as error:
            self.logbook.note(f"no checkpoint could be written at {self.env_steps} steps ({error}); training goes on")
            return None

    # What a checkpoint holds ---------------------------------------------------------------------------------

    def _policy_record(self) -> dict[str, Any]:
        config = self.config
        return PolicyRecord(
            config.env, self.probe.spec, *self.probe.spaces, config.net, config.ppo.normalize_observation
        ).to_json()

    def _policy_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        return {name: tensor.cpu().numpy() for name, tensor in self.learner.policy.state_dict().items()}

    def _trainer_state(self) -> dict[str, Any]:
        return {
            "env_steps": self.env_steps,
            "episodes": self.episodes,
            "updates_skipped": self.updates_skipped,
            "imitation_steps": self.imitation_steps,
            "wall_s": self.wall_s,
            "best_score": float(self._best_score),
            "best_env_steps": self.store.best_env_steps,
            "recent": [dataclasses.asdict(episode) for episode in self.recent],
            "counts": vars(self.source.counts).copy(),
            "learner": self.learner.save_state(),
            "collectors": self.source.save_state(),
        }

    def _restore(self) -> Any:
        assert self._resume_from is not None
        load_into(self.learner.policy, self._resume_from)
        state = self._resume_from.read_trainer()
        self.learner.load_state(state["learner"])
        self.env_steps, self.episodes = state["env_steps"], state["episodes"]
        self.updates_skipped, self._earlier_s = state["updates_skipped"], state["wall_s"]
        self.imitation_steps = state.get("imitation_steps", 0)
        self._best_score, self.store.best_env_steps = state["best_score"], state["best_env_steps"]
        self.recent.extend(EpisodeRecord(**episode) for episode in state["recent"])
        for name, value in state["counts"].items():
            setattr(self.source.counts, name, value)
        if state["collectors"] is None:
            # New episodes, then, and not those of the beginning once more.
            setup = self.source.pool.setup
            setup.seed = episode_seed(setup.seed, 1, self.env_steps)
        return state["collectors"]

    def _restore_collectors(self, states: Any) -> None:
        problems = self.source.load_state(states)
        cut = len(problems) * self.config.collect.envs_per_worker
        if states is None:
            cut = self.config.collect.workers * self.config.collect.envs_per_worker
        for path in self.store.set_aside_after(self.env_steps):
            self.logbook.note(f"set aside the checkpoint {path.name}: resuming from before it undoes it")
        exactly = "exactly where it stopped" if not problems else f"with {cut} episodes cut and begun anew"
        emptied = "; the replay buffer begins empty" if self.config.replay.is_on else ""
        self.logbook.note(f"resumed at {self.env_steps:,} steps, {exactly}{emptied}")
        for problem in problems:
            self.logbook.note(f"  {problem}")

    # Ending --------------------------------------------------------------------------------------------------

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

    def announce(self) -> None:
        """Tell the screen, if there is one, what `describe` says."""
        self.logbook.announce(self.describe())

    def describe(self) -> list[str]:
        """What a person wants to read at the start: sizes and the choices that were made."""
        config = self.config
        collect = config.collect
        lines = [
            f"run       {self.directory.path}",
            f"collect   {collect.backend}, {collect.workers} x {collect.envs_per_worker} slots x "
            f"{collect.rollout_steps} steps, {describe_lag(config)}",
            *([f"ray       {self.ray.describe()}"] if self.ray is not None else []),
            f"act       {describe_inference(config, self.source.pool.setup.actor_maker.needs_torch)}",
            *([describe_replay(config, self.buffer_bytes)] if config.replay.is_on else []),
            f"learn     {batch_size_rows(config):,} rows an update, {config.ppo.epochs} epochs of minibatches of "
            f"{config.ppo.minibatch_size}, {config.ppo.threads} threads, {config.device}",
            f"correct   {describe_correction(config)}",
        ]
        if self.probe.exactness not in ("state", "replay"):
            lines.append(f"resume    begins new episodes: {self.probe.exactness}")
        return lines


def num_rollouts(config: Config) -> int:
    """Places for rollouts: those that wait or are held, and those under way."""
    collect = config.collect
    if config.replay.is_on:
        return config.replay.capacity_items // items_per_rollout(config) + 2 * collect.workers + SPARE_ROLLOUTS
    return collect.workers * (collect.max_policy_lag + 1) + SPARE_ROLLOUTS


def make_buffer(slab: Slab, config: Config) -> Buffer:
    """A queue where each rollout is used once, else a replay buffer."""
    if not config.replay.is_on:
        return RolloutQueue(slab, config.collect.workers, config.collect.max_policy_lag)
    from millrace.buffer.replay import Replay

    return Replay(slab, config.replay, config.seed)


def refuse_beyond_memory(nbytes: int, what: str) -> None:
    """Better now than by the out-of-memory killer in the middle of the night.

    Raises:
        ConfigError: the machine has not got as much memory left.
    """
    _, left = system.memory_bytes()
    limit = system.memory_limit_bytes()
    left = min(left or limit or 0, limit or left)
    if left and nbytes > left:
        raise ConfigError(
            f"{what} take {nbytes / 2**30:.1f} GiB and this machine has {left / 2**30:.1f} GiB left; lower "
            "replay.capacity_items, collect.rollout_steps, collect.envs_per_worker or collect.max_policy_lag"
        )


def make_pool(setup: PoolSetup, ray: RayConfig, session: RaySession | None) -> CollectorPool:
    """The place where collectors run: the one spot that knows the backends."""
    if setup.config.backend == "serial":
        from millrace.collect.serial import SerialPool

        return SerialPool(setup)
    from millrace.collect.processes import ProcessHost
    from millrace.collect.worker_pool import WorkerPool

    if session is not None:
        from millrace.collect.ray_host import RayHost

        return WorkerPool(setup, RayHost(setup, ray, session))
    return WorkerPool(setup, ProcessHost(setup))


def load_into(policy: Any, checkpoint: Checkpoint | RllibCheckpoint) -> None:
    """Copy a checkpoint's arrays into a policy.

    Raises:
        CheckpointError: names or shapes differ.
    """
    import torch

    _, arrays = checkpoint.read_policy()
    try:
        policy.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.path} does not fit this network: {error}") from None
