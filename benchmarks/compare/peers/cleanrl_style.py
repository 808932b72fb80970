"""A plain PPO in one file, in the style of CleanRL: one process, one loop, a vector environment of anyone's.

Written for this comparison with CleanRL's settings and habits (fixed rollouts, clipped value loss, advantages
normalised by minibatch). A step that resets an environment counts as a step, as it does there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import torch
from torch import Tensor, nn

from benchmarks.compare.networks import DenseNetwork, map_network, pong_network
from benchmarks.compare.peer import Figures, Job, Meter, main
from benchmarks.envs import MapEnv

Observation = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """CleanRL's for Atari, where not said otherwise."""

    envs: int = 8
    steps: int = 128
    minibatch: int = 256
    epochs: int = 4
    learning_rate: float = 2.5e-4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.1
    entropy_coef: float = 0.01
    value_coef: float = 0.5
    max_grad_norm: float = 0.5
    threads: int = 2


CARTPOLE = Settings(envs=64, minibatch=2048, clip=0.2)
PIXELS = Settings()


@dataclass
class Rollout:
    """`steps` steps of `envs` environments, [steps, envs, ...] each."""

    observation: Observation
    action: Tensor
    log_prob: Tensor
    value: Tensor
    reward: Tensor
    done: Tensor
    """Whether the episode ended with this step."""


class Collector:
    """Steps the environments; keeps where they are between rollouts."""

    def __init__(self, envs: Any, network: nn.Module, settings: Settings) -> None:
        self._envs, self._network, self._steps = envs, network, settings.steps
        self._observation = by_name(envs.reset()[0])

    @torch.no_grad()
    def collect(self) -> tuple[Rollout, Tensor]:
        """A rollout, and the values [envs] of the observations after it."""
        observations, rows = [], []
        for _ in range(self._steps):
            logits, value = self._network(**self._observation)
            distribution = torch.distributions.Categorical(logits=logits, validate_args=False)
            action = distribution.sample()
            observations.append(self._observation)
            observation, reward, terminated, truncated, _ = self._envs.step(action.numpy())
            self._observation = by_name(observation)
            done = torch.as_tensor(terminated | truncated).float()
            rows.append((action, distribution.log_prob(action), value, torch.as_tensor(reward).float(), done))
        kept = {name: torch.stack([row[name] for row in observations]) for name in self._observation}
        return Rollout(kept, *map(torch.stack, zip(*rows, strict=True))), self._network(**self._observation)[1]


def by_name(observation: Any) -> Observation:
    """A copy as tensors, a lone array under the name `observation`: environments reuse their buffers."""
    named = observation if isinstance(observation, dict) else {"observation": observation}
    return {name: torch.tensor(array) for name, array in named.items()}


def advantages(rollout: Rollout, last_value: Tensor, settings: Settings) -> Tensor:
    """Generalised advantage estimates [steps, envs]; an end is an end, cut off or not, as in CleanRL."""
    advantage, running, next_value = torch.zeros_like(rollout.reward), torch.zeros_like(last_value), last_value
    for t in reversed(range(len(advantage))):
        goes_on = 1 - rollout.done[t]
        delta = rollout.reward[t] + settings.gamma * next_value * goes_on - rollout.value[t]
        running = delta + settings.gamma * settings.gae_lambda * goes_on * running
        advantage[t], next_value = running, rollout.value[t]
    return advantage


class Rows(NamedTuple):
    """What is learned from beside the observations, [N] each."""

    action: Tensor
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    target: Tensor


