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
    """Adam with bias correction on one flat vector, in one pass over it.

    `torch.optim.Adam` calls the same kernel. What it does around that takes 30 microseconds a step, four times what the
    kernel takes for a small network (benchmarks/image_learner.py), and its import 0.8 s.

    Source: Kingma & Ba 2015 (arXiv 1412.6980), algorithm 1.
    """

    BETA1, BETA2 = 0.9, 0.999

    def __init__(self, parameters: FlatParameters, eps: float) -> None:
        self._parameters = parameters
        self._eps = eps
        self._steps = torch.zeros((), device=parameters.vector.device)
        self._mean = torch.zeros_like(parameters.vector)
        self._square = torch.zeros_like(parameters.vector)

    def step(self, learning_rate: float | Tensor, is_lost: Tensor | None = None) -> None:
        """Descend along the gradient in place.

        Args:
            learning_rate: a number, or a scalar on the device.
            is_lost: a scalar on the device, 1 where everything is to stay as it is.
        """
        self._steps.add_(1)
        torch._fused_adam_(
            [self._parameters.vector],
            [self._parameters.grad],
            [self._mean],
            [self._square],
            [],
            [self._steps],
            lr=learning_rate,
            beta1=self.BETA1,
            beta2=self.BETA2,
            weight_decay=0.0,
            eps=self._eps,
            amsgrad=False,
            maximize=False,
            found_inf=is_lost,
        )
        if is_lost is not None:
            self._steps.sub_(is_lost)

    def tensors(self) -> list[Tensor]:
        """All that a step changes besides the parameters."""
        return [self._steps, self._mean, self._square]

    def save_state(self) -> dict[str, Any]:
        """Step count and moments."""
        return {"steps": int(self._steps), "mean": _copy(self._mean), "square": _copy(self._square)}

    def load_state(self, state: dict[str, Any]) -> None:
        self._steps.fill_(int(state["steps"]))
        self._mean.copy_(torch.from_numpy(np.array(state["mean"])))
        self._square.copy_(torch.from_numpy(np.array(state["square"])))


def _copy(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy().copy()
    return array
