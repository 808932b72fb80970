"""Acting by RLlib's own module, where Millrace has no form for it. Loading it runs what its pickle names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from torch import Tensor, nn

from millrace.config import EnvConfig, NetConfig
from millrace.deploy.record import PolicyRecord
from millrace.deploy.rllib_files import RefusedError
from millrace.envs.spaces import MASK_KEY, slot_spec
from millrace.errors import MissingExtraError
from millrace.types import Array, SlotSpec


def load_module(
    directory: Path, env: EnvConfig, found: tuple[gym.Space[Any], gym.Space[Any]], unsquashes: bool
) -> tuple[PolicyRecord, dict[str, Array], nn.Module]:
    """Description, parameters and network of a module; no Ray is started.

    Raises:
        MissingExtraError: RLlib is not installed.
        RefusedError: it cannot be loaded, carries state, or gives no parameters of a distribution.
    """
    try:
        from ray.rllib.core.rl_module.rl_module import RLModule
    except ImportError:
        raise MissingExtraError("ray.rllib", "rllib", "acting by its own code") from None
    try:
        module = RLModule.from_checkpoint(str(directory.resolve()))
        spec = slot_spec(*found, mask_in_info=False)
        network = ThroughRllib(module, spec, found[1], unsquashes)
        nothing = {key: torch.zeros(1, *array.seen_shape) for key, array in spec.observation.items()}
        network(nothing)
    except RefusedError:
        raise
    except Exception as error:  # whatever the user's class raises
        raise RefusedError(f"RLlib cannot load its module ({type(error).__name__}: {error})") from None
    net = NetConfig(state_log_std=isinstance(found[1], spaces.Box), image="flat")
    arrays = {f"network.{name}": tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}
    return PolicyRecord(env, spec, *found, net), arrays, network


class ThroughRllib(nn.Module):
    """A `millrace.nets.policy.Network` around an RLModule without state."""

    def __init__(self, module: Any, spec: SlotSpec, action_space: gym.Space[Any], unsquashes: bool) -> None:
        super().__init__()
        if module.is_stateful():
            raise RefusedError("its module carries a state of its own kind from step to step")
        self.module = module
        self._scales = {key: array.scale for key, array in spec.observation.items()}
        self._num_mask_bits = spec.num_mask_bits
        is_scaled = unsquashes and isinstance(action_space, spaces.Box) and action_space.is_bounded()
        self._bounds = (action_space.low.ravel(), action_space.high.ravel()) if is_scaled else None

    def forward(self, observation: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        plain = {key: x / self._scales[key] for key, x in observation.items()}
        outputs = self.module.forward_inference({"obs": self._as_given(plain)})
        value = self.module.compute_values({"obs": self._as_given(plain)})
        return self._in_units(outputs["action_dist_inputs"]), value

    def _as_given(self, plain: dict[str, Tensor]) -> Any:
        """An observation as the environment gives it; the mask, which is applied later, allows everything."""
        if not self._num_mask_bits:
            return next(iter(plain.values())) if list(plain) == ["obs"] else dict(plain)
        rows = len(next(iter(plain.values())))
        return {**plain, MASK_KEY: torch.ones(rows, self._num_mask_bits)}

    def _in_units(self, params: Tensor) -> Tensor:
        """Means and deviations in the environment's units, where -1..1 stands for its bounds."""
        if self._bounds is None:
            return params
        low, high = (torch.as_tensor(bound, device=params.device) for bound in self._bounds)
        mean, log_std = params.chunk(2, dim=-1)
        half = (high - low) / 2
        return torch.cat([low + (mean + 1) * half, log_std + half.log()], dim=-1)
