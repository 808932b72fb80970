"""From a batch of rollouts to rows with advantages and value targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from millrace.buffer.batch import Batch
from millrace.config import PPOConfig
from millrace.learner.rewards import RewardScaler
from millrace.learner.rows import Rows, StackedFrames, seen
from millrace.learner.uploads import sent
from millrace.nets.policy import Policy
from millrace.ops.distributions import log_prob_and_entropy
from millrace.ops.gae import generalized_advantages, temporal_differences
from millrace.ops.vtrace import Returns, clipped_gae, vtrace
from millrace.types import Array, Rollout

JUDGED_ROWS = 512


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What the present policy makes of a rollout: log-probability of its actions [T, B], values [T + 1, B]."""

    log_prob: Tensor
    value: Tensor


class Targets:
    """Advantages and value targets, from what collectors noted and what the present policy makes of it."""

    def __init__(
        self, policy: Policy, config: PPOConfig, reward_scaler: RewardScaler | None, burn_in_steps: int = 0
    ) -> None:
        self._policy, self._config, self._reward_scaler = policy, config, reward_scaler
        self._device = next(policy.parameters()).device
        self._burn_in_steps = burn_in_steps
        self._batch: tuple[Rollout | None, dict[str, Tensor]] = None, {}  # its observations are uploaded once
        self._is_proximal = config.objective in ("proximal", "decoupled")
        self._is_corrected = config.targets in ("vtrace", "clipped_gae")
        self._judges = self._is_proximal or self._is_corrected or config.values == "learner"

    def rows(self, batch: Batch, bonus: Array | None = None) -> Rows:
        """One row per (step, slot); [T * B, ...] each.

        Args:
            bonus: [T, B] intrinsic reward.
        """
        rollout = batch.rollout
        self._batch = rollout, batch.uploaded or self._uploaded(rollout)
        reward = self._reward(rollout.reward)
        rewards = self._tensor(reward if bonus is None else reward + bonus)
        judgement = self._judge(rollout) if self._judges else None
        after = self._carried(batch)
        value, returns, log_importance = self._returns(rollout, rewards, judgement, after)
        log_prob = self._tensor(rollout.log_prob)
        if judgement is not None and self._is_proximal:
            log_prob = judgement.log_prob
        return Rows(
            observation=self._observation(rollout, rollout.num_steps),
            action=self._tensor(rollout.action).flatten(0, 1),
            log_prob=log_prob.flatten(),
            advantage=returns.advantage.flatten(),
            target=(returns.error + value).flatten(),
            value=value.flatten(),
            weight=self._tensor(self._weight(batch)).flatten(),
            action_mask=self._mask(rollout),
            begins=self._begins(rollout, rollout.num_steps).flatten() if self._policy.state_size else None,
            reward=rewards.flatten(),
            log_importance=log_importance.flatten() if self._is_proximal else None,
            td_error=None if batch.draws is None else returns.delta.flatten(),
        )

    def _weight(self, batch: Batch) -> Array:
        """[T, B] float32: 0 for what is no experience; importance, emphasis and age."""
        rollout = batch.rollout
        weight = rollout.valid.astype(np.float32)
        if batch.draws is not None:
            weight *= batch.draws.weight
        if batch.emphasis is not None:
            weight *= batch.emphasis
        if self._config.age_weight < 1.0:
            weight *= np.float32(self._config.age_weight) ** (batch.version - rollout.policy_version)
        weight[: self._burn_in_steps] = 0.0
        return weight

    def _carried(self, batch: Batch) -> Tensor | None:
        """[B] errors behind the last row, where rows are single steps of a longer rollout."""
        if batch.draws is None or batch.draws.carried is None:
            return None
        for stale in batch.draws.refresh:
            reward = self._tensor(self._reward(stale.rollout.reward))
            _, returns, _ = self._returns(stale.rollout, reward, self._judge(stale.rollout), None)
            stale.error[:-1] = returns.error.cpu().numpy()
        return self._tensor(batch.draws.carried())

    def state(self, rollout: Rollout) -> Tensor | None:
        """[B, S] recurrent state before the first row; None for networks without recurrence."""
        return None if rollout.state is None else self._tensor(rollout.state[0])

    def _observation(self, rollout: Rollout, num_rows: int) -> dict[str, Tensor | StackedFrames]:
        """The first rows [num_rows * B, ...] as the policy sees them."""
        observation: dict[str, Tensor | StackedFrames] = {}
        of_batch, uploaded = self._batch
        for key, tensor in (uploaded if rollout is of_batch else self._uploaded(rollout)).items():
            stack = self._policy.spec.observation[key].stack
            if stack == 1:
                observation[key] = tensor[:num_rows].flatten(0, 1)
            else:
                index = self._tensor(stack_index(rollout, stack, num_rows))
                observation[key] = StackedFrames(tensor.flatten(0, 1), index)
        return observation

    def _uploaded(self, rollout: Rollout) -> dict[str, Tensor]:
        """Its observations on the device; on a CPU where they are."""
        return {key: self._tensor(array) for key, array in rollout.observation.items()}

    def _begins(self, rollout: Rollout, num_rows: int) -> Tensor:
        """[num_rows, B] where an episode begins."""
        assert rollout.age is not None
        return self._tensor(rollout.age[:num_rows] == 0)

    def refreshed(self, rows: Rows, batch: Batch) -> Rows:
        """The rows with advantages and targets from values and ratios of the present policy.

        Source: Andrychowicz et al. 2020 (arXiv 2006.05990), section 3.5.
        """
        rollout = batch.rollout
        assert rows.reward is not None
        reward, judgement = rows.reward.view(rollout.reward.shape), self._judge(rollout)
        value, returns, _ = self._returns(rollout, reward, judgement, self._carried(batch), judgement.value)
        return dataclasses.replace(
            rows, advantage=returns.advantage.flatten(), target=(returns.error + value).flatten()
        )

    @torch.no_grad()
    def _judge(self, rollout: Rollout) -> Judgement:
        """Unrolled from the state before the first row where the policy is recurrent, never from what was stored."""
        num_rows, state = rollout.num_steps + 1, self.state(rollout)
        observation = self._observation(rollout, num_rows)
        if state is None:
            parts = [self._policy(seen(part)) for part in _parts(observation, rollout.value.size)]
            params, value = (torch.cat(outputs) for outputs in zip(*parts, strict=True))
        else:
            params, value, _ = self._policy.unroll(seen(observation), state, self._begins(rollout, num_rows))
        action = self._tensor(rollout.action).flatten(0, 1)
        log_prob, _ = log_prob_and_entropy(self._policy.spec.action, params[: len(action)], action, self._mask(rollout))
        return Judgement(log_prob.view(rollout.log_prob.shape), value.view(rollout.value.shape))

    def _returns(
        self,
        rollout: Rollout,
        reward: Tensor,
        judgement: Judgement | None,
        after: Tensor | None,
        value: Tensor | None = None,
    ) -> tuple[Tensor, Returns, Tensor]:
        """Values [T, B], what they and the policy are moved towards, and the log of the importance ratios [T, B]."""
        config, behaviour = self._config, self._tensor(rollout.log_prob)
        if value is None:
            value = self._tensor(rollout.value)
            if judgement is not None and config.values == "learner":
                value = judgement.value
        log_importance = torch.zeros_like(behaviour)
        if judgement is not None:
            # Rows that are no experience hold any numbers, which must not spread.
            log_importance = torch.where(self._tensor(rollout.valid), judgement.log_prob - behaviour, log_importance)
        delta, cut = self._differences(rollout, reward, value)
        ratio = log_importance.exp()
        if not self._is_corrected:
            advantage = generalized_advantages(delta, cut, config.gamma, config.gae_lambda, after)
            returns = Returns(delta, advantage, advantage)
        else:
            method = vtrace if config.targets == "vtrace" else clipped_gae
            bars = config.rho_bar, config.c_bar
            returns = method(delta, cut, ratio, config.gamma, config.gae_lambda, *bars, after)
        if config.targets == "vtrace" and config.objective == "proximal":
            # This objective does not multiply by pi / mu, so the advantage does.
            returns = returns._replace(advantage=returns.advantage * ratio.clamp(max=config.rho_bar))
        return value[:-1], returns, log_importance

    def _differences(self, rollout: Rollout, reward: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Temporal-difference errors [T, B], and where nothing flows back."""
        terminated, valid = self._tensor(rollout.terminated), self._tensor(rollout.valid)
        cut = terminated | self._tensor(rollout.truncated) | ~valid
        cut[:-1] |= ~valid[1:]  # an invalid row in mid-episode is bootstrapped from, and nothing of it flows back
        next_value = self._next_value(rollout, value)
        return temporal_differences(reward, value[:-1], next_value, terminated, self._config.gamma), cut

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
        tensor = torch.from_numpy(array)
        return sent(tensor, self._device) if self._config.overlap_transfers else tensor.to(self._device)


def _parts(
    observation: dict[str, Tensor | StackedFrames], num_rows: int
) -> Iterator[dict[str, Tensor | StackedFrames]]:
    """So many rows at a time: what convolutions make of all of them does not fit into a processor's caches."""
    for first in range(0, num_rows, JUDGED_ROWS):
        yield {key: x[first : first + JUDGED_ROWS] for key, x in observation.items()}


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
