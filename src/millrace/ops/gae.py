"""Advantage estimation."""

from __future__ import annotations

import torch
from torch import Tensor


def generalized_advantages(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalized advantage estimates, with termination and truncation told apart.

    delta_t = R_t + gamma V(s'_t) (1 - terminated_t) - V(s_t); A_t = delta_t + gamma lambda (1 - done_t) A_{t+1},
    where s'_t is the observation before any reset: a truncated episode is bootstrapped, a terminated one is not.

    Args:
        reward: [T, B].
        value: [T, B] V(s_t).
        next_value: [T, B] V(s'_t).
        terminated: [T, B] bool.
        done: [T, B] bool, terminated or truncated (or a reset transition): nothing flows back across it.

    Returns:
        [T, B] advantages; the value targets are `advantages + value`.

    Source: Schulman et al. 2016 (arXiv 1506.02438), eq. 16; Pardo et al. 2018 (arXiv 1712.00378) for truncation.
    """
    delta = torch.where(terminated, reward, reward + gamma * next_value) - value
    carry = (gamma * gae_lambda) * (~done).to(delta.dtype)
    advantage = torch.zeros_like(delta)
    running = torch.zeros_like(delta[0])
    # One fused operation a step: everything else is vectorised over T.
    for delta_t, carry_t, advantage_t in zip(delta.flip(0), carry.flip(0), reversed(advantage.unbind(0)), strict=True):
        running = torch.addcmul(delta_t, carry_t, running, out=advantage_t)
    return advantage
