"""The actor for networks that need torch. Imported only by processes that run one."""

from __future__ import annotations

import copy
from typing import Any

import torch

from millrace.config import NetConfig
from millrace.nets.policy import Policy
from millrace.types import Array, SlotSpec


class TorchActor:
    """A copy of the policy.

    Args:
        threads: with which the CPU computes one batch. A few rows are too little to share: with two threads 8 frames
            took 12 to 49 ms on a busy machine, with one 2.

    Attributes:
        policy: without weights until they were loaded.
    """

    def __init__(
        self,
        spec: SlotSpec,
        net: NetConfig,
        normalize_observation: bool,
        network: Any = None,
        device: str = "cpu",
        threads: int = 1,
    ) -> None:
        self._device, self._threads = device, threads
        self.policy = _described(spec, net, normalize_observation, network, device).eval()
        self.state_size = self.policy.state_size
        self.index = self.policy.weights_index()

    def load(self, weights: Array) -> None:
        if next(self.policy.parameters()).is_meta:
            self.policy.adopt_flat_weights(weights, self._device)
        else:
            self.policy.load_flat_weights(weights)

    def forward(self, observation: dict[str, Array], state: Array | None = None) -> tuple[Array, Array]:
        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            return self._forward(observation, state)
        finally:
            torch.set_num_threads(threads)

    @torch.inference_mode()
    def _forward(self, observation: dict[str, Array], state: Array | None = None) -> tuple[Array, Array]:
        tensors = {key: torch.from_numpy(array).to(self._device) for key, array in observation.items()}
        if state is None:
            params, value = self.policy(tensors)
        else:
            # One step, and whoever keeps the state has already cleared it where an episode begins.
            begins = torch.zeros(1, len(state), dtype=torch.bool, device=self._device)
            params, value, after = self.policy.unroll(tensors, torch.from_numpy(state).to(self._device), begins)
            state[...] = after.cpu().numpy()
        return params.cpu().numpy(), value.cpu().numpy()


def _described(spec: SlotSpec, net: NetConfig, normalize_observation: bool, network: Any, device: str) -> Policy:
    """A policy without weights: they are still to come, and drawing others would cost a second."""
    if network is not None:
        return Policy(spec, net, normalize_observation, copy.deepcopy(network)).to(device)
    with torch.device("meta"):
        return Policy(spec, net, normalize_observation)
