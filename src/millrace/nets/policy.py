"""The policy: observation preparation, network, and the flat weights that travel to collectors."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from millrace.config import NetConfig
from millrace.nets.actor import LOG_STD_LIMIT, OBSERVATION_CLIP
from millrace.nets.dense_network import DenseNetwork
from millrace.nets.encoders import channels_last_in_memory
from millrace.nets.image_network import ImageNetwork
from millrace.nets.inputs import WeightsIndex, has_free_log_std, image_keys, normalized_keys
from millrace.nets.layers import ByKey
from millrace.nets.recurrent_network import RecurrentNetwork
from millrace.types import Array, SlotSpec


class Network(Protocol):
    """What a user's own `nn.Module` must offer to be trained.

    `forward` takes the prepared observations, float32 [N, ...] by key (images scaled to 0..1, categories
    one-hot; stacked frames [N, K, ...]), and returns logits and means [N, num_logits + num_box] and values [N]; with
    `net.state_log_std` log standard deviations behind the means.

    A network with recurrence has an attribute `state_size`, the S numbers that it carries from step to step of a
    slot. Its `forward(observation, state, begins)` takes N = T x B rows, time-major, the state [B, S] before the
    first step, and `begins` [T, B] bool, true where an episode begins and the state is to be forgotten first; it
    returns besides the state [B, S] after the step, which is used where T is 1.
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
        self._is_ours = network is None
        self.network = network if network is not None else build_network(spec, net)
        self.normalizer = ByKey(
            {key: Normalizer(spec.observation[key].shape) for key in normalized_keys(spec, normalize_observation)}
        )
        self.has_state_log_std = net.state_log_std and spec.action.num_box > 0
        if has_free_log_std(spec, net):
            self.log_std = nn.Parameter(torch.full((spec.action.num_box,), net.log_std_init))

    @property
    def state_size(self) -> int:
        """S, the numbers of recurrent state that a slot needs; 0 for networks without recurrence."""
        return int(getattr(self.network, "state_size", 0))

    def forward(self, observation: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Raw observations [N, ...] to parameters [N, P] and values [N]."""
        params, value = self.network(self.all_prepared(observation))
        return self.with_deviations(params), value

    def unroll(self, observation: dict[str, Tensor], state: Tensor, begins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sequences of a network with recurrence.

        Args:
            observation: raw, [T * B, ...], time-major.
            state: [B, S] before the first step.
            begins: [T, B] bool, where an episode begins: the state is forgotten first.

        Returns:
            Parameters [T * B, P], values [T * B], and where T is 1 the state [B, S] after the step.
        """
        params, value, state = self.network(self.all_prepared(observation), state, begins)
        return self.with_deviations(params), value, state

    def features(self, observation: dict[str, Tensor]) -> Tensor:
        """What the network's body makes of raw observations [N, ...] before any recurrence and the heads, [N, F].

        A user's own network offers it as `body`, a method or module from prepared observations.
        """
        body = typing.cast(Callable[[dict[str, Tensor]], Tensor], self.network.body)
        return body(self.all_prepared(observation))

    @property
    @torch.no_grad()
    def num_features(self) -> int:
        """F."""
        arrays = self.spec.observation.items()
        nothing = {key: np.zeros((1, *array.seen_shape), array.dtype) for key, array in arrays}
        device = next(self.parameters()).device
        return self.features({key: torch.from_numpy(x).to(device) for key, x in nothing.items()}).shape[1]

    def all_prepared(self, observation: dict[str, Tensor]) -> dict[str, Tensor]:
        """Raw observations as the network sees them."""
        return {key: self.prepared(key, array) for key, array in observation.items()}

    def with_deviations(self, params: Tensor) -> Tensor:
        """Log standard deviations beside logits and means, where actions are continuous."""
        num_box = self.spec.action.num_box
        if not num_box:
            return params
        if self.has_state_log_std:
            log_std = params[:, -num_box:].clamp(-LOG_STD_LIMIT, LOG_STD_LIMIT)
            return torch.cat([params[:, :-num_box], log_std], dim=1)
        return torch.cat([params, self.log_std.expand(params.shape[0], -1)], dim=1)

    def prepared(self, key: str, array: Tensor) -> Tensor:
        """One raw observation array as the network sees it: scaled, normalised, or one-hot."""
        spec = self.spec.observation[key]
        if spec.num_classes:
            return nn.functional.one_hot(array.long(), spec.num_classes).float()
        if key in self.normalizer:
            normalized: Tensor = self.normalizer[key](array)
            return normalized
        x = channels_last_in_memory(array).to(self._image_dtype(array)) if spec.is_image else array.float()
        return x.mul_(spec.scale) if spec.scale != 1.0 else x  # only integers have a scale: x is a copy

    def _image_dtype(self, array: Tensor) -> torch.dtype:
        """What convolutions of ours take: where they round to bfloat16, bytes become that at once, and are the same."""
        device = array.device.type
        is_rounded = self._is_ours and torch.is_autocast_enabled(device)
        return torch.get_autocast_dtype(device) if is_rounded else torch.float32

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
        parts = self._parts(weights)
        for name, tensor in self.travelling():
            tensor.copy_(parts[name])

    @torch.no_grad()
    def adopt_flat_weights(self, weights: Array, device: str = "cpu") -> None:
        """The same for a policy that was made on the device `meta`, which has no numbers yet: it gets copies."""
        parts = {name: part.to(device, copy=True) for name, part in self._parts(weights).items()}
        for name, part in parts.items():
            if part.dim() == 4:
                parts[name] = part.contiguous(memory_format=torch.channels_last)
        self.load_state_dict(parts, strict=False, assign=True)

    def _parts(self, weights: Array) -> dict[str, Tensor]:
        """Views of flat weights by name."""
        source = torch.from_numpy(np.ascontiguousarray(weights))
        index = self.weights_index()
        parts = torch.split(source, [math.prod(shape) for _, shape in index])
        return {name: part.view(shape) for (name, shape), part in zip(index, parts, strict=True)}


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
    if net.memory != "none":
        return RecurrentNetwork(spec, net)
    if image_keys(spec, net):
        return ImageNetwork(spec, net)
    return DenseNetwork(spec, net)
