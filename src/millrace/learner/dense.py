"""The gradient of the PPO objective for dense networks, written out by hand in NumPy.

For small networks autograd's bookkeeping costs more than the arithmetic, and `torch.tanh` on a CPU is 13 times
slower than NumPy's (283 against 21 microseconds for 2048 x 64). By hand, with every buffer kept, a gradient step of a
64-64 actor-critic takes 0.3 of autograd's time at 64 rows and 0.4 to 0.5 at 256 to 4096 (benchmarks/gradients.py).
A test holds it to autograd.

Rows of parameters lie along the last axis here, [P, N]: reductions over a few categories are then vectorised.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from millrace.config import PPOConfig
from millrace.learner.rows import Rows
from millrace.nets.dense_network import DenseNetwork
from millrace.nets.policy import Policy
from millrace.ops.distributions import HALF_LOG_TWO_PI, MASKED_LOGIT
from millrace.types import Array

EPS = 1e-8
NOT_NEEDED = ("reward", "td_error")  # by gradients


class DenseGradients:
    """Gradients of a `DenseNetwork`; writes them where the parameters' `grad` lies."""

    def __init__(self, policy: Policy, network: DenseNetwork, config: PPOConfig) -> None:
        self._policy, self._config = policy, config
        self._action = policy.spec.action
        self._actor = _Trunk(network.trunk if network.shared else network.actor, network)
        self._critic = self._actor if network.shared else _Trunk(network.critic, network)
        self._policy_head, self._value_head = _Linear(network.policy_head), _Linear(network.value_head)
        self._log_std = _arrays(policy.log_std) if self._action.num_box else None
        self._keys = network.keys
        self._rows: dict[str, Array] = {}
        self._shuffled: dict[str, Array] = {}

    def prepare(self, rows: Rows, state: Tensor | None = None) -> None:
        """Prepare the inputs once for all epochs; everything else is shared with the tensors."""
        with torch.no_grad():
            seen = rows.seen()
            prepared = [self._policy.prepared(key, seen[key]).reshape(len(rows), -1) for key in self._keys]
            inputs = torch.cat(prepared, dim=1) if len(prepared) > 1 else prepared[0]
        tensors = {name: x for name, x in vars(rows).items() if isinstance(x, Tensor) and name not in NOT_NEEDED}
        self._rows = {"inputs": inputs.numpy()} | {name: x.numpy() for name, x in tensors.items()}

    def shuffle(self, generator: torch.Generator) -> None:
        order = torch.randperm(len(self._rows["weight"]), generator=generator).numpy()
        self._shuffled = {
            name: np.take(x, order, axis=0, out=self._shuffled.get(name), mode="clip")
            if self._fits(name, x)
            else np.take(x, order, axis=0)
            for name, x in self._rows.items()
        }

    def _fits(self, name: str, x: Array) -> bool:
        return name in self._shuffled and self._shuffled[name].shape == x.shape

    def compute(self, first: int, last: int, clip: float, wants_stats: bool) -> tuple[float, dict[str, float]]:
        rows = {name: x[first:last] for name, x in self._shuffled.items()}
        config, weight = self._config, rows["weight"]
        weight = weight / max(float(weight.sum()), EPS)  # sums to 1: every mean below is a dot product
        actor = self._actor.forward(rows["inputs"])
        critic = actor if self._critic is self._actor else self._critic.forward(rows["inputs"])
        outputs = self._policy_head.forward(actor)  # [P', N]
        value = self._value_head.forward(critic)[0]  # [N]

        heads = _Heads(self._action, outputs, rows, self._log_std)
        log_ratio = heads.log_prob - rows["log_prob"]
        importance = rows.get("log_importance")
        policy_loss, by_log_prob = _policy_loss(
            log_ratio,
            self._advantage(rows, weight),
            weight,
            clip,
            config,
            importance if config.objective == "decoupled" else None,
        )
        value_loss, by_value = _value_loss(value, rows, weight, config.value_clip)
        entropy = float(weight @ heads.entropy)
        loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy

        by_outputs = heads.backward(by_log_prob, -config.entropy_coef * weight)
        by_value *= config.value_coef
        by_actor = self._policy_head.backward(actor, by_outputs)
        by_critic = self._value_head.backward(critic, by_value[None])
        if self._critic is self._actor:
            by_actor += by_critic
        else:
            self._critic.backward(rows["inputs"], by_critic)
        self._actor.backward(rows["inputs"], by_actor)
        if not wants_stats:
            return loss, {}
        return loss, {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            **_ratio_stats(log_ratio, weight, clip, importance),
        }

    def _advantage(self, rows: dict[str, Array], weight: Array) -> Array:
        advantage = rows["advantage"]
        if not self._config.normalize_advantage:
            return advantage
        centred: Array = advantage - weight @ advantage
        return centred / np.float32(np.sqrt(weight @ (centred * centred)) + EPS)


