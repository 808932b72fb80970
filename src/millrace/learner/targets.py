"""From a batch of rollouts to rows with advantages and value targets."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from millrace.config import PPOConfig
from millrace.learner.rewards import RewardScaler
from millrace.learner.rows import Rows, StackedFrames, seen
from millrace.nets.policy import Policy
from millrace.ops.gae import generalized_advantages
from millrace.types import Array, Rollout


class Targets:
    """Advantages by GAE, from the values at collection or, for later epochs, from the present policy's."""

    def __init__(self, policy: Policy, config: PPOConfig, reward_scaler: RewardScaler | None) -> None:
        self._policy, self._config, self._reward_scaler = policy, config, reward_scaler
        self._device = next(policy.parameters()).device

    def rows(self, rollout: Rollout, bonus: Array | None = None) -> Rows:
        """One row per (step, slot); [T * B, ...] each.

        Args:
            bonus: [T, B] intrinsic reward.
        """
        value = self._tensor(rollout.value)
        reward = self._reward(rollout.reward)
        rewards = self._tensor(reward if bonus is None else reward + bonus)
        advantage = self._advantages(rollout, rewards, value)
        return Rows(
            observation=self._observation(rollout, rollout.num_steps),
            action=self._tensor(rollout.action).flatten(0, 1),
            log_prob=self._tensor(rollout.log_prob).flatten(),
            advantage=advantage.flatten(),
            target=(advantage + value[:-1]).flatten(),
            value=value[:-1].flatten(),
            weight=self._tensor(rollout.valid).float().flatten(),
            action_mask=self._mask(rollout),
            begins=self._begins(rollout, rollout.num_steps).flatten() if self._policy.state_size else None,
            reward=rewards.flatten(),
        )

    def state(self, rollout: Rollout) -> Tensor | None:
        """[B, S] recurrent state before the first row; None for networks without recurrence."""
        return None if rollout.state is None else self._tensor(rollout.state[0])

    def _observation(self, rollout: Rollout, num_rows: int) -> dict[str, Tensor | StackedFrames]:
        """The first rows [num_rows * B, ...] as the policy sees them."""
        observation: dict[str, Tensor | StackedFrames] = {}
        for key, array in rollout.observation.items():
            stack = self._policy.spec.observation[key].stack
            if stack == 1:
                observation[key] = self._tensor(array[:num_rows]).flatten(0, 1)
            else:
                index = self._tensor(stack_index(rollout, stack, num_rows))
                observation[key] = StackedFrames(self._tensor(array).flatten(0, 1), index)
        return observation

    def _begins(self, rollout: Rollout, num_rows: int) -> Tensor:
        """[num_rows, B] where an episode begins."""
        assert rollout.age is not None
        return self._tensor(rollout.age[:num_rows] == 0)

    @torch.no_grad()
    def refreshed(self, rows: Rows, rollout: Rollout) -> Rows:
        """The rows with advantages and targets from the values of the present policy.

        Source: Andrychowicz et al. 2020 (arXiv 2006.05990), section 3.5.
        """
        num_rows = rollout.num_steps + 1
        observation, state = seen(self._observation(rollout, num_rows)), self.state(rollout)
        if state is None:
            value = self._policy(observation)[1]
        else:
            value = self._policy.unroll(observation, state, self._begins(rollout, num_rows))[1]
        value = value.view(rollout.value.shape)
        assert rows.reward is not None
        advantage = self._advantages(rollout, rows.reward.view(value[:-1].shape), value)
        return dataclasses.replace(rows, advantage=advantage.flatten(), target=(advantage + value[:-1]).flatten())

    def _advantages(self, rollout: Rollout, reward: Tensor, value: Tensor) -> Tensor:
        terminated, valid = self._tensor(rollout.terminated), self._tensor(rollout.valid)
        cut = terminated | self._tensor(rollout.truncated) | ~valid
        cut[:-1] |= ~valid[1:]  # an invalid row in mid-episode is bootstrapped from, and nothing of it flows back
        return generalized_advantages(
            reward,
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


def stack_index(rollout: Rollout, stack: int, num_rows: int) -> Array:
    """[num_rows * B, K] int64: where in [(K - 1 + T + 1) * B] frames each stack lies, oldest first.

    An episode's first frame stands in for those before it, as `millrace.nets.memory.Memory` has it.
    """
    assert rollout.age is not None
    num_slots = rollout.num_slots
    back = np.arange(stack - 1, -1, -1)  # how many rows before the present one
    back = np.minimum(back, rollout.age[:num_rows, :, None])
    row = np.arange(num_rows)[:, None, None] + (stack - 1) - back
    index: Array = row * num_slots + np.arange(num_slots)[:, None]
    return index.reshape(-1, stack)
