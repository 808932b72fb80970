"""The networks for images, with dense inputs beside them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from millrace.config import NetConfig
from millrace.errors import ConfigError
from millrace.nets.inputs import dense_keys, image_keys
from millrace.nets.layers import ByKey, dense_layers, num_outputs, orthogonal
from millrace.types import SlotSpec


class ImageNetwork(nn.Module):
    """Actor and critic on one shared body."""

    def __init__(self, spec: SlotSpec, net: NetConfig) -> None:
        super().__init__()
        self.body = ImageBody(spec, net)
        self.policy_head = orthogonal(nn.Linear(self.body.num_features, num_outputs(spec.action)), 0.01)
        self.value_head = orthogonal(nn.Linear(self.body.num_features, 1), 1.0)

    def forward(self, observation: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        x = self.body(observation)
        return self.policy_head(x), self.value_head(x).squeeze(-1)


class ImageBody(nn.Module):
    """Prepared observations to features [N, num_features]: convolutions for images, beside them the dense inputs.

    Strided convolutions (16/5/2, 32/3/2, 32/3/2), a dense layer of 64 for the other inputs, one of 256 over both.
    """

    num_features = 256

    def __init__(self, spec: SlotSpec, net: NetConfig) -> None:
        super().__init__()
        self.image_keys, self.dense_keys = image_keys(spec, net), dense_keys(spec, net)
        shapes = {key: spec.observation[key].seen_shape for key in self.image_keys}
        self.encoders = ByKey({key: _convolutions(shape) for key, shape in shapes.items()})
        width = sum(_num_features(self.encoders[key], shape) for key, shape in shapes.items())
        num_dense = sum(spec.observation[key].num_inputs for key in self.dense_keys)
        self.dense = orthogonal(nn.Linear(num_dense, 64), math.sqrt(2)) if num_dense else None
        self.trunk = dense_layers((width + (64 if num_dense else 0), self.num_features))

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        features = [self.encoders[key](_channels_first(observation[key])).flatten(1) for key in self.image_keys]
        if self.dense is not None:
            x = torch.cat([observation[key].reshape(len(observation[key]), -1) for key in self.dense_keys], dim=1)
            features.append(torch.relu(self.dense(x)))
        return torch.relu(self.trunk[0](torch.cat(features, dim=1)))


def _is_channels_last(shape: tuple[int, ...]) -> bool:
    return shape[-1] in (1, 3, 4) and shape[0] not in (1, 3, 4)


def _channels_first(x: Tensor) -> Tensor:
    """Images as [N, C, H, W], from [N, H, W, C] too; the frames of a stack [N, K, ...] become channels."""
    frame = tuple(x.shape[-3:])
    if _is_channels_last(frame):
        x = x.movedim(-1, -3)
    return x.flatten(1, -3)


def _convolutions(shape: tuple[int, ...]) -> nn.Sequential:
    channels = _channels_first(torch.zeros(1, *shape)).shape[1]
    layers: list[nn.Module] = []
    for out_channels, kernel in ((16, 5), (32, 3), (32, 3)):
        layers += [orthogonal(nn.Conv2d(channels, out_channels, kernel, 2), math.sqrt(2)), nn.ReLU()]
        channels = out_channels
    return nn.Sequential(*layers)


@torch.no_grad()
def _num_features(encoder: nn.Module, shape: tuple[int, ...]) -> int:
    try:
        return int(encoder(_channels_first(torch.zeros(1, *shape))).numel())
    except RuntimeError:
        raise ConfigError(f"an image of shape {shape} is too small for the convolutions; use net.image=flat") from None
