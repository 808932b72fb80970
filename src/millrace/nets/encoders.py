"""Images to features: convolutions, then a dense layer over what they leave."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from millrace.errors import ConfigError
from millrace.nets.inputs import frame_size, is_channels_last
from millrace.nets.layers import orthogonal

NUM_BLOCKS = 6  # of the residual network
LARGE_INPUTS = 1024


class ImageEncoder(nn.Module):
    """Images [N, C, H, W] or [N, H, W, C], or stacks of them, to features [N, num_features], before any ReLU."""

    def __init__(self, kind: str, shape: tuple[int, ...], num_features: int) -> None:
        super().__init__()
        height, width = frame_size(shape)
        channels = math.prod(shape) // (height * width)
        self.convolutions = CONVOLUTIONS[kind].make(channels)
        self.dense = _dense(_output_shape(self.convolutions, height, width, kind), num_features)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.dense(self.convolutions(channels_first(x)))
        return features


def channels_first(x: Tensor) -> Tensor:
    """Images as [N, C, H, W], from [N, H, W, C] too; the frames of a stack [N, K, ...] become channels.

    In memory the channels lie last, which is what convolutions on a CPU want.
    """
    if is_channels_last(tuple(x.shape[1:])):
        x = x.movedim(-1, -3)
    return x.flatten(1, -3).contiguous(memory_format=torch.channels_last)


def channels_last_in_memory(x: Tensor) -> Tensor:
    """The same images; cheaper for bytes than for the floats that they become."""
    is_moved = x.dim() == 4 and not is_channels_last(tuple(x.shape[1:]))
    return x.contiguous(memory_format=torch.channels_last) if is_moved else x


def _output_shape(convolutions: nn.Module, height: int, width: int, kind: str) -> tuple[int, int, int]:
    """Channels, height and width behind the convolutions."""
    channels, sides = 0, [height, width]
    for layer in convolutions.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            kernel, stride, padding = (_side(x) for x in (layer.kernel_size, layer.stride, layer.padding))
            sides = [(side + 2 * padding - kernel) // stride + 1 for side in sides]
        if isinstance(layer, nn.Conv2d):
            channels = layer.out_channels
    if min(sides) < 1:
        raise ConfigError(f"an image of {height} x {width} is too small for net.image={kind}; use flat")
    return channels, sides[0], sides[1]


def _side(size: Any) -> int:
    """Of a square."""
    return int(size[0]) if isinstance(size, tuple) else int(size)


def _dense(shape: tuple[int, int, int], num_features: int) -> nn.Module:
    """A dense layer from [N, C, H, W] to [N, num_features].

    A large one is written as a convolution over the whole frame: this takes its input as it lies in memory, and on some
    CPUs is the faster matrix product, by a factor of two (benchmarks/image_learner.py).
    """
    channels, height, width = shape
    if channels * height * width >= LARGE_INPUTS:
        return nn.Sequential(orthogonal(nn.Conv2d(channels, num_features, (height, width)), math.sqrt(2)), nn.Flatten())
    return nn.Sequential(nn.Flatten(), orthogonal(nn.Linear(channels * height * width, num_features), math.sqrt(2)))


def small(channels: int) -> nn.Module:
    """Ours, for images below 64 x 64: 16/5/2, 32/3/2, 32/3/2 (channels/kernel/stride)."""
    return _strided(channels, ((16, 5, 2), (32, 3, 2), (32, 3, 2)))


def nature(channels: int) -> nn.Module:
    """32/8/4, 64/4/2, 64/3/1 (channels/kernel/stride).

    Source: Mnih et al. 2015 (doi 10.1038/nature14236), methods.
    """
    return _strided(channels, ((32, 8, 4), (64, 4, 2), (64, 3, 1)))


def impala(channels: int) -> nn.Module:
    """Sections of 16, 32 and 32 channels, each a convolution, a maximum over 3 x 3 with stride 2, two residual blocks.

    Source: Espeholt et al. 2018 (arXiv 1802.01561), figure 3, right.
    """
    layers: list[nn.Module] = []
    for out_channels in (16, 32, 32):
        layers += [_same_size(channels, out_channels), nn.MaxPool2d(3, 2, padding=1)]
        layers += [ResidualBlock(out_channels), ResidualBlock(out_channels)]
        channels = out_channels
    return nn.Sequential(*layers, nn.ReLU())


class Convolutions(NamedTuple):
    """One kind: `make` builds it for a number of channels, `num_features` is the width of the dense layer behind it."""

    make: Callable[[int], nn.Module]
    num_features: int


CONVOLUTIONS = {
    "small": Convolutions(small, 256),
    "nature": Convolutions(nature, 512),
    "impala": Convolutions(impala, 256),
}


class ResidualBlock(nn.Module):
    """Two convolutions beside the identity, each behind a ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _same_size(channels, channels)
        # With the usual gain each block would double the variance, and the six of them make features of size 9.
        self.second = _same_size(channels, channels, math.sqrt(2 / NUM_BLOCKS))

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.second(torch.relu(self.first(torch.relu(x))))
        return x + change


def _strided(channels: int, layout: tuple[tuple[int, int, int], ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for out_channels, kernel, stride in layout:
        layers += [orthogonal(nn.Conv2d(channels, out_channels, kernel, stride), math.sqrt(2)), nn.ReLU(inplace=True)]
        channels = out_channels
    return nn.Sequential(*layers)


def _same_size(channels: int, out_channels: int, gain: float = math.sqrt(2)) -> nn.Module:
    return orthogonal(nn.Conv2d(channels, out_channels, 3, padding=1), gain)
