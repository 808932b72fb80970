"""From a batch of rollouts to rows with advantages and value targets."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from millrace.config import PPOConfig
from millrace.learner.rewards import RewardScaler
from millrace.learner.rows import Rows
from millrace.nets.policy import Policy
from millrace.ops.gae import generalized_advantages
from millrace.types import Array, Rollout


class Targets:
    """Advantages by GAE, from the values at collection or, for later epochs, from the present policy's."""

    def __init__(self, policy: Policy, config: PPOConfig, reward_scaler: RewardScaler | None) -> None:
        self._policy, self._config, self._reward_scaler = policy, config, reward_scaler
        self._device = next(policy.parameters()).device

    def rows(self, rollout: Rollout) -> Rows:
        """One row per (step, slot); [T * B, ...] each."""
        value = self._tensor(rollout.value)
        advantage = self._advantages(rollout, value)
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

    @torch.no_grad()
    def refreshed(self, rows: Rows, rollout: Rollout) -> Rows:
        """The rows with advantages and targets from the values of the present policy.

        Source: Andrychowicz et al. 2020 (arXiv 2006.05990), section 3.5.
        """
        observation = {key: self._tensor(array).flatten(0, 1) for key, array in rollout.observation.items()}
        value = self._policy(observation)[1].view(rollout.value.shape)
        advantage = self._advantages(rollout, value)
        return dataclasses.replace(rows, advantage=advantage.flatten(), target=(advantage + value[:-1]).flatten())

    def _advantages(self, rollout: Rollout, value: Tensor) -> Tensor:
        terminated, valid = self._tensor(rollout.terminated), self._tensor(rollout.valid)
        cut = terminated | self._tensor(rollout.truncated) | ~valid
        cut[:-1] |= ~valid[1:]  # an invalid row in mid-episode is bootstrapped from, and nothing of it flows back
        return generalized_advantages(
            self._tensor(self._reward(rollout.reward)),
            value[:-1],
            self._next_value(rollout, value),
            terminated,
            cut,
            self._config.gamma,
            self._config.gae_lambda,
        )

    def _reward(self, reward: Array) -> Array:
        """Scaled by the running deviation, then by the constant, then clipped: each if wanted."""
        config = self._config
        if self._reward_scaler is not None:
            reward = self._reward_scaler.scale(reward)
        if config.reward_scale != 1.0:
            reward = reward * np.float32(config.reward_scale)
        return np.clip(reward, -config.reward_clip, config.reward_clip) if config.reward_clip else reward

    def _next_value(self, rollout: Rollout, value: Tensor) -> Tensor:
        if rollout.bootstrap_value is None:
            return value[1:]
        bootstrap = self._tensor(rollout.bootstrap_value)
        return torch.where(bootstrap.isnan(), value[1:], bootstrap)

    def _mask(self, rollout: Rollout) -> Tensor | None:
        if rollout.action_mask is None:
            return None
        bits = self._policy.spec.num_mask_bits
        unpacked = np.unpackbits(rollout.action_mask[:-1], axis=-1, count=bits, bitorder="little")
        return self._tensor(unpacked.view(bool)).flatten(0, 1)

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(array).to(self._device)
