"""TorchRL: an ordinary PPO loop over its collectors, as in its examples.

Its prioritized buffer is not used: the compiled extension behind it does not load with this torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector, MultiAsyncCollector, MultiSyncCollector
from torchrl.envs import EnvBase, GymWrapper, RewardSum, TransformedEnv
from torchrl.modules import MLP, ActorValueOperator, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from benchmarks.compare.networks import NatureBody
from benchmarks.compare.peer import Figures, Job, Meter, ScoreWatch, main, with_ideal
from benchmarks.envs import make_pong, make_slow_uneven

OBSERVATION_SIZE = 4
ACTIONS = 2
PONG_ACTIONS = 6


@dataclass(frozen=True)
class Settings:
    """Of PPO and of the collector."""

    batch: int
    """Steps that a collector hands over at once."""
    minibatch: int
    epochs: int = 4
    learning_rate: float = 1e-3
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.2
    threads: int = 1


ENVS_PER_WORKER = 64
THROUGHPUT = Settings(batch=8192, minibatch=2048)
ZOO = Settings(batch=256, minibatch=256, epochs=20, gamma=0.98, gae_lambda=0.8)
"""RL-Zoo's settings for CartPole-v1, with 8 environments, rate and clip range linear over 100,000 steps."""
ZOO_ENVS = 8
ZOO_STEPS = 100_000
SLOW = Settings(batch=64, minibatch=64)
PONG = Settings(batch=1024, minibatch=256, learning_rate=2.5e-4, clip=0.1)


class NativeCartPole(CartPoleVectorEnv):
    """Gymnasium's vector CartPole, resetting only where asked: TorchRL refuses resets in the next step."""

    autoreset_mode = AutoresetMode.DISABLED
    state: Any

    def step(self, action: Any) -> Any:
        """Step without the reset of those that were done."""
        transition = super().step(action)
        self.prev_done[:] = False
        return transition

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Reset all, or those in `reset_mask`."""
        if not options or "reset_mask" not in options:
            return super().reset(seed=seed)
        mask = options["reset_mask"].reshape(-1)
        self.state[:, mask] = self.np_random.uniform(self.low, self.high, size=(4, int(mask.sum())))
        self.steps[mask] = 0
        return self.state.T.astype(np.float32), {}


def make_native_cartpole() -> EnvBase:
    """A worker's copies as one array program."""
    return GymWrapper(NativeCartPole(num_envs=ENVS_PER_WORKER), categorical_action_encoding=True)


def make_cartpole(copies: int = ENVS_PER_WORKER) -> EnvBase:
    """CartPole-v1 without wrappers that only check."""
    make_one = partial(gymnasium.make, "CartPole-v1", disable_env_checker=True)
    return GymWrapper(
        SyncVectorEnv([make_one] * copies, autoreset_mode=AutoresetMode.DISABLED),
        categorical_action_encoding=True,
    )


def make_pongs(copies: int) -> EnvBase:
    """Copies of Pong, stepped one after another."""
    return GymWrapper(
        SyncVectorEnv([make_pong] * copies, autoreset_mode=AutoresetMode.DISABLED),
        categorical_action_encoding=True,
    )


def make_slow() -> EnvBase:
    """One copy of the slow uneven game."""
    return GymWrapper(make_slow_uneven(), categorical_action_encoding=True)


Networks = tuple[Any, Any, Any]
"""Actor; critic as the loss wants it; critic that starts from observations."""


def dense_networks(env: EnvBase) -> Networks:
    """Actor and critic apart, for CartPole."""
    critic = ValueOperator(_mlp(1), in_keys=["observation"])
    return _actor(TensorDictModule(_mlp(ACTIONS), ["observation"], ["logits"]), env), critic, critic


class NatureOfBatches(NatureBody):
    """Takes frames with any leading dimensions: TorchRL's batches are by environment and step."""

    def forward(self, observation: Any) -> Any:
        return super().forward(observation.flatten(0, -4)).unflatten(0, observation.shape[:-3])


def nature_networks(env: EnvBase) -> Networks:
    """One body; in the loss the critic's head takes the features that the actor has just computed."""
    body = TensorDictModule(NatureOfBatches(), ["observation"], ["features"])
    logits = TensorDictModule(nn.Linear(NatureBody.num_features, PONG_ACTIONS), ["features"], ["logits"])
    critic_head = ValueOperator(nn.Linear(NatureBody.num_features, 1), in_keys=["features"])
    both = ActorValueOperator(body, _actor(logits, env), critic_head)
    return both.get_policy_operator(), both.get_value_head(), both.get_value_operator()


def _actor(module: TensorDictModule, env: EnvBase) -> Any:
    return ProbabilisticActor(
        module,
        spec=env.action_spec,
        in_keys=["logits"],
        distribution_class=torch.distributions.Categorical,
        return_log_prob=True,
    )