def _policy_loss(
    log_ratio: Array, advantage: Array, weight: Array, clip: float, config: PPOConfig, log_importance: Array | None
) -> tuple[float, Array]:
    """`millrace.ops.losses.clipped_policy_loss` and its derivative by the log-probability [N]."""
    cap, ratio = np.float32(config.ratio_cap), np.exp(log_ratio)
    clipped, behaviour = np.clip(ratio, 1.0 - clip, 1.0 + clip), ratio
    is_inside = clipped == ratio
    if log_importance is not None:
        importance = np.exp(log_importance)
        clipped, behaviour = np.minimum(clipped * importance, cap), ratio * importance
    clipped = clipped * advantage
    unclipped = np.minimum(behaviour, cap) * advantage
    surrogate = np.minimum(unclipped, clipped)
    # Where the clipped branch is the smaller one the ratio no longer matters; beyond the cap neither.
    matters = (is_inside | (unclipped <= clipped)) & (behaviour <= cap)
    if config.dual_clip:
        bound = np.where(advantage < 0, np.float32(config.dual_clip) * advantage, np.float32(-np.inf))
        matters &= surrogate >= bound
        surrogate = np.maximum(surrogate, bound)
    return -float(weight @ surrogate), np.where(matters, -weight * unclipped, np.float32(0.0))


def _value_loss(value: Array, rows: dict[str, Array], weight: Array, clip: float) -> tuple[float, Array]:
    """Half the squared error, clipped if wanted, and its derivative by the value [N]."""
    error = value - rows["target"]
    if clip <= 0:
        weighted = weight * error
        return 0.5 * float(weighted @ error), weighted
    change = value - rows["value"]
    clipped_error = rows["value"] + np.clip(change, -clip, clip) - rows["target"]
    larger_clipped = clipped_error**2 > error**2
    moves = np.abs(change) <= clip
    loss = 0.5 * float(weight @ np.where(larger_clipped, clipped_error**2, error**2))
    return loss, weight * np.where(larger_clipped, clipped_error * moves, error)


def _ratio_stats(log_ratio: Array, weight: Array, clip: float, log_importance: Array | None) -> dict[str, float]:
    behaviour = log_ratio if log_importance is None else log_ratio + log_importance
    is_valid = weight > 0
    valid = float(is_valid.sum())
    weighted = np.exp(behaviour) * is_valid
    stats = {
        "kl": _kl(behaviour, weight),
        "clip_share": float(weight @ (np.abs(np.exp(log_ratio) - 1) > clip)),
        "effective_sample_share": float(weighted.sum() ** 2 / max((weighted**2).sum() * valid, EPS)),
        "ratio_tail_share": float((np.abs(behaviour)[is_valid] > math.log(2.0)).sum() / max(valid, 1.0)),
    }
    return stats if log_importance is None else {**stats, "kl_proximal": _kl(log_ratio, weight)}


def _kl(log_ratio: Array, weight: Array) -> float:
    return float(weight @ (np.expm1(log_ratio) - log_ratio))


class _Heads:
    """Log-probabilities and entropies [N] of the action distribution, and the way back to the outputs [P', N]."""

    def __init__(self, action: Any, outputs: Array, rows: dict[str, Array], log_std: Any) -> None:
        self._spec, self._outputs, self._rows, self._log_std = action, outputs, rows, log_std
        self._blocks: list[tuple[int, int, Array, Array, Array, Array]] = []
        num_rows = outputs.shape[1]
        self.log_prob, self.entropy = np.zeros(num_rows, np.float32), np.zeros(num_rows, np.float32)
        self._columns = np.arange(num_rows)
        first = 0
        for column, size in enumerate(action.nvec):
            self._categorical(column, first, size)
            first += size
        if action.num_box:
            self._gaussian(first)

    def _categorical(self, column: int, first: int, size: int) -> None:
        logits = self._outputs[first : first + size]
        mask = self._rows.get("action_mask")
        if mask is not None:
            logits = np.where(mask[:, first : first + size].T, logits, np.float32(MASKED_LOGIT))
        log_probs = logits - logits.max(0)
        probs = np.exp(log_probs)
        total = probs.sum(0)
        log_probs -= np.log(total)
        probs /= total
        chosen = self._rows["action"][:, column].astype(np.intp, copy=False)
        entropy = -(probs * log_probs).sum(0)
        self.log_prob += log_probs[chosen, self._columns]
        self.entropy += entropy
        self._blocks.append((first, size, probs, log_probs, chosen, entropy))

    def _gaussian(self, first: int) -> None:
        mean, log_std = self._outputs[first:], self._log_std[0][:, None]
        action = self._rows["action"][:, len(self._spec.nvec) :].T
        self._scaled = (action - mean) * np.exp(-log_std)  # [D, N]
        self.log_prob += -(0.5 * self._scaled**2 + log_std + np.float32(HALF_LOG_TWO_PI)).sum(0)
        self.entropy += float((log_std + 0.5 + HALF_LOG_TWO_PI).sum())

    def backward(self, by_log_prob: Array, by_entropy: Array) -> Array:
        """Derivatives [N] by log-probability and entropy to derivatives by the outputs; log_std's are written."""
        by_outputs = np.empty_like(self._outputs)
        for first, size, probs, log_probs, chosen, entropy in self._blocks:
            # d log p_a / d logit_j = [a = j] - p_j;  d H / d logit_j = -p_j (log p_j + H)
            target = by_outputs[first : first + size]
            np.multiply(probs, -by_log_prob, out=target)
            target[chosen, self._columns] += by_log_prob
            if by_entropy.any():
                target -= by_entropy * probs * (log_probs + entropy)
        if self._spec.num_box:
            log_std, gradient = self._log_std
            by_outputs[self._spec.num_logits :] = self._scaled * np.exp(-log_std)[:, None] * by_log_prob
            gradient[:] = (self._scaled**2 - 1) @ by_log_prob + by_entropy.sum()
        return by_outputs


