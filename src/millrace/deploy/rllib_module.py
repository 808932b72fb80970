"""Acting by RLlib's own module, where Millrace has no form for it. Loading it runs what its pickle names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from millrace.config import NetConfig
from millrace.deploy.record import PolicyRecord
from millrace.deploy.rllib_files import RefusedError
from millrace.envs.spaces import MASK_KEY
from millrace.errors import MissingExtraError
from millrace.nets.encoders import channels_first
from millrace.types import Array


def load_module(
    directory: Path, record: PolicyRecord, unsquashes: bool, is_prepared: bool
) -> tuple[PolicyRecord, dict[str, Array], nn.Module]:
    """Description, parameters and network of a module; no Ray is started.

    Args:
        record: of its environment.
        is_prepared: whether observations were laid out for it as `millrace.rllib` does.

    Raises:
        MissingExtraError: RLlib is not installed.
        RefusedError: it cannot be loaded, carries state, or gives no parameters of a distribution.
    """
    try:
        from ray.rllib.core.rl_module.rl_module import RLModule
    except ImportError:
        raise MissingExtraError("ray.rllib", "rllib", "acting by its own code") from None
    net = NetConfig(state_log_std=isinstance(record.action_space, spaces.Box), image="flat")
    record = dataclasses.replace(record, net=net)
    try:
        module = RLModule.from_checkpoint(str(directory.resolve()))
        network = ThroughRllib(module, record, unsquashes, is_prepared)
        network({key: torch.zeros(1, *array.seen_shape) for key, array in record.spec.observation.items()})
    except RefusedError:
        raise
    except Exception as error:  # whatever the user's class raises
        raise RefusedError(f"RLlib cannot load its module ({type(error).__name__}: {error})") from None
    arrays = {f"network.{name}": tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}
    return record, arrays, network


class ThroughRllib(nn.Module):
    """A `millrace.nets.policy.Network` around an RLModule without state."""

    def __init__(self, module: Any, record: PolicyRecord, unsquashes: bool, is_prepared: bool) -> None:
        super().__init__()
        if module.is_stateful():
            raise RefusedError("its module carries a state of its own kind from step to step")
        self.module, self._is_prepared = module, is_prepared
        self._arrays, self._num_mask_bits = record.spec.observation, record.spec.num_mask_bits
        space = record.action_space
        is_scaled = unsquashes and isinstance(space, spaces.Box) and space.is_bounded()
        self._bounds = (space.low.ravel(), space.high.ravel()) if is_scaled else None

    def forward(self, observation: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        outputs = self.module.forward_inference({"obs": self._as_given(observation)})
        value = self.module.compute_values({"obs": self._as_given(observation)})
        return self._in_units(outputs["action_dist_inputs"]), value

    def _as_given(self, observation: dict[str, Tensor]) -> Any:
        """An observation as RLlib had it; the mask, which is applied later, allows everything."""
        parts = {"observations": self._laid_out(observation)} if self._is_prepared else self._raw(observation)
        if not self._num_mask_bits:
            return next(iter(parts.values())) if len(parts) == 1 else parts
        rows = len(next(iter(parts.values())))
        return {**parts, MASK_KEY: torch.ones(rows, self._num_mask_bits)}

    def _raw(self, observation: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: x / self._arrays[key].scale for key, x in observation.items()}

    def _laid_out(self, observation: dict[str, Tensor]) -> Tensor:
        """As `millrace.rllib.seats.as_inputs`: an image with its channels last, or everything side by side."""
        if len(observation) == 1 and next(iter(self._arrays.values())).is_image:
            return channels_first(next(iter(observation.values()))).movedim(1, -1)
        return torch.cat([x.flatten(1) for x in observation.values()], dim=1)

    def _in_units(self, params: Tensor) -> Tensor:
        """Means and deviations in the environment's units, where -1..1 stands for its bounds."""
        if self._bounds is None:
            return params
        low, high = (torch.as_tensor(bound, device=params.device) for bound in self._bounds)
        mean, log_std = params.chunk(2, dim=-1)
        half = (high - low) / 2
        return torch.cat([low + (mean + 1) * half, log_std + half.log()], dim=-1)
