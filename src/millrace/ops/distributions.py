"""The action distribution for the learner: log-probabilities and entropies as differentiable tensors.

`millrace.ops.sampling` is the same mathematics in NumPy, for the collectors; a test holds them together.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from millrace.types import ActionSpec

MASKED_LOGIT = -1e8  # finite, so that 0 * log 0 stays 0 in the entropy
HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def log_prob_and_entropy(
    spec: ActionSpec, params: Tensor, action: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of `action` and entropy, summed over the columns.

    Args:
        params: [N, P] logits, means, log standard deviations.
        action: [N, A].
        mask: [N, M] bool, True where allowed; None allows all.

    Returns:
        ([N], [N]).
    """
    if spec.nvec == (2,) and mask is None:
        return _two_way(params, action)
    log_prob, entropy = torch.zeros_like(params[:, 0]), torch.zeros_like(params[:, 0])
    logits = params[:, : spec.num_logits]
    if mask is not None:
        logits = logits.masked_fill(~mask, MASKED_LOGIT)  # `where` would copy the number to the device
    for column, (first, size) in enumerate(_blocks(spec)):
        log_probs = torch.log_softmax(logits[:, first : first + size], dim=-1)
        chosen = action[:, column : column + 1].long()
        log_prob = log_prob + log_probs.gather(1, chosen).squeeze(1)
        entropy = entropy - (log_probs.exp() * log_probs).sum(-1)
    if spec.num_box:
        mean, log_std = params[:, spec.num_logits :].chunk(2, dim=-1)
        scaled = (action[:, len(spec.nvec) :] - mean) * torch.exp(-log_std)
        log_prob = log_prob - (0.5 * scaled**2 + log_std + HALF_LOG_TWO_PI).sum(-1)
        entropy = entropy + (log_std + 0.5 + HALF_LOG_TWO_PI).sum(-1)
    return log_prob, entropy


def _two_way(params: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Two categories are one Bernoulli: a third of the operations, for the commonest small game."""
    margin = params[:, 1] - params[:, 0]
    log_first, log_second = torch.nn.functional.logsigmoid(-margin), torch.nn.functional.logsigmoid(margin)
    log_prob = torch.where(action[:, 0] == 1, log_second, log_first)
    # H = -log p0 - p1 * margin, since log p1 = log p0 + margin.
    return log_prob, -log_first - log_second.exp() * margin


def _blocks(spec: ActionSpec) -> list[tuple[int, int]]:
    firsts = [sum(spec.nvec[:column]) for column in range(len(spec.nvec))]
    return list(zip(firsts, spec.nvec, strict=True))
