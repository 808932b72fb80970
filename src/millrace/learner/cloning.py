"""Behaviour cloning: a policy learns to do what was done.

Source: Pomerleau 1989 (NeurIPS 1); here with a value beside it, as a start for PPO.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from millrace.buffer.batch import Batch
from millrace.config import ImitateConfig, PPOConfig
from millrace.learner.autograd import AutogradGradients
from millrace.learner.flat import Adam, FlatParameters
from millrace.learner.ppo import observe
from millrace.learner.rewards import RewardScaler
from millrace.learner.rows import Rows
from millrace.learner.sequences import SequenceGradients
from millrace.learner.targets import Targets
from millrace.nets.policy import Policy
from millrace.ops import losses
from millrace.ops.distributions import log_prob_and_entropy
from millrace.ops.sampling import best_actions


class Cloner:
    """Descends on -log pi(a | s) of rollouts that somebody else acted, and on the value loss towards their returns.

    It re-homes the policy's parameters: make it, use it, and make the `Learner` afterwards.

    Attributes:
        reward_scaler: the reward statistics so far, which the values are in units of; None where not wanted.
    """

    def __init__(self, policy: Policy, ppo: PPOConfig, imitate: ImitateConfig, seed: int) -> None:
        self._policy, self._ppo, self._imitate = policy, ppo, imitate
        self._parameters = FlatParameters(policy.parameters())
        self._optimizer = Adam(self._parameters, ppo.adam_eps)
        kind = SequenceGradients if policy.state_size else AutogradGradients
        self._minibatches = kind(policy, self._parameters, ppo)
        self.reward_scaler = RewardScaler(ppo.gamma) if ppo.normalize_reward else None
        self.skipped_steps = 0
        # The player's own rollouts, before there is anything to correct for.
        plain = dataclasses.replace(ppo, targets="gae", objective="clip", values="actor")
        self._targets = Targets(policy, plain, self.reward_scaler)
        self._generator = torch.Generator().manual_seed(seed)

    def update(self, batch: Batch, learning_rate: float) -> dict[str, float]:
        """A few epochs over a batch whose values are the present policy's.

        Returns:
            Means over the first epoch, each row judged before it was learned from: `log_prob` of the player's actions
            and `agreement`, the share of rows whose categories the policy holds to be the most probable ones.
        """
        rows = self._targets.rows(batch)
        self._minibatches.prepare(rows, self._targets.state(batch.rollout))
        stats = [self._epoch(len(rows), learning_rate) for _ in range(self._imitate.epochs)]
        observe(self._policy, self.reward_scaler, batch)
        return stats[0]

    def _epoch(self, num_rows: int, learning_rate: float) -> dict[str, float]:
        self._minibatches.shuffle(self._generator)
        size = self._ppo.minibatch_size
        stats = [self._step(first, first + size, learning_rate) for first in range(0, num_rows, size)]
        return {name: float(np.mean([stat[name] for stat in stats])) for name in stats[0]}

    def _step(self, first: int, last: int, learning_rate: float) -> dict[str, float]:
        rows, params, value = self._minibatches.evaluate(first, last)
        params = params.float()  # where the network runs in bfloat16
        log_prob, _ = log_prob_and_entropy(self._policy.spec.action, params, rows.action, rows.action_mask)
        mean_log_prob = losses.weighted_mean(log_prob, rows.weight)
        value_loss = losses.value_loss(value, rows.value, rows.target, rows.weight, clip=0.0)
        loss = self._imitate.value_coef * value_loss - mean_log_prob
        self._parameters.grad.zero_()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = float(self._parameters.clip_grad(self._ppo.max_grad_norm))
        if math.isfinite(norm) and math.isfinite(float(loss.detach())):
            self._optimizer.step(learning_rate)
        else:
            self.skipped_steps += 1
        return {"log_prob": float(mean_log_prob.detach()), "agreement": self._agreement(rows, params.detach())}

    def _agreement(self, rows: Rows, params: Tensor) -> float:
        spec = self._policy.spec.action
        if not spec.nvec:
            return math.nan
        mask = None if rows.action_mask is None else rows.action_mask.cpu().numpy()
        columns = slice(0, len(spec.nvec))
        agrees = best_actions(spec, params.cpu().numpy(), mask)[:, columns] == rows.action.cpu().numpy()[:, columns]
        weight = rows.weight.cpu().numpy()
        return float(agrees.all(1) @ weight / max(float(weight.sum()), 1.0))
