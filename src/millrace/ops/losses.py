"""Objectives of policy and value. Every mean is weighted by `weight`, so that invalid rows count for nothing."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    """Mean of x [N] under weights [N], with the weights summing to something positive."""
    return (x * weight).sum() / weight.sum().clamp_min(1e-8)


def normalize_advantages(advantage: Tensor, weight: Tensor) -> Tensor:
    """[N] advantages with weighted mean 0 and standard deviation 1 (Huang 2022, detail 7)."""
    mean = weighted_mean(advantage, weight)
    variance = weighted_mean((advantage - mean) ** 2, weight)
    return (advantage - mean) / (variance.sqrt() + 1e-8)


def clipped_policy_loss(
    log_ratio: Tensor,
    advantage: Tensor,
    weight: Tensor,
    clip: float | Tensor,
    dual_clip: float = 0.0,
    log_importance: Tensor | None = None,
    ratio_cap: float = math.inf,
) -> Tensor:
    """-E[min(r A, clip(r, 1 - clip, 1 + clip) A)] over [N]; with dual_clip c at least c A where A < 0.

    With `log_importance`, log(prox / mu), the ratio r = pi / prox is clipped around the proximal policy, and corrected
    for the acting policy mu: -E[min((pi / mu) A, clip(r, 1 - clip, 1 + clip) (prox / mu) A)], the decoupled objective.

    Args:
        log_ratio: log pi of the actions over what is clipped around.
        ratio_cap: largest pi / mu; beyond it there is no gradient.

    Source: Schulman et al. 2017 (arXiv 1707.06347), eq. 7; Ye et al. 2020 (arXiv 1912.09729), eq. 3 for the dual clip;
    Hilton et al. 2021 (arXiv 2110.00641), eq. 3 for the decoupled objective.
    """
    log_cap = math.log(ratio_cap)
    clipped, behaviour = log_ratio.exp().clamp(1.0 - clip, 1.0 + clip), log_ratio  # type: ignore[arg-type]
    if log_importance is not None:
        clipped, behaviour = (clipped * log_importance.exp()).clamp(max=ratio_cap), log_ratio + log_importance
    surrogate = torch.minimum(behaviour.clamp(max=log_cap).exp() * advantage, clipped * advantage)
    if dual_clip:
        surrogate = torch.where(advantage < 0, torch.maximum(surrogate, dual_clip * advantage), surrogate)
    return -weighted_mean(surrogate, weight)


def value_loss(value: Tensor, old_value: Tensor, target: Tensor, weight: Tensor, clip: float) -> Tensor:
    """0.5 E[(V - target)^2] over [N]; with clip > 0 the larger of it and the clipped form (Huang 2022, detail 9)."""
    error = (value - target) ** 2
    if clip > 0:
        clipped = old_value + (value - old_value).clamp(-clip, clip)
        error = torch.maximum(error, (clipped - target) ** 2)
    return 0.5 * weighted_mean(error, weight)


def approximate_kl(log_ratio: Tensor, weight: Tensor) -> Tensor:
    """E[(r - 1) - log r] over [N], the low-variance estimate of KL(old, new). Source: Schulman 2020, blog."""
    return weighted_mean(torch.expm1(log_ratio) - log_ratio, weight)


def ratio_tail_share(log_ratio: Tensor, weight: Tensor, limit: float = 2.0) -> Tensor:
    """Share of rows [N] whose importance ratio lies outside 1 / limit .. limit."""
    return weighted_mean((log_ratio.abs() > math.log(limit)).to(weight.dtype), (weight > 0).to(weight.dtype))


def effective_sample_share(log_ratio: Tensor, weight: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 of the importance weights, as a share of the samples: 1 is on-policy."""
    counts = (weight > 0).to(log_ratio.dtype)  # what draws of a replay buffer weigh is not the policy's doing
    ratio = log_ratio.exp() * counts
    return ratio.sum() ** 2 / ((ratio**2).sum() * counts.sum()).clamp_min(1e-8)


def explained_variance(value: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 - Var[target - value] / Var[target] over [N]: 1 is perfect, 0 no better than a constant."""
    error = target - value
    error_mean, target_mean = weighted_mean(error, weight), weighted_mean(target, weight)
    error_variance = weighted_mean((error - error_mean) ** 2, weight)
    target_variance = weighted_mean((target - target_mean) ** 2, weight)
    return 1.0 - error_variance / target_variance.clamp_min(1e-8)
