"""Recurrence between an encoder and the heads."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from millrace.config import NetConfig
from millrace.nets.dense_network import DenseBody
from millrace.nets.image_network import ImageBody
from millrace.nets.inputs import image_keys, state_size
from millrace.nets.layers import Head, num_outputs
from millrace.types import SlotSpec


class RecurrentNetwork(nn.Module):
    """Encoder, one GRU or LSTM layer, heads. Actor and critic share all but the heads.

    The state of a slot is one vector [S]: the layer's output, then an LSTM's cell.
    """

    def __init__(self, spec: SlotSpec, net: NetConfig) -> None:
        super().__init__()
        self.state_size = state_size(net)
        self.body = ImageBody(spec, net) if image_keys(spec, net) else DenseBody(spec, net)
        layer = nn.LSTM if net.memory == "lstm" else nn.GRU
        self.memory = layer(self.body.num_features, net.memory_size)
        for name, parameter in self.memory.named_parameters():
            nn.init.zeros_(parameter) if name.startswith("bias") else nn.init.orthogonal_(parameter, 1.0)
        self.policy_head = Head(net.memory_size, num_outputs(spec.action), 0.01)
        self.value_head = Head(net.memory_size, 1, 1.0)

    def forward(self, observation: dict[str, Tensor], state: Tensor, begins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `millrace.nets.policy.Network`."""
        features = self.body(observation).view(*begins.shape, -1)
        hidden, state = self._remember(features, state, begins)
        x = hidden.flatten(0, 1)
        return self.policy_head(x), self.value_head(x).squeeze(-1), state

    def _remember(self, features: Tensor, state: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs [T, B, H] and the last state: in stretches between the steps at which some slot begins anew."""
        num_steps = len(begins)
        cuts = [0, *(t for t in begins.any(1).nonzero().flatten().tolist() if t), num_steps]
        outputs = []
        for first, last in itertools.pairwise(cuts):
            state = state * (~begins[first]).unsqueeze(-1)
            output, state = self._stretch(features[first:last], state)
            outputs.append(output)
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0], state

    def _stretch(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self.memory, nn.GRU):
            output, hidden = self.memory(features, state.unsqueeze(0).contiguous())
            return output, hidden[0]
        hidden, cell = (part.unsqueeze(0).contiguous() for part in state.chunk(2, dim=-1))
        output, (hidden, cell) = self.memory(features, (hidden, cell))
        return output, torch.cat([hidden[0], cell[0]], dim=-1)