class Agent:
    """Actor, critic, and PPO's update of both."""

    def __init__(self, settings: Settings, networks: Networks) -> None:
        self.settings = settings
        self.actor, critic, whole_critic = networks
        self._advantage = GAE(gamma=settings.gamma, lmbda=settings.gae_lambda, value_network=whole_critic)
        self._loss = ClipPPOLoss(
            self.actor,
            critic,
            clip_epsilon=settings.clip,
            entropy_bonus=False,
            normalize_advantage=True,
            loss_critic_type="l2",
            critic_coeff=0.5,
        )
        self._optimiser = torch.optim.Adam(self._loss.parameters(), settings.learning_rate, eps=1e-5, fused=True)

    def update(self, batch: TensorDictBase) -> None:
        """Some epochs over a batch."""
        with torch.no_grad():
            self._advantage(batch)
        rows = batch.select(*self._loss.in_keys, "advantage", "value_target", strict=False).reshape(-1)
        for _ in range(self.settings.epochs):
            for indices in torch.split(torch.randperm(len(rows)), self.settings.minibatch):
                self._step(rows[indices])

    def anneal(self, remaining: float) -> None:
        """Learning rate and clip range as a fraction of what they were at the start."""
        self._loss.clip_epsilon.fill_(self.settings.clip * remaining)
        for group in self._optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * remaining

    def _step(self, minibatch: TensorDictBase) -> None:
        losses = self._loss(minibatch)
        total = sum(value for name, value in losses.items() if name.startswith("loss_"))
        total.backward()
        nn.utils.clip_grad_norm_(self._loss.parameters(), 0.5)
        self._optimiser.step()
        self._optimiser.zero_grad()


def _mlp(outputs: int) -> Any:
    return MLP(OBSERVATION_SIZE, outputs, num_cells=[64, 64], activation_class=nn.Tanh)


def cartpole_throughput(job: Job, collector: type, make_env: Callable[[], EnvBase]) -> Figures:
    """Two worker processes of 64 copies each."""
    options = {"cat_results": 0, "use_buffers": True} if collector is MultiSyncCollector else {}
    return _metered(collector, [make_env] * 2, THROUGHPUT, job, **options)


def slow_uneven(job: Job) -> Figures:
    """One process per copy; an update learns from whichever worker is ready."""
    return with_ideal(_metered(MultiAsyncCollector, [make_slow] * job.copies, SLOW, job), job.copies)


def pong(job: Job, workers: int) -> Figures:
    """Eight copies in as many worker processes as said, whose batches take turns; or, with none, in this process."""
    if workers:
        make_envs = [partial(make_pongs, 8 // workers)] * workers
        return _metered(MultiAsyncCollector, make_envs, PONG, job, nature_networks)
    return _metered(InProcess, [partial(make_pongs, 8)], replace(PONG, threads=2), job, nature_networks)


class InProcess(Collector):  # type: ignore[misc, unused-ignore]  # checked without TorchRL
    """A collector in this process, made as those of several processes are."""

    def __init__(self, make_envs: list[Callable[[], EnvBase]], policy: Any, **options: Any) -> None:
        super().__init__(make_envs[0], policy, **options)


def time_to_475(job: Job) -> Figures:
    """RL-Zoo's settings in one process; returns are summed inside the environment."""
    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    watch, env_steps = ScoreWatch(), 0
    env = TransformedEnv(make_cartpole(ZOO_ENVS), RewardSum())
    env.set_seed(job.seed)
    agent = Agent(ZOO, dense_networks(env))
    collector = Collector(env, agent.actor, frames_per_batch=ZOO.batch, total_frames=ZOO_STEPS)
    for batch in collector:
        env_steps += batch.numel()
        returns = batch["next", "episode_reward"][batch["next", "done"]]
        if any(watch.episode(episode_return) for episode_return in returns.tolist()):
            break
        agent.anneal(1 - env_steps / ZOO_STEPS)
        agent.update(batch)
    collector.shutdown()
    return watch.figures(env_steps)


def _metered(
    collector_type: type,
    make_envs: list[Callable[[], EnvBase]],
    settings: Settings,
    job: Job,
    make_networks: Callable[[EnvBase], Networks] = dense_networks,
    **options: Any,
) -> Figures:
    torch.set_num_threads(settings.threads)
    torch.manual_seed(job.seed)
    meter, env_steps = Meter(job.seconds), 0
    agent = Agent(settings, make_networks(make_envs[0]()))
    collector = collector_type(make_envs, agent.actor, frames_per_batch=settings.batch, total_frames=-1, **options)
    collector.set_seed(job.seed)
    for batch in collector:
        agent.update(batch)
        collector.update_policy_weights_()
        env_steps += batch.numel()
        if meter.update_done(env_steps):
            break
    collector.shutdown()
    return meter.figures()


if __name__ == "__main__":
    main(
        {
            "cartpole-throughput": {
                "async": partial(cartpole_throughput, collector=MultiAsyncCollector, make_env=make_cartpole),
                "async-native": partial(
                    cartpole_throughput, collector=MultiAsyncCollector, make_env=make_native_cartpole
                ),
                "sync": partial(cartpole_throughput, collector=MultiSyncCollector, make_env=make_cartpole),
            },
            "cartpole-time-to-475": {"zoo": time_to_475},
            "slow-uneven": {"async": slow_uneven},
            "pong": {"serial": partial(pong, workers=0), "async": partial(pong, workers=2)},
        },
        packages=("torchrl", "tensordict", "torch", "gymnasium", "ale-py", "numpy"),
    )
