"""The network for vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from millrace.config import NetConfig
from millrace.nets.inputs import dense_keys, num_outputs
from millrace.nets.layers import dense_layers, orthogonal, side_by_side
from millrace.types import SlotSpec


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
        self.policy_head = orthogonal(nn.Linear(widths[-1], num_outputs(spec, net)), 0.01)
        self.value_head = orthogonal(nn.Linear(widths[-1], 1), 1.0)
        self.shared = net.shared

    def forward(self, observation: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        x = side_by_side(observation, self.keys)
        if self.shared:
            actor = critic = self._run(self.trunk, x)
        else:
            actor, critic = self._run(self.actor, x), self._run(self.critic, x)
        return self.policy_head(actor), self.value_head(critic).squeeze(-1)

    def body(self, observation: dict[str, Tensor]) -> Tensor:
        """Prepared observations to the features [N, F] that the policy's head sees."""
        return self._run(self.trunk if self.shared else self.actor, side_by_side(observation, self.keys))

    def _run(self, layers: nn.ModuleList, x: Tensor) -> Tensor:
        for layer in layers:
            x = self.activation(layer(x))
        return x


class DenseBody(nn.Module):
    """Prepared observations to features [N, num_features]: flattened, then dense layers."""

    def __init__(self, spec: SlotSpec, net: NetConfig) -> None:
        super().__init__()
        self.keys = dense_keys(spec, net)
        self.activation = torch.tanh if net.activation == "tanh" else torch.relu
        widths = (sum(spec.observation[key].num_inputs for key in self.keys), *net.hidden)
        self.layers = dense_layers(widths)
        self.num_features = widths[-1]

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        x = side_by_side(observation, self.keys)
        for layer in self.layers:
            x = self.activation(layer(x))
        return x
