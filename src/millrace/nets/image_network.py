"""The network for images, with dense inputs beside them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from millrace.config import NetConfig
from millrace.nets.encoders import CONVOLUTIONS, ImageEncoder
from millrace.nets.inputs import dense_keys, image_encoder, image_keys, num_outputs
from millrace.nets.layers import ByKey, Head, orthogonal
from millrace.types import SlotSpec


class ImageNetwork(nn.Module):
    """Actor and critic on one shared body."""

    def __init__(self, spec: SlotSpec, net: NetConfig) -> None:
        super().__init__()
        self.body = ImageBody(spec, net)
        self.policy_head = Head(self.body.num_features, num_outputs(spec, net), 0.01)
        self.value_head = Head(self.body.num_features, 1, 1.0)

    def forward(self, observation: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        x = self.body(observation)
        return self.policy_head(x), self.value_head(x).squeeze(-1)


class ImageBody(nn.Module):
    """Prepared observations to features [N, num_features]: convolutions for images, beside them the dense inputs.

    The other inputs pass a dense layer of 64. The last layer is dense over both: 512 wide with the Nature CNN, else
    256. Weights lie channels last, which is the fastest on a CPU (benchmarks/image_learner.py).
    """

    def __init__(self, spec: SlotSpec, net: NetConfig) -> None:
        super().__init__()
        self.image_keys, self.dense_keys = image_keys(spec, net), dense_keys(spec, net)
        arrays = {key: spec.observation[key] for key in self.image_keys}
        kinds = {key: image_encoder(array, net) for key, array in arrays.items()}
        self.num_features = max(CONVOLUTIONS[kind].num_features for kind in kinds.values())
        self.encoders = ByKey(
            {key: ImageEncoder(kinds[key], array.seen_shape, self.num_features) for key, array in arrays.items()}
        )
        num_dense = sum(spec.observation[key].num_inputs for key in self.dense_keys)
        self.beside = _beside(num_dense, self.num_features) if num_dense else None
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's own overloads lack it

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        # The parts of one dense layer over everything, added up.
        parts = [self.encoders[key](observation[key]) for key in self.image_keys]
        if self.beside is not None:
            x = torch.cat([observation[key].flatten(1) for key in self.dense_keys], dim=1)
            parts.append(self.beside(x))
        return torch.relu(sum(parts[1:], start=parts[0]))


def _beside(num_inputs: int, num_features: int) -> nn.Module:
    first, last = nn.Linear(num_inputs, 64), nn.Linear(64, num_features, bias=False)
    return nn.Sequential(orthogonal(first, math.sqrt(2)), nn.ReLU(), orthogonal(last, math.sqrt(2)))
