"""Advantages and value targets from experience of another policy than the present one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from millrace.ops.gae import carried_back


class Returns(NamedTuple):
    """What a policy and its values are moved towards, [T, B] each.

    Attributes:
        delta: temporal-difference errors.
        error: by how much the value targets exceed the values.
        advantage: for an objective that multiplies it by pi / mu itself.
    """

    delta: Tensor
    error: Tensor
    advantage: Tensor


def vtrace(
    delta: Tensor,
    done: Tensor,
    ratio: Tensor,
    gamma: float,
    vtrace_lambda: float = 1.0,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    after: Tensor | None = None,
) -> Returns:
    """V-trace: values of the policy pi from what mu experienced.

    v_s - V_s = rho_s delta_s + gamma c_s (v_{s+1} - V_{s+1}), rho = min(rho_bar, r), c = lambda min(c_bar, r), and the
    advantage is R_s + gamma v_{s+1} - V_s = delta_s + gamma (v_{s+1} - V_{s+1}). The paper's weight rho_s is left to
    the objective: PPO's multiplies by pi / mu, and the ratio would count twice.

    Args:
        delta: [T, B], see `millrace.ops.gae.temporal_differences`.
        done: [T, B] bool: nothing flows back across it.
        ratio: [T, B] r = pi / mu of the actions.
        after: [B] v_T - V_T where the sequence is part of a longer one; 0 unless given.

    Source: Espeholt et al. 2018 (arXiv 1802.01561), section 4.1, in the recursive form of remark 1.
    """
    going_on = gamma * (~done).to(delta.dtype)
    carry = going_on * vtrace_lambda * ratio.clamp(max=c_bar)
    error = carried_back(ratio.clamp(max=rho_bar) * delta, carry, after)
    last = torch.zeros_like(error[:1]) if after is None else after[None]
    return Returns(delta, error, delta + going_on * torch.cat([error[1:], last]))


def clipped_gae(
    delta: Tensor,
    done: Tensor,
    ratio: Tensor,
    gamma: float,
    gae_lambda: float,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    after: Tensor | None = None,
) -> Returns:
    """Generalized advantages with V-trace's clipped ratios: delta scaled by min(rho_bar, r), carry by min(c_bar, r).

    Arguments as for `vtrace`. With r = 1 it is `generalized_advantages`. Source: PufferLib 3.0.
    """
    carry = (gamma * gae_lambda) * (~done).to(delta.dtype) * ratio.clamp(max=c_bar)
    error = carried_back(ratio.clamp(max=rho_bar) * delta, carry, after)
    return Returns(delta, error, error)
