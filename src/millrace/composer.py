"""The parts of a run, made from its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from millrace import system
from millrace.buffer.queue import EarlyUploads, RolloutQueue
from millrace.buffer.slab import Slab
from millrace.collect.pool import CollectorPool
from millrace.collect.setup import PoolSetup
from millrace.collect.source import Buffer, RolloutSource
from millrace.config import Config, RayConfig
from millrace.envs.make import EnvMaker
from millrace.errors import ConfigError
from millrace.learner.intrinsic import Intrinsic
from millrace.learner.ppo import Learner
from millrace.nets.actor import ActorMaker
from millrace.nets.inputs import image_keys
from millrace.resolve import Probe, items_per_rollout, usable_device
from millrace.types import RolloutLayout

if TYPE_CHECKING:
    from millrace.collect.ray_session import RaySession
    from millrace.nets.policy import Policy

SPARE_ROLLOUTS = 1  # one more place than the lag allows in flight, so that a grant never waits for a copy


@dataclass(frozen=True)
class Extras:
    """What a user adds to learning from Python.

    Attributes:
        intrinsic: makes a `millrace.learner.intrinsic.Intrinsic` from the `SlotSpec`.
        auxiliary: makes a `millrace.learner.auxiliary.Auxiliary` from the `Policy`.
    """

    intrinsic: Callable[..., Any] | None = None
    auxiliary: Callable[..., Any] | None = None


NO_EXTRAS = Extras()


@dataclass(frozen=True)
class Composer:
    """Makes policy, learner and source; the one place that knows which settings go to whom.

    Attributes:
        config: resolved.
        network: the user's own, where there is one.
    """

    config: Config
    probe: Probe
    maker: EnvMaker
    network: Any
    extras: Extras

    def make_policy(self) -> Policy:
        """With random weights."""
        import torch

        from millrace.nets.policy import Policy

        torch.set_num_threads(self.config.ppo.threads)
        torch.manual_seed(self.config.seed)
        policy = Policy(self.probe.spec, self.config.net, self.config.ppo.normalize_observation, self.network)
        policy.to(usable_device(self.config.device))
        if self.config.device.startswith("cuda"):
            torch.cuda.set_device(torch.device(self.config.device).index or 0)  # where streams and graphs are made
        if image_keys(self.probe.spec, self.config.net):
            system.keep_freed_memory()
        return policy

    def make_learner(self, policy: Policy, reward_statistics: dict[str, Any] | None = None) -> Learner:
        """Of the policy.

        Args:
            reward_statistics: that its values are in units of; None: they begin anew.
        """
        auxiliary = None if self.extras.auxiliary is None else self.extras.auxiliary(policy).to(self.config.device)
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

    def _make_intrinsic(self) -> Intrinsic | None:
        config = self.config
        if self.extras.intrinsic is not None and config.replay.is_on:
            raise ConfigError("intrinsic=... is a reward as of now, which replay makes stale; leave [replay] out")
        if not config.rnd.coef:
            return None if self.extras.intrinsic is None else self.extras.intrinsic(self.probe.spec)
        if self.extras.intrinsic is not None:
            raise ConfigError(f"rnd.coef={config.rnd.coef} and intrinsic=... are both rewards; set rnd.coef=0")
        from millrace.learner.rnd import RND

        return RND(self.probe.spec, config.net, config.rnd, config.device, config.seed)

    @property
    def actor_maker(self) -> ActorMaker:
        config = self.config
        return ActorMaker(self.probe.spec, config.net, config.ppo.normalize_observation, self.network)

    def make_source(self, learner: Learner, session: RaySession | None) -> RolloutSource:
        """Of batches for the learner.

        Raises:
            ConfigError: its rollouts do not fit into memory.
        """
        config = self.config
        layout = RolloutLayout(
            self.probe.spec,
            config.collect.rollout_steps,
            config.collect.envs_per_worker,
            self.probe.same_step_reset,
            learner.policy.state_size,
        )
        held = num_rollouts(config)
        refuse_beyond_memory(Slab.nbytes(layout, held), f"the {held:,} rollouts that the buffer holds")
        setup = PoolSetup(
            env_maker=self.maker,
            actor_maker=self.actor_maker,
            layout=layout,
            config=config.collect,
            seed=config.seed,
            num_rollouts=held,
            weights_size=len(learner.weights()),
            num_versions=config.collect.max_policy_lag + 2 if config.collect.deterministic else 2,
            device=config.device,
            keeps_rollouts=config.replay.is_on,
        )
        pool = make_pool(setup, config.ray, session)
        return RolloutSource(pool, config.collect, make_buffer(pool.slab, config), config.replay.is_on)


def num_rollouts(config: Config) -> int:
    """Places for rollouts: those that wait or are held, and those under way."""
    collect = config.collect
    if config.replay.is_on:
        return config.replay.capacity_items // items_per_rollout(config) + 2 * collect.workers + SPARE_ROLLOUTS
    return collect.workers * (collect.max_policy_lag + 1) + SPARE_ROLLOUTS


def make_buffer(slab: Slab, config: Config) -> Buffer:
    """A queue where each rollout is used once, else a replay buffer."""
    if not config.replay.is_on:
        return RolloutQueue(slab, config.collect.workers, config.collect.max_policy_lag, make_uploads(slab, config))
    from millrace.buffer.replay import Replay

    return Replay(slab, config.replay, config.seed)


def make_uploads(slab: Slab, config: Config) -> EarlyUploads | None:
    """To a GPU, of rollouts that come in memory that can be page-locked."""
    is_wanted = config.device.startswith("cuda") and config.ppo.overlap_transfers
    if not is_wanted or config.collect.backend == "ray":
        return None
    from millrace.learner.uploads import Uploads

    return Uploads(slab, config.device)


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
