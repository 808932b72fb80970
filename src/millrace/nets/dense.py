"""A dense tanh layer that is fast on one CPU thread.

`torch.tanh` on a CPU takes 13 times as long as NumPy's (283 against 21 microseconds for 2048 x 64) and was a
third of the learner's time for small networks; NumPy's matrix product is a seventh faster besides. Measured in
benchmarks/layers.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def dense_tanh(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """tanh(x W^T + b) of x [N, I], weight [O, I], bias [O]; by NumPy where that is faster."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and torch.get_num_threads() == 1:
        y: Tensor = _DenseTanh.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return y
    return torch.tanh(torch.nn.functional.linear(x, weight, bias))


class _DenseTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = np.matmul(x.numpy(), weight.numpy().T)
        y += bias.numpy()
        result = torch.from_numpy(np.tanh(y, out=y))
        ctx.save_for_backward(x, weight, result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight, result = ctx.saved_tensors
        through = torch.ops.aten.tanh_backward(gradients[0], result)
        # Transposed, because a few inputs against many rows is the fast order.
        to_weight = torch.from_numpy(np.matmul(x.numpy().T, through.numpy()).T)
        to_x = torch.from_numpy(np.matmul(through.numpy(), weight.numpy())) if ctx.needs_input_grad[0] else None
        return to_x, to_weight, through.sum(0)
