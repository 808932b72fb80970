"""The policy: observation preparation, network, and the flat weights that travel to collectors."""

from __future__ import annotations

import itertools
import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from millrace.config import NetConfig
from millrace.errors import ConfigError
from millrace.nets.actor import OBSERVATION_CLIP, WeightsIndex
from millrace.nets.inputs import dense_keys, image_keys, module_name, normalized_keys
from millrace.types import ActionSpec, Array, SlotSpec


class Network(Protocol):
    """What a user's own `nn.Module` must offer to be trained.

    `forward` takes the prepared observations, float32 [N, ...] by key (images scaled to 0..1, categories
    one-hot), and returns logits and means [N, num_logits + num_box] and values [N].
    """

    def __call__(self, observation: dict[str, Tensor]) -> tuple[Tensor, Tensor]: ...


class Policy(nn.Module):
    """Raw observations to distribution parameters and values."""

    def __init__(
        self,
        spec: SlotSpec,
        net: NetConfig,
        normalize_observation: bool = False,
        network: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.network = network if network is not None else build_network(spec, net)
        self.normalizer = ByKey(
            {key: Normalizer(spec.observation[key].shape) for key in normalized_keys(spec, normalize_observation)}
        )
        if spec.action.num_box:
            self.log_std = nn.Parameter(torch.full((spec.action.num_box,), net.log_std_init))

    def forward(self, observation: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Raw observations [N, ...] to parameters [N, P] and values [N]."""
        params, value = self.network({key: self.prepared(key, array) for key, array in observation.items()})
        if self.spec.action.num_box:
            params = torch.cat([params, self.log_std.expand(len(params), -1)], dim=1)
        return params, value

    def prepared(self, key: str, array: Tensor) -> Tensor:
        """One raw observation array as the network sees it: scaled, normalised, or one-hot."""
        spec = self.spec.observation[key]
        if spec.num_classes:
            return nn.functional.one_hot(array.long(), spec.num_classes).float()
        if key in self.normalizer:
            normalized: Tensor = self.normalizer[key](array)
            return normalized
        return array.float() * spec.scale if spec.scale != 1.0 else array.float()

    def normalizers(self) -> list[tuple[str, Normalizer]]:
        """The running statistics by observation key."""
        return [(key, module) for key, module in self.normalizer.items() if isinstance(module, Normalizer)]

    def travelling(self) -> list[tuple[str, Tensor]]:
        """Parameters, and the buffers that acting needs, in a fixed order."""
        acting = (name for name, _ in self.named_buffers() if not name.endswith(Normalizer.LEARNER_ONLY))
        buffers = dict(self.named_buffers())
        return [*self.named_parameters(), *((name, buffers[name]) for name in acting)]

    def weights_index(self) -> WeightsIndex:
        """Name and shape of each part of `flat_weights`."""
        return [(name, tuple(tensor.shape)) for name, tensor in self.travelling()]

    @torch.no_grad()
    def flat_weights(self) -> Array:
        """Parameters and normalisers as one float32 vector."""
        parts = [tensor.detach().reshape(-1).float() for _, tensor in self.travelling()]
        flat: Array = torch.cat(parts).cpu().numpy()
        return flat

    @torch.no_grad()
    def load_flat_weights(self, weights: Array) -> None:
        """The inverse of `flat_weights`."""
        source = torch.from_numpy(np.ascontiguousarray(weights))
        first = 0
        for _, tensor in self.travelling():
            tensor.copy_(source[first : first + tensor.numel()].view_as(tensor))
            first += tensor.numel()


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


class Normalizer(nn.Module):
    """Running mean and deviation of one observation array, updated by the learner after the update.

    `offset` and `factor` are what acting needs, float32. The sums are kept in float64 (Chan et al. 1983), so
    that a billion rows do not wear them out.
    """

    LEARNER_ONLY = ("row_count", "mean", "sum_of_squares")

    offset: Tensor
    factor: Tensor
    row_count: Tensor
    mean: Tensor
    sum_of_squares: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("offset", torch.zeros(shape))
        self.register_buffer("factor", torch.ones(shape))
        self.register_buffer("row_count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("sum_of_squares", torch.zeros(shape, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.offset) * self.factor).clamp(-OBSERVATION_CLIP, OBSERVATION_CLIP)

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Add rows [N, ...] to the statistics."""
        if not len(rows):
            return
        rows = rows.double()
        mean, count = rows.mean(0), len(rows)
        total = self.row_count + count
        delta = mean - self.mean
        self.sum_of_squares += ((rows - mean) ** 2).sum(0) + delta**2 * (self.row_count * count / total)
        self.mean += delta * (count / total)
        self.row_count.copy_(total)
        self.offset.copy_(self.mean)
        self.factor.copy_((self.sum_of_squares / total + 1e-8).rsqrt())


def build_network(spec: SlotSpec, net: NetConfig) -> nn.Module:
    """The default network for a space: dense actor and critic, or a shared convolutional encoder."""
    if image_keys(spec, net):
        return ImageNetwork(spec, net)
    return DenseNetwork(spec, net)


def orthogonal(layer: nn.Module, gain: float) -> nn.Module:
    """Orthogonal weights, zero biases (Huang 2022, detail 2)."""
    if isinstance(layer, nn.Linear | nn.Conv2d):
        nn.init.orthogonal_(layer.weight, gain)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    return layer


def num_outputs(action: ActionSpec) -> int:
    """Logits and means; log standard deviations are parameters of the policy."""
    return action.num_logits + action.num_box


class DenseNetwork(nn.Module):
    """Everything flattened, then dense layers: apart for actor and critic, or one shared trunk."""

    def __init__(self, spec: SlotSpec, net: NetConfig) -> None:
        super().__init__()
        self.keys = dense_keys(spec, net)
        self.activation = torch.tanh if net.activation == "tanh" else torch.relu
        num_inputs = sum(spec.observation[key].num_inputs for key in self.keys)
        widths = (num_inputs, *net.hidden)
        if net.shared:
            self.trunk = dense_layers(widths)
        else:
            self.actor, self.critic = dense_layers(widths), dense_layers(widths)
        self.policy_head = orthogonal(nn.Linear(widths[-1], num_outputs(spec.action)), 0.01)
        self.value_head = orthogonal(nn.Linear(widths[-1], 1), 1.0)
        self.shared = net.shared

    def forward(self, observation: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        x = torch.cat([observation[key].reshape(len(observation[key]), -1) for key in self.keys], dim=1)
        if self.shared:
            actor = critic = self._run(self.trunk, x)
        else:
            actor, critic = self._run(self.actor, x), self._run(self.critic, x)
        return self.policy_head(actor), self.value_head(critic).squeeze(-1)

    def _run(self, layers: nn.ModuleList, x: Tensor) -> Tensor:
        for layer in layers:
            x = self.activation(layer(x))
        return x


def dense_layers(widths: tuple[int, ...]) -> nn.ModuleList:
    """Linear layers between successive widths."""
    pairs = itertools.pairwise(widths)
    return nn.ModuleList(orthogonal(nn.Linear(fan_in, fan_out), math.sqrt(2)) for fan_in, fan_out in pairs)


class ImageNetwork(nn.Module):
    """Strided convolutions (16/5/2, 32/3/2, 32/3/2) beside the dense inputs, one trunk for actor and critic."""

    def __init__(self, spec: SlotSpec, net: NetConfig) -> None:
        super().__init__()
        self.image_keys, self.dense_keys = image_keys(spec, net), dense_keys(spec, net)
        self.encoders = ByKey({key: _convolutions(spec.observation[key].shape) for key in self.image_keys})
        width = sum(_num_features(self.encoders[key], spec.observation[key].shape) for key in self.image_keys)
        num_dense = sum(spec.observation[key].num_inputs for key in self.dense_keys)
        self.dense = orthogonal(nn.Linear(num_dense, 64), math.sqrt(2)) if num_dense else None
        self.trunk = dense_layers((width + (64 if num_dense else 0), 256))
        self.policy_head = orthogonal(nn.Linear(256, num_outputs(spec.action)), 0.01)
        self.value_head = orthogonal(nn.Linear(256, 1), 1.0)

    def forward(self, observation: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        features = [self.encoders[key](_channels_first(observation[key])).flatten(1) for key in self.image_keys]
        if self.dense is not None:
            x = torch.cat([observation[key].reshape(len(observation[key]), -1) for key in self.dense_keys], dim=1)
            features.append(torch.relu(self.dense(x)))
        x = torch.relu(self.trunk[0](torch.cat(features, dim=1)))
        return self.policy_head(x), self.value_head(x).squeeze(-1)


def _is_channels_last(shape: tuple[int, ...]) -> bool:
    return shape[-1] in (1, 3, 4) and shape[0] not in (1, 3, 4)


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2) if _is_channels_last(tuple(x.shape[1:])) else x


def _convolutions(shape: tuple[int, ...]) -> nn.Sequential:
    channels = shape[-1] if _is_channels_last(shape) else shape[0]
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
