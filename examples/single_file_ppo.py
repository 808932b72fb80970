"""PPO in one file, to be read from top to bottom: CartPole to a return of 475 within a minute on one core.

It is the same algorithm as the package's: the same losses, the same treatment of ends of episodes (a test feeds
both the same data and compares). What the package adds is everything else: workers, any environment, checkpoints,
supervision, speed.

    python examples/single_file_ppo.py [--env CartPole-v1] [--steps 200000] [--seed 0]

Legend: T steps of a rollout, B environments side by side, N = T * B rows of a batch.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn


@dataclass
class Settings:
    num_envs: int = 8
    rollout_steps: int = 64
    epochs: int = 10
    minibatch_size: int = 128
    learning_rate: float = 1e-3
    gamma: float = 0.98
    gae_lambda: float = 0.9
    clip: float = 0.2
    value_coef: float = 0.5
    entropy_coef: float = 0.0
    max_grad_norm: float = 0.5


class Agent(nn.Module):
    """An actor and a critic, two hidden layers each. Orthogonal weights; a small last layer begins near uniform."""

    def __init__(self, num_inputs: int, num_actions: int, width: int = 64) -> None:
        super().__init__()
        self.actor = self._layers(num_inputs, width, num_actions, last_gain=0.01)
        self.critic = self._layers(num_inputs, width, 1, last_gain=1.0)

    @staticmethod
    def _layers(num_inputs: int, width: int, num_outputs: int, last_gain: float) -> nn.Sequential:
        linears = [nn.Linear(num_inputs, width), nn.Linear(width, width), nn.Linear(width, num_outputs)]
        for linear, gain in zip(linears, (2**0.5, 2**0.5, last_gain), strict=True):
            nn.init.orthogonal_(linear.weight, gain)
            nn.init.zeros_(linear.bias)
        return nn.Sequential(linears[0], nn.Tanh(), linears[1], nn.Tanh(), linears[2])

    def forward(self, observation: Tensor) -> tuple[torch.distributions.Categorical, Tensor]:
        """Observations [N, ...] to the distribution of actions and the values [N]."""
        return torch.distributions.Categorical(logits=self.actor(observation)), self.critic(observation).squeeze(-1)


@dataclass
class Rollout:
    """T steps of B environments. Row t + 1 of a done row t holds the final observation of the episode.

    The step from there to the next episode's first observation is no experience: its `valid` is 0.
    """

    observation: Tensor  # [T + 1, B, ...]
    action: Tensor  # [T, B]
    log_prob: Tensor  # [T, B] of the action when it was taken
    value: Tensor  # [T + 1, B]
    reward: Tensor  # [T, B]
    terminated: Tensor  # [T, B] bool: the episode is over, and nothing comes after it
    truncated: Tensor  # [T, B] bool: it was only cut off, and would have gone on
    valid: Tensor  # [T, B] float


class Collector:
    """Steps the environments with the agent; keeps where they are between rollouts."""

    def __init__(self, env_id: str, settings: Settings, seed: int) -> None:
        # In next-step mode a finished environment is reset by the step after, whatever the action.
        self.envs = gym.make_vec(env_id, settings.num_envs, vectorization_mode="sync")
        self.settings = settings
        self.observation, _ = self.envs.reset(seed=seed)
        self.done = np.zeros(settings.num_envs, bool)
        self.running_return = np.zeros(settings.num_envs)
        self.returns: list[float] = []  # of all finished episodes

    @torch.no_grad()
    def collect(self, agent: Agent) -> Rollout:
        """One rollout under the present weights."""
        steps: list[tuple] = []
        for _ in range(self.settings.rollout_steps):
            observation = torch.as_tensor(self.observation, dtype=torch.float32)
            distribution, value = agent(observation)
            action = distribution.sample()
            valid = ~self.done
            self.observation, reward, terminated, truncated, _ = self.envs.step(action.numpy())
            row = (
                torch.as_tensor(x) for x in (reward.astype(np.float32), terminated, truncated, valid.astype(np.float32))
            )
            steps.append((observation, action, distribution.log_prob(action), value, *row))
            self._count(reward, terminated | truncated)
        observation, action, log_prob, value, reward, terminated, truncated, valid = map(
            torch.stack, zip(*steps, strict=True)
        )
        last = torch.as_tensor(self.observation, dtype=torch.float32)
        return Rollout(
            torch.cat([observation, last[None]]), action, log_prob, torch.cat([value, agent(last)[1][None]]),
            reward, terminated, truncated, valid,
        )  # fmt: skip

    def _count(self, reward: np.ndarray, done: np.ndarray) -> None:
        self.running_return += reward
        self.returns += self.running_return[done].tolist()
        self.running_return[done] = 0.0
        self.done = done


def advantages(rollout: Rollout, gamma: float, gae_lambda: float) -> Tensor:
    """Generalized advantage estimates [T, B] (Schulman et al. 2016).

    delta_t = R_t + gamma V(s_{t+1}) (1 - terminated_t) - V(s_t), and A_t = delta_t + gamma lambda A_{t+1} within an
    episode: a truncated one is worth what would have come, a terminated one is not.
    """
    next_value = torch.where(rollout.terminated, 0.0, rollout.value[1:])
    delta = rollout.reward + gamma * next_value - rollout.value[:-1]
    goes_on = rollout.valid * (~(rollout.terminated | rollout.truncated)).float()
    advantage, running = torch.zeros_like(delta), torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        running = delta[t] + gamma * gae_lambda * goes_on[t] * running
        advantage[t] = running
    return advantage


def mean(x: Tensor, weight: Tensor) -> Tensor:
    """Over the rows that are experience."""
    return (x * weight).sum() / weight.sum()


def update(
    agent: Agent, optimizer: torch.optim.Optimizer, rollout: Rollout, settings: Settings, generator: torch.Generator
) -> dict[str, float]:
    """Some epochs of minibatch descent on the clipped objective (Schulman et al. 2017); means over the last epoch."""
    advantage = advantages(rollout, settings.gamma, settings.gae_lambda)
    target = advantage + rollout.value[:-1]
    columns = [rollout.observation[:-1], rollout.action, rollout.log_prob, advantage, target, rollout.valid]
    rows = [x.flatten(0, 1) for x in columns]  # [T, B, ...] to [N, ...]
    for _ in range(settings.epochs):
        figures = []
        order = torch.randperm(len(rows[0]), generator=generator)
        for index in order.split(settings.minibatch_size):
            observation, action, old_log_prob, a, target, weight = (x[index] for x in rows)
            a = a - mean(a, weight)
            a = a / (mean(a**2, weight).sqrt() + 1e-8)

            distribution, value = agent(observation)
            ratio = (distribution.log_prob(action) - old_log_prob).exp()
            clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
            policy_loss = -mean(torch.minimum(ratio * a, clipped * a), weight)
            value_loss = 0.5 * mean((value - target) ** 2, weight)
            entropy = mean(distribution.entropy(), weight)
            loss = policy_loss + settings.value_coef * value_loss - settings.entropy_coef * entropy

            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), settings.max_grad_norm)
            optimizer.step()
            figures.append((policy_loss.item(), value_loss.item(), entropy.item()))
    return dict(zip(("policy_loss", "value_loss", "entropy"), np.mean(figures, axis=0).tolist(), strict=True))


def train(env_id: str, total_steps: int, seed: int = 0, settings: Settings | None = None) -> tuple[Agent, list[float]]:
    """The loop: collect, learn, and again. Returns the agent and the returns of all episodes."""
    settings = settings or Settings()
    torch.set_num_threads(1)  # the networks are too small for more to help
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    collector = Collector(env_id, settings, seed)
    envs = collector.envs
    agent = Agent(int(np.prod(envs.single_observation_space.shape)), int(envs.single_action_space.n))
    optimizer = torch.optim.Adam(agent.parameters(), settings.learning_rate, eps=1e-5)
    steps, updates = 0, 0
    while steps < total_steps:
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * (1 - steps / total_steps)
        rollout = collector.collect(agent)
        figures = update(agent, optimizer, rollout, settings, generator)
        steps, updates = steps + int(rollout.valid.sum()), updates + 1
        if updates % 10 == 0 and collector.returns:
            score = np.mean(collector.returns[-100:])
            print(f"{steps:>8,} steps  return {score:6.1f}  " + "  ".join(f"{k} {v:.4f}" for k, v in figures.items()))
    envs.close()
    return agent, collector.returns


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="PPO in one file")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.env, arguments.steps, arguments.seed)
