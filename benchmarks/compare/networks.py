"""The networks of the works, once for all peers that take a network of the user's. Needs torch alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class DenseNetwork(nn.Module):
    """Actor and critic apart, two tanh layers of 64 each, for CartPole."""

    def __init__(self, num_inputs: int = 4, num_actions: int = 2) -> None:
        super().__init__()
        self.actor = self._layers(num_inputs, num_actions, 0.01)
        self.critic = self._layers(num_inputs, 1, 1.0)

    @staticmethod
    def _layers(num_inputs: int, num_outputs: int, gain: float) -> nn.Sequential:
        hidden = [initialised(nn.Linear(num_inputs, 64)), nn.Tanh(), initialised(nn.Linear(64, 64)), nn.Tanh()]
        return nn.Sequential(*hidden, initialised(nn.Linear(64, num_outputs), gain))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Observations [N, inputs] to logits [N, actions] and values [N]."""
        return self.actor(observation), self.critic(observation).squeeze(-1)


class NatureBody(nn.Module):
    """Frames [N, 4, 84, 84], 0 to 255, to 512 features (Mnih et al. 2015)."""

    num_features = 512

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_convolutions(4, ((32, 8, 4), (64, 4, 2), (64, 3, 1))),
            nn.Flatten(),
            initialised(nn.Linear(3136, self.num_features)),
            nn.ReLU(),
        )

    def forward(self, observation: Tensor) -> Tensor:
        features: Tensor = self.layers(observation.float() / 255)
        return features


class MapBody(nn.Module):
    """Maps [N, 4, 51, 51], 0 to 255, and vectors [N, 31] to 256 features."""

    num_features = 256

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Sequential(*_convolutions(4, ((16, 5, 2), (32, 3, 2), (32, 3, 2))), nn.Flatten())
        self.vector = nn.Sequential(initialised(nn.Linear(31, 64)), nn.ReLU())
        self.trunk = nn.Sequential(initialised(nn.Linear(800 + 64, self.num_features)), nn.ReLU())

    def forward(self, map: Tensor, vector: Tensor) -> Tensor:
        features: Tensor = self.trunk(torch.cat([self.map(map.float() / 255), self.vector(vector)], dim=1))
        return features


class SharedNetwork(nn.Module):
    """Actor and critic on one body, whose arguments it takes."""

    def __init__(self, body: NatureBody | MapBody, num_actions: int) -> None:
        super().__init__()
        self.body = body
        self.actor = initialised(nn.Linear(body.num_features, num_actions), 0.01)
        self.critic = initialised(nn.Linear(body.num_features, 1), 1.0)

    def forward(self, **observation: Tensor) -> tuple[Tensor, Tensor]:
        """Observations by name to logits [N, actions] and values [N]."""
        features = self.body(**observation)
        return self.actor(features), self.critic(features).squeeze(-1)


def pong_network() -> SharedNetwork:
    """For Pong."""
    return SharedNetwork(NatureBody(), num_actions=6)


def map_network() -> SharedNetwork:
    """For maps and vectors."""
    return SharedNetwork(MapBody(), num_actions=16)


def initialised(layer: nn.Module, gain: float = math.sqrt(2)) -> nn.Module:
    """Orthogonal weights, no bias: what CleanRL and Stable-Baselines3 begin with."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def _convolutions(channels: int, layers: tuple[tuple[int, int, int], ...]) -> list[nn.Module]:
    """Of (channels, kernel, stride) each, with a ReLU after each."""
    modules: list[nn.Module] = []
    for out_channels, kernel, stride in layers:
        modules += [initialised(nn.Conv2d(channels, out_channels, kernel, stride)), nn.ReLU()]
        channels = out_channels
    return modules
