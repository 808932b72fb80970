"""Networks for images: their sizes, what they see, and where their weights lie."""

from __future__ import annotations

import pytest
import torch

from millrace.config import NetConfig
from millrace.errors import ConfigError
from millrace.learner.flat import FlatParameters
from millrace.nets.image_network import ImageBody
from millrace.nets.inputs import dense_keys, image_encoder, image_keys
from millrace.nets.policy import Policy
from millrace.types import ActionSpec, ArraySpec, SlotSpec

ACTION = ActionSpec((6,))
ATARI = ArraySpec((84, 84), "uint8", scale=1 / 255, stack=4)


def spec_of(*arrays: ArraySpec) -> SlotSpec:
    return SlotSpec({f"image{i}": array for i, array in enumerate(arrays)}, ACTION)


def images(array: ArraySpec, num_rows: int = 3) -> torch.Tensor:
    shape = (num_rows, *array.seen_shape)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# conv: inputs x outputs x kernel + biases. An 84 x 84 frame is 20, 9, 7 wide behind Nature's layers and 42, 21, 11
# behind IMPALA's sections; 51 is 24, 11, 5 behind ours.
NATURE = (4 * 32 * 64 + 32) + (32 * 64 * 16 + 64) + (64 * 64 * 9 + 64) + (64 * 7 * 7 * 512 + 512)
IMPALA = (
    (4 * 16 * 9 + 16 + 4 * (16 * 16 * 9 + 16))
    + (16 * 32 * 9 + 32 + 4 * (32 * 32 * 9 + 32))
    + 5 * (32 * 32 * 9 + 32)
    + (32 * 11 * 11 * 256 + 256)
)
SMALL = (4 * 16 * 25 + 16) + (16 * 32 * 9 + 32) + (32 * 32 * 9 + 32) + (32 * 5 * 5 * 256 + 256)


@pytest.mark.parametrize(
    ("kind", "array", "num_features", "expected"),
    [
        ("nature", ATARI, 512, NATURE),
        ("impala", ATARI, 256, IMPALA),
        ("small", ArraySpec((4, 51, 51), "uint8"), 256, SMALL),
    ],
)
def test_each_network_has_the_parameters_of_its_paper_and_learns_with_all_of_them(kind, array, num_features, expected):
    spec = spec_of(array)
    body = ImageBody(spec, NetConfig(image=kind))
    assert body.num_features == num_features
    assert num_parameters(body) == expected
    policy = Policy(spec, NetConfig(image=kind))
    params, value = policy({"image0": images(array)})
    assert (params.shape, value.shape) == ((3, 6), (3,))
    (params.square().sum() + value.square().sum()).backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_dense_inputs_join_the_last_layer_beside_the_images():
    observation = {"map": ArraySpec((4, 51, 51), "uint8", scale=1 / 255), "vector": ArraySpec((31,), "float32")}
    spec = SlotSpec(observation, ACTION)
    body = ImageBody(spec, NetConfig())
    assert num_parameters(body) == SMALL + (31 * 64 + 64) + 64 * 256
    rows = {"map": torch.rand(2, 4, 51, 51), "vector": torch.randn(2, 31)}
    features = body(rows)
    assert features.shape == (2, 256)
    for key in rows:
        assert not torch.equal(body({**rows, key: torch.zeros_like(rows[key])}), features)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (ArraySpec((4, 20, 20), "uint8"), "flat"),
        (ArraySpec((3, 51, 51), "uint8"), "small"),
        (ArraySpec((63, 84, 3), "uint8"), "small"),
        (ArraySpec((64, 64, 3), "uint8"), "nature"),
        (ArraySpec((3, 64, 64), "uint8"), "nature"),
        (ATARI, "nature"),
        (ArraySpec((96, 96, 3), "uint8", stack=4), "nature"),
        (ArraySpec((84, 84), "uint8"), "flat"),  # one matrix may be anything; a stack of them is frames
        (ArraySpec((3, 84, 84), "float32"), "flat"),
    ],
)
def test_auto_chooses_by_the_size_of_a_frame(array, expected):
    assert image_encoder(array, NetConfig()) == expected
    assert image_encoder(array, NetConfig(image="flat")) == "flat"
    is_dense = expected == "flat"
    assert dense_keys(spec_of(array), NetConfig()) == ["image0"] * is_dense
    assert image_keys(spec_of(array), NetConfig()) == ["image0"] * (not is_dense)


@pytest.mark.parametrize("kind", ["small", "nature", "impala"])
@pytest.mark.parametrize("stack", [1, 2])
def test_images_are_the_same_with_channels_last_or_first(kind, stack):
    last = ArraySpec((70, 66, 3), "uint8", scale=1 / 255, stack=stack)
    first = ArraySpec((3, 70, 66), "uint8", scale=1 / 255, stack=stack)
    policies = []
    for array in (last, first):
        torch.manual_seed(0)
        policies.append(Policy(spec_of(array), NetConfig(image=kind)))
    rows = images(last)
    assert rows.shape == ((3, 2, 70, 66, 3) if stack == 2 else (3, 70, 66, 3))
    seen_last = policies[0]({"image0": rows})
    seen_first = policies[1]({"image0": rows.movedim(-1, -3).contiguous()})
    torch.testing.assert_close(seen_last, seen_first)


def test_every_frame_of_a_stack_is_seen():
    policy = Policy(spec_of(ATARI), NetConfig())
    rows = images(ATARI)
    value = policy({"image0": rows})[1]
    for frame in range(4):
        changed = rows.clone()
        changed[:, frame] = 0
        assert not torch.equal(policy({"image0": changed})[1], value)


def test_images_too_small_for_the_convolutions_are_refused_with_the_way_out():
    with pytest.raises(ConfigError, match=r"24 x 24 is too small for net.image=nature; use flat"):
        ImageBody(spec_of(ArraySpec((24, 24, 3), "uint8")), NetConfig(image="nature"))


def test_features_begin_near_the_size_of_the_inputs():
    for kind in ("small", "nature", "impala"):
        torch.manual_seed(0)
        features = ImageBody(spec_of(ATARI), NetConfig(image=kind))({"image0": torch.rand(16, 4, 84, 84)})
        assert 0.1 < float(features.detach().square().mean().sqrt()) < 4.0, kind


def test_flat_parameters_keep_weights_channels_last_and_the_policy_as_it_was():
    torch.manual_seed(0)
    policy = Policy(spec_of(ATARI), NetConfig())
    rows = {"image0": images(ATARI)}
    before, weights = policy(rows)[1].detach(), policy.flat_weights()
    parameters = FlatParameters(policy.parameters())
    torch.testing.assert_close(policy(rows)[1].detach(), before)
    assert (policy.flat_weights() == weights).all()
    begin = 0
    for parameter in policy.parameters():
        if parameter.dim() == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last)
        assert parameter.data_ptr() == parameters.vector[begin:].data_ptr()
        begin += parameter.numel()
    assert begin == len(parameters.vector)
    policy(rows)[1].sum().backward()
    gradients = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    expected = torch.stack([gradient.norm() for gradient in gradients]).norm()
    torch.testing.assert_close(parameters.clip_grad(1e9), expected, rtol=1e-4, atol=0.0)


def test_heads_stay_in_float32_where_the_body_does_not():
    policy = Policy(spec_of(ATARI), NetConfig())
    with torch.autocast("cpu", torch.bfloat16):
        params, value = policy({"image0": images(ATARI)})
        assert policy.network.body({"image0": torch.rand(1, 4, 84, 84)}).dtype == torch.bfloat16
    assert params.dtype == value.dtype == torch.float32