class _Linear:
    """A linear layer whose parameters and gradients are views of the torch layer's; x [N, I] to [O, N]."""

    def __init__(self, layer: Any) -> None:
        self.weight, self.weight_grad = _arrays(layer.weight)
        self.bias, self.bias_grad = _arrays(layer.bias)

    def forward(self, x: Array) -> Array:
        y: Array = self.weight @ x.T
        y += self.bias[:, None]
        return y

    def backward(self, x: Array, by_y: Array) -> Array:
        """Derivative by y [O, N] to that by x [N, I]."""
        np.matmul(by_y, x, out=self.weight_grad)
        self.bias_grad[:] = by_y.sum(1)
        by_x: Array = by_y.T @ self.weight
        return by_x


class _Trunk:
    """Dense layers with their non-linearity; keeps the activations of the last forward pass."""

    def __init__(self, layers: Any, network: DenseNetwork) -> None:
        self._layers = [_Linear(layer) for layer in layers]
        self._is_tanh = network.activation is torch.tanh
        self._activations: list[Array] = []
        self._buffers: dict[tuple[int, int], list[Array]] = {}

    def forward(self, x: Array) -> Array:
        """[N, I] to [N, O]."""
        self._activations = []
        for depth, layer in enumerate(self._layers):
            y = self._buffer(depth, len(x), len(layer.bias))[0]
            np.matmul(x, layer.weight.T, out=y)
            y += layer.bias
            x = np.tanh(y, out=y) if self._is_tanh else np.maximum(y, 0.0, out=y)
            self._activations.append(x)
        return x

    def backward(self, inputs: Array, by_y: Array) -> None:
        """Derivative by the last activations [N, O] to the gradients of all layers."""
        for depth in reversed(range(len(self._layers))):
            layer, y = self._layers[depth], self._activations[depth]
            x = self._activations[depth - 1] if depth else inputs
            by_sum = self._through(depth, y, by_y)
            # Transposed, because a few inputs against many rows is the fast order.
            layer.weight_grad[:] = (x.T @ by_sum).T
            torch.sum(torch.from_numpy(by_sum), 0, out=torch.from_numpy(layer.bias_grad))
            if depth:
                by_y = np.matmul(by_sum, layer.weight, out=self._buffer(depth - 1, *x.shape)[2])

    def _through(self, depth: int, y: Array, by_y: Array) -> Array:
        """Derivative by y to that by the sum before the non-linearity; torch does it in one pass."""
        by_sum = self._buffer(depth, *y.shape)[1]
        backward = torch.ops.aten.tanh_backward if self._is_tanh else torch.ops.aten.threshold_backward
        arguments: list[Any] = [torch.from_numpy(by_y), torch.from_numpy(y)] + ([] if self._is_tanh else [0])
        backward.grad_input(*arguments, grad_input=torch.from_numpy(by_sum))
        return by_sum

    def _buffer(self, depth: int, num_rows: int, width: int) -> list[Array]:
        """Activation, derivative by the sum, derivative by the activation: kept, since fresh pages are slow."""
        key = (depth, num_rows)
        if key not in self._buffers:
            self._buffers[key] = [np.empty((num_rows, width), np.float32) for _ in range(3)]
        return self._buffers[key]


def _arrays(parameter: Tensor) -> tuple[Array, Array]:
    """A parameter and its gradient as arrays that share their memory."""
    assert parameter.grad is not None
    return parameter.detach().numpy(), parameter.grad.numpy()
