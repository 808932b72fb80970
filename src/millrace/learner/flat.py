"""All parameters of a network in one vector, their gradients in another, and Adam on them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from millrace.types import Array


class FlatParameters:
    """Re-homes parameters into one contiguous vector: clipping, checking and Adam are then a few operations."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        parts = [parameter for parameter in parameters if parameter.requires_grad]
        self.vector = torch.cat([part.detach().reshape(-1) for part in parts])
        self.grad = torch.zeros_like(self.vector)
        first = 0
        for part in parts:
            # Each keeps its own order in memory: weights of convolutions may lie channels last.
            home, grad = (x[first:].as_strided(part.shape, part.stride()) for x in (self.vector, self.grad))
            # Backward then adds into the vector.
            part.data, part.grad = home.copy_(part.detach()), grad
            first += part.numel()

    def clip_grad(self, max_norm: float) -> Tensor:
        """Scale the gradient down to `max_norm` and return the norm that it had, a scalar."""
        norm: Tensor = torch.linalg.vector_norm(self.grad)
        self.grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm


class Adam:
    """Adam with bias correction on one flat vector.

    The same arithmetic as `torch.optim.Adam`, whose bookkeeping takes 60 to 150 microseconds a step: more than
    the gradient of a small network on a small minibatch.

    Source: Kingma & Ba 2015 (arXiv 1412.6980), algorithm 1.
    """

    BETA1, BETA2 = 0.9, 0.999

    def __init__(self, parameters: FlatParameters, eps: float) -> None:
        self._parameters = parameters
        self._eps = eps
        self._steps = 0
        self._mean = torch.zeros_like(parameters.vector)
        self._square = torch.zeros_like(parameters.vector)
        self._denominator = torch.empty_like(parameters.vector)

    def step(self, learning_rate: float) -> None:
        """Descend along the gradient in place."""
        grad = self._parameters.grad
        self._steps += 1
        self._mean.lerp_(grad, 1 - self.BETA1)
        self._square.mul_(self.BETA2).addcmul_(grad, grad, value=1 - self.BETA2)
        mean_correction = 1 - self.BETA1**self._steps
        square_correction = 1 - self.BETA2**self._steps
        denominator = torch.sqrt(self._square, out=self._denominator).div_(square_correction**0.5).add_(self._eps)
        self._parameters.vector.addcdiv_(self._mean, denominator, value=-learning_rate / mean_correction)

    def save_state(self) -> dict[str, Any]:
        """Step count and moments."""
        return {"steps": self._steps, "mean": _copy(self._mean), "square": _copy(self._square)}

    def load_state(self, state: dict[str, Any]) -> None:
        self._steps = int(state["steps"])
        self._mean.copy_(torch.from_numpy(np.array(state["mean"])))
        self._square.copy_(torch.from_numpy(np.array(state["square"])))


def _copy(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy().copy()
    return array
