"""The action distribution for collectors and players: NumPy only, so that a worker needs no torch."""

from __future__ import annotations

import numpy as np

from millrace.types import ActionSpec, Array

HALF_LOG_TWO_PI = 0.5 * float(np.log(2 * np.pi))
MASKED_LOGIT = np.float32(-1e8)
JUST_BELOW_ONE = np.float32(1 - 2**-22)


def sample_actions(
    spec: ActionSpec, params: Array, mask: Array | None, rng: np.random.Generator, action: Array, log_prob: Array
) -> None:
    """Draw one action per row and write it and its log-probability.

    Args:
        params: [B, P] float32 logits, means, log standard deviations.
        mask: [B, M] bool, True where allowed; None allows all.
        action: [B, A], written.
        log_prob: [B] float32, written.
    """
    first = 0
    for column, size in enumerate(spec.nvec):
        logits = params[:, first : first + size]
        if mask is not None:
            logits = np.where(mask[:, first : first + size], logits, MASKED_LOGIT)
        chosen, chosen_log_prob = _sample_categorical(logits, rng)
        action[:, column] = chosen
        log_prob[:] = chosen_log_prob if column == 0 else log_prob + chosen_log_prob
        first += size
    if spec.num_box:
        mean, log_std = params[:, first : first + spec.num_box], params[:, first + spec.num_box :]
        deviation = np.exp(log_std)
        box = action[:, len(spec.nvec) :]
        box[...] = mean + deviation * rng.standard_normal(mean.shape, dtype=np.float32)
        # From the action as stored: with a small deviation its rounding is worth more than 1e-6.
        scaled = (box - mean) / deviation
        box_log_prob = -(0.5 * scaled**2 + log_std + HALF_LOG_TWO_PI).sum(-1)
        log_prob[:] = log_prob + box_log_prob if spec.nvec else box_log_prob


def tempered(spec: ActionSpec, params: Array, temperature: float) -> Array:
    """[B, P] parameters of the distribution at a temperature: above 1 it explores more, below 1 less.

    Categories have their logits divided by it, p ~ p^(1 / temperature); normals their deviation multiplied.
    """
    params = params.copy()
    params[:, : spec.num_logits] /= np.float32(temperature)
    params[:, params.shape[1] - spec.num_box :] += np.float32(np.log(temperature))
    return params


def best_actions(spec: ActionSpec, params: Array, mask: Array | None) -> Array:
    """[B, A] the mode of the distribution of each row."""
    action = np.empty((len(params), spec.num_columns), spec.dtype)
    first = 0
    for column, size in enumerate(spec.nvec):
        logits = params[:, first : first + size]
        if mask is not None:
            logits = np.where(mask[:, first : first + size], logits, MASKED_LOGIT)
        action[:, column] = logits.argmax(-1)
        first += size
    action[:, len(spec.nvec) :] = params[:, first : first + spec.num_box]
    return action


def _sample_categorical(logits: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Inverse transform: one uniform number a row whatever the number of categories."""
    shifted = logits - logits.max(-1, keepdims=True)
    cumulative = np.cumsum(np.exp(shifted), axis=-1)
    total = cumulative[:, -1]
    # Just below the total, or rounding could leave no category above it. Strictly greater: a masked
    # category adds nothing to the sum and can never be the first above the threshold.
    threshold = rng.random(len(logits), dtype=np.float32) * total * JUST_BELOW_ONE
    chosen = (cumulative > threshold[:, None]).argmax(-1)
    return chosen, shifted[np.arange(len(logits)), chosen] - np.log(total)
