"""The PPO learner."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from millrace.buffer.queue import Batch
from millrace.config import PPOConfig
from millrace.learner.flat import FlatParameters
from millrace.learner.rewards import RewardScaler
from millrace.nets.policy import Policy
from millrace.ops import losses
from millrace.ops.distributions import log_prob_and_entropy
from millrace.ops.gae import generalized_advantages
from millrace.types import Array, Rollout


@dataclass
class Rows:
    """What gradient steps need, one row per (step, slot): [N, ...] each."""

    observation: dict[str, Tensor]
    action: Tensor
    log_prob: Tensor
    advantage: Tensor
    target: Tensor
    value: Tensor
    weight: Tensor
    action_mask: Tensor | None

    def take(self, index: Tensor) -> Rows:
        """The rows of an index, gathered."""
        fields = {name: x[index] for name, x in vars(self).items() if isinstance(x, Tensor)}
        observation = {key: x[index] for key, x in self.observation.items()}
        return Rows(observation=observation, **{"action_mask": None} | fields)

    def slice(self, first: int, last: int) -> Rows:
        """Views of the rows first..last-1."""
        fields = {name: x[first:last] for name, x in vars(self).items() if isinstance(x, Tensor)}
        observation = {key: x[first:last] for key, x in self.observation.items()}
        return Rows(observation=observation, **{"action_mask": None} | fields)

    def __len__(self) -> int:
        return len(self.weight)


class Learner:
    """Turns batches into better weights.

    Args:
        policy: on the device to learn on.
        total_env_steps: where linear schedules reach 0.
    """

    def __init__(self, policy: Policy, config: PPOConfig, total_env_steps: int, seed: int) -> None:
        self.policy = policy
        self.config = config
        self.updates = 0
        self.skipped_steps = 0
        self.busy_s = 0.0
        self._total_env_steps = total_env_steps
        self._device = next(policy.parameters()).device
        self._parameters = FlatParameters(policy.parameters())
        self._optimizer = torch.optim.Adam(
            [self._parameters.vector], lr=config.learning_rate, eps=config.adam_eps, fused=True
        )
        self._generator = torch.Generator().manual_seed(seed)
        self._reward_scaler = RewardScaler(config.gamma) if config.normalize_reward else None

    def weights(self) -> Array:
        """Parameters and normalisers as one flat float32 vector."""
        return self.policy.flat_weights()

    def update(self, batch: Batch, env_steps: int) -> dict[str, float]:
        """Learn from one batch and return the figures of the update.

        Args:
            env_steps: before this batch; schedules go by it.
        """
        begin = perf_counter()
        progress = min(1.0, env_steps / self._total_env_steps)
        learning_rate, clip = self._schedules(progress)
        rows = self._rows(batch)
        stats = self._epochs(rows, clip)
        self._observe(batch)
        self.updates += 1
        self.busy_s += perf_counter() - begin
        return {**stats, "learning_rate": learning_rate, "clip": clip, "policy_lag": float(batch.lag)}

    def _schedules(self, progress: float) -> tuple[float, float]:
        config = self.config
        remaining = 1.0 - progress
        learning_rate = config.learning_rate * (remaining if config.learning_rate_schedule == "linear" else 1.0)
        clip = config.clip * (remaining if config.clip_schedule == "linear" else 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        return learning_rate, max(clip, 1e-6)

    def _rows(self, batch: Batch) -> Rows:
        rollout = batch.rollout
        reward = rollout.reward if self._reward_scaler is None else self._reward_scaler.scale(rollout.reward)
        value = self._tensor(rollout.value)
        terminated = self._tensor(rollout.terminated)
        done = terminated | self._tensor(rollout.truncated)
        advantage = generalized_advantages(
            self._tensor(reward),
            value[:-1],
            self._next_value(rollout, value),
            terminated,
            done | ~self._tensor(rollout.valid),
            self.config.gamma,
            self.config.gae_lambda,
        )
        return Rows(
            observation={key: self._tensor(array[:-1]).flatten(0, 1) for key, array in rollout.observation.items()},
            action=self._tensor(rollout.action).flatten(0, 1),
            log_prob=self._tensor(rollout.log_prob).flatten(),
            advantage=advantage.flatten(),
            target=(advantage + value[:-1]).flatten(),
            value=value[:-1].flatten(),
            weight=self._tensor(rollout.valid).float().flatten(),
            action_mask=self._mask(rollout),
        )

    def _next_value(self, rollout: Rollout, value: Tensor) -> Tensor:
        if rollout.bootstrap_value is None:
            return value[1:]
        bootstrap = self._tensor(rollout.bootstrap_value)
        return torch.where(bootstrap.isnan(), value[1:], bootstrap)

    def _mask(self, rollout: Rollout) -> Tensor | None:
        if rollout.action_mask is None:
            return None
        bits = self.policy.spec.num_mask_bits
        unpacked = np.unpackbits(rollout.action_mask[:-1], axis=-1, count=bits, bitorder="little")
        return self._tensor(unpacked.view(bool)).flatten(0, 1)

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def _epochs(self, rows: Rows, clip: float) -> dict[str, float]:
        """K passes in random order; the figures are means over the last pass."""
        size = self.config.minibatch_size
        stats: list[dict[str, Tensor]] = []
        for epoch in range(self.config.epochs):
            shuffled = rows.take(torch.randperm(len(rows), generator=self._generator).to(self._device))
            wants_stats = epoch == self.config.epochs - 1 or self.config.target_kl > 0
            stats = [
                self._gradient_step(shuffled.slice(first, first + size), clip, wants_stats)
                for first in range(0, len(rows), size)
            ]
            if self.config.target_kl and _mean(stats, "kl") > self.config.target_kl:
                break
        return {
            **{name: _mean(stats, name) for name in stats[0]},
            "explained_variance": float(losses.explained_variance(rows.value, rows.target, rows.weight)),
        }

    def _gradient_step(self, rows: Rows, clip: float, wants_stats: bool) -> dict[str, Tensor]:
        config = self.config
        params, value = self.policy(rows.observation)
        log_prob, entropy = log_prob_and_entropy(self.policy.spec.action, params, rows.action, rows.action_mask)
        log_ratio = log_prob - rows.log_prob
        advantage = rows.advantage
        if config.normalize_advantage:
            advantage = losses.normalize_advantages(advantage, rows.weight)
        policy_loss = losses.clipped_policy_loss(log_ratio, advantage, rows.weight, clip)
        value_loss = losses.value_loss(value, rows.value, rows.target, rows.weight, config.value_clip)
        mean_entropy = losses.weighted_mean(entropy, rows.weight)
        loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * mean_entropy
        grad_norm = self._descend(loss)
        if not wants_stats:
            return {}
        with torch.no_grad():
            return {
                "policy_loss": policy_loss.detach(),
                "value_loss": value_loss.detach(),
                "entropy": mean_entropy.detach(),
                "grad_norm": grad_norm,
                "kl": losses.approximate_kl(log_ratio, rows.weight),
                "clip_share": losses.weighted_mean((log_ratio.exp() - 1).abs().gt(clip).float(), rows.weight),
                "effective_sample_share": losses.effective_sample_share(log_ratio, rows.weight),
            }

    def _descend(self, loss: Tensor) -> Tensor:
        """One optimiser step, unless loss or gradient is not finite: then nothing is touched, and it is counted."""
        self._parameters.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = self._parameters.clip_grad(self.config.max_grad_norm)
        if bool(torch.isfinite(loss.detach() + norm)):
            self._optimizer.step()
        else:
            self.skipped_steps += 1
        return norm

    def _observe(self, batch: Batch) -> None:
        """Add each rollout of the batch to the normalisers, once, after it was learned from."""
        rollout = batch.rollout
        for key, normalizer in self.policy.normalizer.items():
            rows = self._tensor(rollout.observation[key][:-1]).flatten(0, 1)
            normalizer.update(rows[self._tensor(rollout.valid).flatten()])
        if self._reward_scaler is not None:
            for worker, block in batch.blocks():
                self._reward_scaler.update(worker, block)

    def save_state(self) -> dict[str, Any]:
        """Optimiser, random state and counters, as plain values and arrays."""
        moments = self._optimizer.state.get(self._parameters.vector, {})
        return {
            "updates": self.updates,
            "skipped_steps": self.skipped_steps,
            "generator": self._generator.get_state().numpy(),
            "reward_scaler": None if self._reward_scaler is None else self._reward_scaler.save_state(),
            "adam": {name: x.detach().cpu().numpy().copy() for name, x in moments.items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue exactly where `save_state` was taken."""
        self.updates, self.skipped_steps = int(state["updates"]), int(state["skipped_steps"])
        self._generator.set_state(torch.from_numpy(np.array(state["generator"], np.uint8)))
        if self._reward_scaler is not None and state["reward_scaler"] is not None:
            self._reward_scaler.load_state(state["reward_scaler"])
        if state["adam"]:
            self._optimizer.state[self._parameters.vector] = {
                # The step count stays where the fused optimiser keeps it.
                name: torch.from_numpy(np.array(x)).to(self._device)
                for name, x in state["adam"].items()
            }


def _mean(stats: list[dict[str, Tensor]], name: str) -> float:
    return float(torch.stack([stat[name] for stat in stats]).mean())
