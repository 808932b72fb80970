"""Images in the order in memory that convolutions on a CPU want: the channels of a pixel side by side."""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor

from millrace.compiled import kernel
from millrace.types import Array

CHANNELS = 4  # as stacks of frames have, and as a word of 32 bits holds


def can_interleave(planes: Tensor, num_channels: int) -> bool:
    """Whether `interleaved` is for images of so many of these planes [P, H, W]."""
    is_plain = planes.device.type == "cpu" and planes.dtype == torch.uint8 and planes.is_contiguous()
    return is_plain and num_channels == CHANNELS and sys.byteorder == "little"


def interleaved(planes: Tensor, index: Tensor) -> Tensor:
    """`planes[index]`, channels last in memory.

    A pixel's bytes are put together in one word: 0.3 ms for 256 stacks of 84 x 84 on one core, where gathering planes
    and then moving bytes takes 5.

    Args:
        planes: [P, H, W] uint8.
        index: [N, 4] int64, into the planes.

    Returns:
        [N, 4, H, W] uint8.
    """
    height, width = planes.shape[1:]
    pixels = np.empty((len(index), height * width), np.uint32)
    _interleave(planes.view(len(planes), -1).numpy(), index.numpy(), pixels)
    images = torch.from_numpy(pixels.view(np.uint8)).view(len(index), height, width, CHANNELS)
    return images.permute(0, 3, 1, 2)


@kernel
def _interleave(planes: Array, index: Array, pixels: Array) -> None:
    eight, sixteen, twenty_four = np.uint32(8), np.uint32(16), np.uint32(24)
    for image in range(len(index)):
        first, second, third, fourth = (
            planes[index[image, 0]],
            planes[index[image, 1]],
            planes[index[image, 2]],
            planes[index[image, 3]],
        )
        row = pixels[image]
        for i in range(len(row)):
            low = np.uint32(first[i]) | np.uint32(second[i]) << eight
            row[i] = low | np.uint32(third[i]) << sixteen | np.uint32(fourth[i]) << twenty_four
