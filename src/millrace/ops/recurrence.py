"""One step of a recurrent layer for collectors and players: NumPy only, so that a worker needs no torch.

`torch.nn.GRU` and `torch.nn.LSTM` are the same functions; a test holds them together.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from millrace.types import Array

Weights = Mapping[str, Array]  # torch's names of a layer's parts, matrices transposed


def gru_step(weights: Weights, x: Array, state: Array) -> Array:
    """The next output [B, H], which is the next state too, from inputs [B, F] and state [B, H].

    Source: Cho et al. 2014 (arXiv 1406.1078), in the form of cuDNN: the reset gate acts after the product.
    """
    of_input = x @ weights["weight_ih_l0"] + weights["bias_ih_l0"]
    of_state = state @ weights["weight_hh_l0"] + weights["bias_hh_l0"]
    size = state.shape[1]
    gates = sigmoid(of_input[:, : 2 * size] + of_state[:, : 2 * size])
    reset, update = gates[:, :size], gates[:, size:]
    candidate = np.tanh(of_input[:, 2 * size :] + reset * of_state[:, 2 * size :])
    following: Array = candidate + update * (state - candidate)
    return following


def lstm_step(weights: Weights, x: Array, state: Array) -> Array:
    """The next state [B, 2 H], output and then cell, from inputs [B, F] and the state before.

    Source: Hochreiter & Schmidhuber 1997, with forget gates after Gers et al. 2000.
    """
    size = state.shape[1] // 2
    gates = x @ weights["weight_ih_l0"] + weights["bias_ih_l0"]
    gates += state[:, :size] @ weights["weight_hh_l0"] + weights["bias_hh_l0"]
    keep_input, forget, candidate, output = (gates[:, i * size : (i + 1) * size] for i in range(4))
    cell = sigmoid(forget) * state[:, size:] + sigmoid(keep_input) * np.tanh(candidate)
    return np.concatenate([sigmoid(output) * np.tanh(cell), cell], axis=1)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), by the hyperbolic tangent: NumPy's is vectorised and never overflows."""
    half: Array = np.tanh(np.float32(0.5) * x)
    half += 1
    half *= np.float32(0.5)
    return half
