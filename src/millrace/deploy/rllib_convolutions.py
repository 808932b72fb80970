"""RLlib's default network for one image, put together anew from its arrays: a network of the user's own to all else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from millrace.deploy.rllib_network import Layer, OtherNetworkError, layers_under
from millrace.nets.encoders import channels_first
from millrace.types import Array, ArraySpec

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU, "swish": nn.SiLU}


class RllibConvolutions(nn.Module):
    """Convolutions for actor and critic, or shared, and their heads; a `millrace.nets.policy.Network`.

    Args:
        settings: of RLlib's model.
        image: the one observation array.
        is_prepared: whether RLlib saw it with its values in 0..1, as `millrace.rllib` lays it out.

    Raises:
        OtherNetworkError: the arrays and settings are not those of such a network.
    """

    def __init__(
        self, arrays: Mapping[str, Array], settings: Mapping[str, Any], image: ArraySpec, is_prepared: bool
    ) -> None:
        super().__init__()
        shared = any(name.startswith("encoder.encoder.") for name in arrays)
        encoders = ["encoder.encoder."] if shared else ["encoder.actor_encoder.", "encoder.critic_encoder."]
        self._is_prepared, self._scale = is_prepared, image.scale
        filters, shape = settings.get("conv_filters"), image.seen_shape
        if not filters or settings.get("use_lstm"):
            raise OtherNetworkError(
                "it has convolutions whose sizes are not among its settings, or an LSTM behind them"
            )
        size = channels_first(torch.zeros(1, *shape)).shape[2:] if is_prepared else shape[:2]
        activation = _activation(settings.get("conv_activation", "relu"))
        self.bodies = nn.ModuleList(
            _convolutions(arrays, f"{encoder}net.0.cnn.", filters, tuple(size), activation) for encoder in encoders
        )
        heads = _activation(settings.get("head_fcnet_activation", "relu"))
        self.policy_head, self.value_head = (
            _dense(layers_under(arrays, f"{name}.net.mlp."), heads) for name in ("pi", "vf")
        )

    def forward(self, observation: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        (image,) = observation.values()
        x = channels_first(image) if self._is_prepared else (image / self._scale).movedim(-1, 1)
        seen = [body(x).movedim(1, -1).flatten(1) for body in self.bodies]
        return self.policy_head(seen[0]), self.value_head(seen[-1]).squeeze(-1)


def _activation(name: Any) -> type[nn.Module]:
    if name not in ACTIVATIONS:
        raise OtherNetworkError(f"its activation is {name}")
    return ACTIVATIONS[name]


def _convolutions(
    arrays: Mapping[str, Array], prefix: str, filters: Sequence[Any], size: tuple[int, ...], activation: type[nn.Module]
) -> nn.Sequential:
    """Padded as TensorFlow does where RLlib says `same`, which it does by default."""
    names = sorted(
        (name for name in arrays if name.startswith(prefix)), key=lambda name: int(name[len(prefix) :].split(".")[0])
    )
    weights = [arrays[name] for name in names if name.endswith(".weight")]
    biases = [arrays[name] for name in names if name.endswith(".bias")]
    if not len(weights) == len(biases) == len(filters) or any(weight.ndim != 4 for weight in weights):
        raise OtherNetworkError("it has convolutions without biases, or layer normalisation among them")
    layers: list[nn.Module] = []
    for (_, _, strides, *padding), weight, bias in zip(filters, weights, biases, strict=True):
        kernel, stride = weight.shape[2:], _pair(strides)
        if padding in ([], ["same"]):
            pads = [_same(*side) for side in zip(size, kernel, stride, strict=True)]
            layers.append(nn.ZeroPad2d((*pads[1], *pads[0])))
            size = tuple(sum(pad) + side for pad, side in zip(pads, size, strict=True))
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], (kernel[0], kernel[1]), stride)
        layers += [_filled(layer, (weight, bias)), activation()]
        size = tuple((side - width) // step + 1 for side, width, step in zip(size, kernel, stride, strict=True))
    return nn.Sequential(*layers)


def _pair(strides: Any) -> tuple[int, int]:
    return (int(strides[0]), int(strides[1])) if isinstance(strides, list | tuple) else (int(strides), int(strides))


def _same(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding before and behind."""
    whole = (math.ceil(side / stride) - 1) * stride + kernel - side  # below 0 it cuts, as RLlib does
    return whole // 2, whole - whole // 2


def _dense(layers: list[Layer], activation: type[nn.Module]) -> nn.Sequential:
    made: list[nn.Module] = []
    for weight, bias in layers:
        made += [_filled(nn.Linear(weight.shape[1], weight.shape[0]), (weight, bias)), activation()]
    return nn.Sequential(*made[:-1])


def _filled(layer: nn.Linear | nn.Conv2d, values: Layer) -> nn.Module:
    if tuple(layer.weight.shape) != values[0].shape:
        raise OtherNetworkError(f"a layer of it has the shape {list(values[0].shape)}, not {list(layer.weight.shape)}")
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(values[0]))
        assert layer.bias is not None
        layer.bias.copy_(torch.from_numpy(values[1]))
    return layer
