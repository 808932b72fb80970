"""Images whose channels lie side by side: the same images."""

from __future__ import annotations

import pytest
import torch

from millrace.config import NetConfig
from millrace.learner.planes import can_interleave, interleaved
from millrace.learner.rows import Rows, StackedFrames
from millrace.nets.policy import Policy
from millrace.types import ActionSpec, ArraySpec, SlotSpec


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def is_channels_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(84, 84), (5, 7), (1, 1)])
def test_interleaved_planes_are_the_gathered_ones(size):
    planes = noise(9, *size)
    index = torch.tensor([[0, 1, 2, 3], [8, 8, 8, 8], [3, 0, 7, 1]])
    images = interleaved(planes, index)
    assert torch.equal(images, planes[index])
    assert is_channels_last(images)


@pytest.mark.parametrize(
    ("planes", "num_channels"),
    [(noise(9, 4, 4), 3), (noise(9, 4, 4).float(), 4), (noise(9, 4, 8)[:, :, ::2], 4)],
    ids=["three channels", "floats", "not contiguous"],
)
def test_others_are_left_to_torch(planes, num_channels):
    assert not can_interleave(planes, num_channels)
    index = torch.tensor([[0, 1, 2, 3], [8, 8, 8, 8]])[:, :num_channels]
    assert torch.equal(StackedFrames(planes, index).gathered(), planes[index])


def test_rows_take_stacks_and_images_so():
    frames, maps = noise(40, 6, 6), noise(10, 4, 5, 5)
    stacks = StackedFrames(frames, torch.arange(10)[:, None] * 3 + torch.arange(4))
    zero = torch.zeros(10)
    observation = {"frames": stacks, "maps": maps, "vector": torch.randn(10, 3)}
    rows = Rows(observation, zero, zero, zero, zero, zero, zero)
    index = torch.tensor([7, 0, 9])
    taken = rows.take(index).slice(1, 3).seen()
    assert torch.equal(taken["frames"], frames[stacks.index[index[1:]]])
    assert torch.equal(taken["maps"], maps[index[1:]])
    assert torch.equal(taken["vector"], observation["vector"][index[1:]])
    assert is_channels_last(taken["frames"])
    assert is_channels_last(taken["maps"])


@pytest.mark.parametrize("is_ours", [True, False], ids=["ours", "a user's own"])
def test_bytes_that_become_bfloat16_at_once_are_those_that_were_floats_first(is_ours):
    spec = SlotSpec({"obs": ArraySpec((4, 36, 36), "uint8", scale=1 / 255)}, ActionSpec((3,)))
    policy = Policy(spec, NetConfig(), network=None if is_ours else torch.nn.Identity())
    every_byte = torch.arange(4 * 36 * 36).to(torch.uint8).view(1, 4, 36, 36)
    precise = policy.prepared("obs", every_byte)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = policy.prepared("obs", every_byte)
    assert precise.dtype == torch.float32
    assert rounded.dtype == (torch.bfloat16 if is_ours else torch.float32)
    assert torch.equal(rounded.to(torch.bfloat16), precise.to(torch.bfloat16))
