"""The actor for networks that need torch. Imported only by workers that run one."""

from __future__ import annotations

import copy
from typing import Any

import torch

from millrace.config import NetConfig
from millrace.nets.policy import Policy
from millrace.types import Array, SlotSpec


class TorchActor:
    """A copy of the policy on the CPU."""

    def __init__(self, spec: SlotSpec, net: NetConfig, normalize_observation: bool, network: Any = None) -> None:
        self._policy = Policy(spec, net, normalize_observation, copy.deepcopy(network)).cpu().eval()

    def load(self, weights: Array) -> None:
        self._policy.load_flat_weights(weights)

    @torch.inference_mode()
    def forward(self, observation: dict[str, Array]) -> tuple[Array, Array]:
        params, value = self._policy({key: torch.from_numpy(array) for key, array in observation.items()})
        return params.numpy(), value.numpy()
