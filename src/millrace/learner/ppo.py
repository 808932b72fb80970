"""The PPO learner."""

from __future__ import annotations

import math
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from millrace.buffer.queue import Batch
from millrace.config import PPOConfig
from millrace.learner.flat import Adam, FlatParameters
from millrace.learner.gradients import make_gradients
from millrace.learner.rewards import RewardScaler
from millrace.learner.rows import Rows
from millrace.nets.policy import Policy
from millrace.ops import losses
from millrace.ops.gae import generalized_advantages
from millrace.types import Array, Rollout


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
        self._optimizer = Adam(self._parameters, config.adam_eps)
        self._gradients = make_gradients(policy, self._parameters, config)
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
        skipped_before = self.skipped_steps
        stats = self._epochs(rows, learning_rate, clip)
        if self.skipped_steps == skipped_before:  # else something in the batch is not finite
            self._observe(batch)
        self.updates += 1
        self.busy_s += perf_counter() - begin
        return {**stats, "learning_rate": learning_rate, "clip": clip, "policy_lag": float(batch.lag)}

    def _schedules(self, progress: float) -> tuple[float, float]:
        config = self.config
        remaining = 1.0 - progress
        learning_rate = config.learning_rate * (remaining if config.learning_rate_schedule == "linear" else 1.0)
        clip = config.clip * (remaining if config.clip_schedule == "linear" else 1.0)
        return learning_rate, max(clip, 1e-6)

    def _rows(self, batch: Batch) -> Rows:
        rollout = batch.rollout
        reward = rollout.reward if self._reward_scaler is None else self._reward_scaler.scale(rollout.reward)
        value = self._tensor(rollout.value)
        terminated = self._tensor(rollout.terminated)
        valid = self._tensor(rollout.valid)
        cut = terminated | self._tensor(rollout.truncated) | ~valid
        cut[:-1] |= ~valid[1:]  # an invalid row in mid-episode is bootstrapped from, and nothing of it flows back
        advantage = generalized_advantages(
            self._tensor(reward),
            value[:-1],
            self._next_value(rollout, value),
            terminated,
            cut,
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
            weight=valid.float().flatten(),
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

    def _epochs(self, rows: Rows, learning_rate: float, clip: float) -> dict[str, float]:
        """K passes in random order; the figures are means over the last pass."""
        config, size = self.config, self.config.minibatch_size
        self._gradients.prepare(rows)
        stats: list[dict[str, float]] = []
        for epoch in range(config.epochs):
            self._gradients.shuffle(torch.randperm(len(rows), generator=self._generator))
            wants_stats = epoch == config.epochs - 1 or config.target_kl > 0
            stats = []
            for first in range(0, len(rows), size):
                loss, figures = self._gradients.compute(first, first + size, clip, wants_stats)
                stats.append({**figures, "grad_norm": self._descend(loss, learning_rate)})
            if config.target_kl and _mean(stats, "kl") > config.target_kl:
                break
        return {
            **{name: _mean(stats, name) for name in stats[0]},
            "explained_variance": float(losses.explained_variance(rows.value, rows.target, rows.weight)),
        }

    def _descend(self, loss: float, learning_rate: float) -> float:
        """One optimiser step, unless loss or gradient is not finite: then nothing is touched, and it is counted."""
        norm = float(self._parameters.clip_grad(self.config.max_grad_norm))
        if math.isfinite(loss) and math.isfinite(norm):
            self._optimizer.step(learning_rate)
        else:
            self.skipped_steps += 1
        return norm

    def _observe(self, batch: Batch) -> None:
        """Add each rollout of the batch to the normalisers, once, after it was learned from."""
        rollout = batch.rollout
        for key, normalizer in self.policy.normalizers():
            rows = self._tensor(rollout.observation[key][:-1]).flatten(0, 1)
            normalizer.update(rows[self._tensor(rollout.valid).flatten()])
        if self._reward_scaler is not None:
            for worker, block in batch.blocks():
                self._reward_scaler.update(worker, block)

    def save_state(self) -> dict[str, Any]:
        """Optimiser, random state and counters, as plain values and arrays."""
        return {
            "updates": self.updates,
            "skipped_steps": self.skipped_steps,
            "generator": self._generator.get_state().numpy(),
            "reward_scaler": None if self._reward_scaler is None else self._reward_scaler.save_state(),
            "adam": self._optimizer.save_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue exactly where `save_state` was taken."""
        self.updates, self.skipped_steps = int(state["updates"]), int(state["skipped_steps"])
        self._generator.set_state(torch.from_numpy(np.array(state["generator"], np.uint8)))
        if self._reward_scaler is not None and state["reward_scaler"] is not None:
            self._reward_scaler.load_state(state["reward_scaler"])
        self._optimizer.load_state(state["adam"])


def _mean(stats: list[dict[str, float]], name: str) -> float:
    return sum(stat[name] for stat in stats) / len(stats)