class Learner:
    """Epochs of clipped minibatch descent."""

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        self._network, self._settings = network, settings
        self._optimiser = torch.optim.Adam(network.parameters(), settings.learning_rate, eps=1e-5, fused=True)

    def update(self, rollout: Rollout, last_value: Tensor) -> None:
        """Learn from a rollout."""
        advantage = advantages(rollout, last_value, self._settings)
        columns = (rollout.action, rollout.log_prob, rollout.value, advantage, advantage + rollout.value)
        rows = [column.flatten() for column in columns]
        observation = {name: array.flatten(0, 1) for name, array in rollout.observation.items()}
        for _ in range(self._settings.epochs):
            for index in torch.randperm(len(rows[0])).split(self._settings.minibatch):
                seen = {name: array[index] for name, array in observation.items()}
                self._step(self._loss(seen, Rows(*(row[index] for row in rows))))

    def _loss(self, observation: Observation, rows: Rows) -> Tensor:
        settings = self._settings
        logits, value = self._network(**observation)
        distribution = torch.distributions.Categorical(logits=logits, validate_args=False)
        ratio = (distribution.log_prob(rows.action) - rows.log_prob).exp()
        clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
        advantage = (rows.advantage - rows.advantage.mean()) / (rows.advantage.std() + 1e-8)
        policy_loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()
        near = rows.value + (value - rows.value).clamp(-settings.clip, settings.clip)
        value_loss = 0.5 * torch.maximum((value - rows.target) ** 2, (near - rows.target) ** 2).mean()
        entropy = distribution.entropy().mean()
        return policy_loss + settings.value_coef * value_loss - settings.entropy_coef * entropy

    def _step(self, loss: Tensor) -> None:
        self._optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._network.parameters(), self._settings.max_grad_norm)
        self._optimiser.step()


def train(
    job: Job, make_envs: Callable[[int], Any], make_network: Callable[[], nn.Module], settings: Settings
) -> Figures:
    """Collect, learn, and again, until measured for long enough."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(job.seed)
    envs, network, meter, env_steps = make_envs(settings.envs), make_network(), Meter(job.seconds), 0
    collector, learner = Collector(envs, network, settings), Learner(network, settings)
    done = False
    while not done:
        learner.update(*collector.collect())
        env_steps += settings.envs * settings.steps
        done = meter.update_done(env_steps)
    envs.close()
    return meter.figures()


def gymnasium_cartpole(envs: int) -> Any:
    """Single copies one after another, which is what CleanRL's own script does."""
    make_one = partial(gymnasium.make, "CartPole-v1", disable_env_checker=True)
    return gymnasium.vector.SyncVectorEnv([make_one] * envs)


def native_cartpole(envs: int) -> Any:
    """Gymnasium's own array program, as millrace uses it."""
    return gymnasium.make_vec("CartPole-v1", envs, vectorization_mode="vector_entry_point")


def envpool_envs(task: str, envs: int) -> Any:
    """EnvPool's compiled games; its Pong is 84 x 84, four frames stacked and four skipped, as it comes."""
    import envpool  # here: slow to import, and the other variants are timed from the start

    return envpool.make(task, env_type="gymnasium", num_envs=envs)


def ale_pong(envs: int) -> Any:
    """The emulator's own vector environment."""
    from ale_py import AtariVectorEnv

    return AtariVectorEnv("pong", num_envs=envs, repeat_action_probability=0.0)


def map_envs(envs: int) -> Any:
    """Single copies one after another; the mask is not looked at."""
    return gymnasium.vector.SyncVectorEnv([MapEnv] * envs)


if __name__ == "__main__":
    cartpole = partial(train, make_network=DenseNetwork, settings=CARTPOLE)
    pong = partial(train, make_network=pong_network, settings=PIXELS)
    main(
        {
            "cartpole-throughput": {
                "sync": partial(cartpole, make_envs=gymnasium_cartpole),
                "native": partial(cartpole, make_envs=native_cartpole),
                "envpool": partial(cartpole, make_envs=partial(envpool_envs, "CartPole-v1")),
            },
            "pong": {
                "ale-vector": partial(pong, make_envs=ale_pong),
                "envpool": partial(pong, make_envs=partial(envpool_envs, "Pong-v5")),
            },
            "dict": {"sync": partial(train, make_envs=map_envs, make_network=map_network, settings=PIXELS)},
        },
        packages=("torch", "gymnasium", "envpool", "ale-py", "numpy"),
    )
