"""Small parts that networks are made of."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from millrace.nets.inputs import module_name


def orthogonal(layer: nn.Module, gain: float) -> nn.Module:
    """Orthogonal weights, zero biases (Huang 2022, detail 2)."""
    if isinstance(layer, nn.Linear | nn.Conv2d):
        orthogonal_matrix(layer.weight, gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return layer


def orthogonal_matrix(weight: Tensor, gain: float) -> None:
    """In place; nothing on the device `meta`, for which torch would load half a second of libraries."""
    if not weight.is_meta:
        nn.init.orthogonal_(weight, gain)


def dense_layers(widths: tuple[int, ...]) -> nn.ModuleList:
    """Linear layers between successive widths."""
    pairs = itertools.pairwise(widths)
    return nn.ModuleList(orthogonal(nn.Linear(fan_in, fan_out), math.sqrt(2)) for fan_in, fan_out in pairs)


class Head(nn.Linear):
    """An output layer: float32 also where the layers before it run in bfloat16, which rounds a value of 20 by 0.06."""

    def __init__(self, num_features: int, num_outputs: int, gain: float) -> None:
        super().__init__(num_features, num_outputs)
        orthogonal(self, gain)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def side_by_side(observation: dict[str, Tensor], keys: list[str]) -> Tensor:
    """[N, inputs] of several observation arrays, flattened."""
    return torch.cat([observation[key].reshape(observation[key].shape[0], -1) for key in keys], dim=1)


class ByKey(nn.Module):
    """Modules by observation key; `nn.ModuleDict` refuses keys with dots, and `items` and other names of its own."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        super().__init__()
        self._keys = tuple(modules)
        for key, module in modules.items():
            self.add_module(module_name(key), module)

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def __getitem__(self, key: str) -> nn.Module:
        return self.get_submodule(module_name(key))

    def items(self) -> list[tuple[str, nn.Module]]:
        return [(key, self[key]) for key in self._keys]
