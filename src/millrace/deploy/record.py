"""The description of a policy that lies beside its weights, checked before anything is built from it.

Files may come from anybody: sizes are bounded here, and nothing in a description names code that loading runs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from millrace.config import Config, EnvConfig, NetConfig
from millrace.envs.spaces import slot_spec, space_from_json, space_to_json
from millrace.errors import CheckpointError
from millrace.types import SlotSpec

MAX_OBSERVATION_BYTES = 1 << 26
"""Of one slot, 64 MB: more than any screen, and little enough to try."""


@dataclass(frozen=True)
class PolicyRecord:
    """Everything besides the arrays that is needed to act.

    Attributes:
        env: what it was trained on.
        spec: what one slot sees and does, stacked frames included.
    """

    env: EnvConfig
    spec: SlotSpec
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    net: NetConfig
    normalize_observation: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "env": dataclasses.asdict(self.env),
            "spec": self.spec.to_json(),
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            "net": dataclasses.asdict(self.net),
            "normalize_observation": self.normalize_observation,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any], where: str) -> PolicyRecord:
        """The inverse of `to_json`.

        Raises:
            CheckpointError: something is missing, contradicts the rest, or is far too large.
        """
        try:
            return _parsed(data)
        except Exception as error:  # whatever a hostile description provokes
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise CheckpointError(f"{where} does not describe a policy ({text:.200})") from None


def _parsed(data: Mapping[str, Any]) -> PolicyRecord:
    spec = SlotSpec.from_json(data["spec"])
    _check_sizes(data["observation_space"], data["action_space"])
    spaces = space_from_json(data["observation_space"]), space_from_json(data["action_space"])
    derived = slot_spec(*spaces, mask_in_info=False)
    for key, array in spec.observation.items():
        same = dataclasses.replace(array, stack=1) == derived.observation.get(key)
        if not same or not 1 <= array.stack <= MAX_OBSERVATION_BYTES:
            raise ValueError(f"the observation {key} is not that of its space")
        _check_bytes(key, array.seen_shape, array.num_classes)
    if spec.observation.keys() != derived.observation.keys() or spec.action != derived.action:
        raise ValueError("what a slot sees and does is not what its spaces say")
    plain = Config().replace({"env": data["env"], "net": data["net"]})
    return PolicyRecord(plain.env, spec, *spaces, plain.net, bool(data["normalize_observation"]))


def _check_sizes(*spaces: Any) -> None:
    """Refuse a space that would fill memory before it is made."""
    for space in spaces:
        kind = space["type"]
        if kind in ("Dict", "Tuple"):
            _check_sizes(*(space["spaces"].values() if kind == "Dict" else space["spaces"]))
        elif kind in ("Box", "MultiBinary"):
            _check_bytes(kind, space["shape"])
        elif kind == "Discrete":
            _check_bytes(kind, (space["n"],))
        elif kind == "MultiDiscrete":
            _check_bytes(kind, (sum(_flat(space["nvec"])),))


def _flat(values: Any) -> list[int]:
    return [number for value in values for number in _flat(value)] if isinstance(values, list) else [values]


def _check_bytes(name: str, shape: Any, num_classes: int = 0) -> None:
    sizes = [*shape, max(num_classes, 1)]
    if not all(isinstance(size, int) and size >= 0 for size in sizes) or math.prod(sizes) * 4 > MAX_OBSERVATION_BYTES:
        raise ValueError(
            f"{name} of the shape {list(shape)} is more than {MAX_OBSERVATION_BYTES >> 20} MB, or no shape"
        )
