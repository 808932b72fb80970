"""Advantage estimation."""

from __future__ import annotations

import torch
from torch import Tensor


def temporal_differences(reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, gamma: float) -> Tensor:
    """Temporal-difference errors, with termination and truncation told apart.

    delta_t = R_t + gamma V(s'_t) (1 - terminated_t) - V(s_t), where s'_t is the observation before any reset: a
    truncated episode is bootstrapped, a terminated one is not.

    Args:
        reward: [T, B].
        value: [T, B] V(s_t).
        next_value: [T, B] V(s'_t).
        terminated: [T, B] bool.

    Returns:
        [T, B].

    Source: Pardo et al. 2018 (arXiv 1712.00378) for truncation.
    """
    return torch.where(terminated, reward, reward + gamma * next_value) - value


def generalized_advantages(
    delta: Tensor, done: Tensor, gamma: float, gae_lambda: float, after: Tensor | None = None
) -> Tensor:
    """Generalized advantage estimates: A_t = delta_t + gamma lambda (1 - done_t) A_{t+1}.

    Args:
        delta: [T, B], see `temporal_differences`.
        done: [T, B] bool, terminated or truncated (or a reset transition): nothing flows back across it.
        after: [B] A_T where the sequence is part of a longer one; 0 unless given.

    Returns:
        [T, B] advantages; the value targets are `advantages + value`.

    Source: Schulman et al. 2016 (arXiv 1506.02438), eq. 16.
    """
    return carried_back(delta, (gamma * gae_lambda) * (~done).to(delta.dtype), after)


def carried_back(x: Tensor, carry: Tensor, after: Tensor | None = None) -> Tensor:
    """y_t = x_t + carry_t y_{t+1}, all [T, B]; `after` [B] is y_T, 0 unless given."""
    y = torch.zeros_like(x)
    running = torch.zeros_like(x[0]) if after is None else after
    # One fused operation a step: everything else is vectorised over T.
    for x_t, carry_t, y_t in zip(x.flip(0), carry.flip(0), reversed(y.unbind(0)), strict=True):
        running = torch.addcmul(x_t, carry_t, running, out=y_t)
    return y
