"""What travels between the rooms: the shape, dtype and unit of everything a rollout holds.

Legend, here and everywhere: T steps of a rollout, B slots, A action columns, M action-mask bits, P
distribution parameters. A slot is one stream of experience: (environment copy, seat).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from millrace.errors import ConfigError

Array = NDArray[Any]
ArrayTable = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]  # shape and dtype by name
ALIGNMENT_BYTES = 64  # one cache line, so that no two fields share one


@dataclass(frozen=True)
class ArraySpec:
    """One observation array of one slot.

    Attributes:
        shape: without T and B.
        dtype: NumPy name, as the environment gives it; uint8 stays uint8.
        scale: multiply by this to bring a bounded integer array (an image) into 0..1.
        num_classes: above 0 for integer categories, which networks see one-hot.
        stack: how many of the latest ones the policy sees, oldest first. Rollouts store each once.
    """

    shape: tuple[int, ...]
    dtype: str
    scale: float = 1.0
    num_classes: int = 0
    stack: int = 1

    @property
    def seen_shape(self) -> tuple[int, ...]:
        """What the policy sees of one slot: [stack, *shape] where frames are stacked."""
        return (self.stack, *self.shape) if self.stack > 1 else self.shape

    @property
    def is_image(self) -> bool:
        """Three dimensions of bytes, or two of which several are stacked: convolutions fit."""
        return self.dtype == "uint8" and (len(self.shape) == 3 or (len(self.shape) == 2 and self.stack > 1))

    @property
    def num_inputs(self) -> int:
        """Numbers that a dense layer sees."""
        return int(np.prod(self.seen_shape, dtype=np.int64)) * max(self.num_classes, 1)


@dataclass(frozen=True)
class ActionSpec:
    """A product of categoricals (`nvec`) and a diagonal Gaussian (`low`, `high`), in that order of columns.

    Discrete(n) is nvec=(n,), MultiBinary(n) is nvec=(2,) * n, Box is low and high, flattened.
    """

    nvec: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def num_box(self) -> int:
        return len(self.low)

    @property
    def num_columns(self) -> int:
        return len(self.nvec) + self.num_box

    @property
    def num_logits(self) -> int:
        return sum(self.nvec)

    @property
    def num_params(self) -> int:
        """P: logits, then means, then log standard deviations."""
        return self.num_logits + 2 * self.num_box

    @property
    def dtype(self) -> str:
        """Integers where all columns are categories; else float32, which holds small integers exactly."""
        return "float32" if self.num_box else "int32"


@dataclass(frozen=True)
class SlotSpec:
    """What one slot sees and does. Plain data: it goes into checkpoints as JSON."""

    observation: Mapping[str, ArraySpec]
    action: ActionSpec
    has_action_mask: bool = False

    @property
    def num_mask_bits(self) -> int:
        return self.action.num_logits if self.has_action_mask else 0

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, numbers and strings."""
        return {
            "observation": {key: vars(spec) | {"shape": list(spec.shape)} for key, spec in self.observation.items()},
            "action": {name: list(value) for name, value in vars(self.action).items()},
            "has_action_mask": self.has_action_mask,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> SlotSpec:
        """The inverse of `to_json`."""
        observation = {
            key: ArraySpec(**{**spec, "shape": tuple(spec["shape"])}) for key, spec in data["observation"].items()
        }
        action = ActionSpec(**{name: tuple(value) for name, value in data["action"].items()})
        return SlotSpec(observation, action, bool(data["has_action_mask"]))


@dataclass
class Rollout:
    """T consecutive steps of B slots, time-major. Row t+1 of a done row t holds the final observation.

    Where the policy sees a stack of K frames, K - 1 earlier frames lie before row 0, so that each is stored once;
    `present(key)` leaves them out. S is the size of the recurrent state.

    The reset transition out of that row has `valid` False: it is no experience. Environments that reset in
    the same step carry `bootstrap_value`, the value of the final observation that has no row of its own.
    """

    observation: dict[str, Array]  # [K - 1 + T + 1, B, ...] raw, in the environment's dtype
    action: Array  # [T, B, A]
    log_prob: Array  # [T, B] float32, under the distribution that was sampled from
    value: Array  # [T + 1, B] float32, at collection, denormalised
    reward: Array  # [T, B] float32, raw
    terminated: Array  # [T, B] bool
    truncated: Array  # [T, B] bool
    valid: Array  # [T, B] bool
    policy_version: Array  # [T, B] int64, updates made when the acting weights were published
    action_mask: Array | None = None  # [T + 1, B, ceil(M / 8)] uint8, bit-packed, little-endian
    bootstrap_value: Array | None = None  # [T, B] float32, nan where the next row tells
    age: Array | None = None  # [T + 1, B] uint8, earlier rows of the episode, up to 255; for policies with memory
    state: Array | None = None  # [1, B, S] float32, recurrent state before row 0

    def present(self, key: str) -> Array:
        """[T + 1, B, ...] one observation array without the earlier frames of a stack."""
        array = self.observation[key]
        return array[len(array) - len(self.value) :]

    @property
    def num_steps(self) -> int:
        return int(self.reward.shape[0])

    @property
    def num_slots(self) -> int:
        return int(self.reward.shape[1])

    def fields(self) -> Iterator[tuple[str, Array]]:
        """Every array with its flat name (`observation/KEY` for observations), absent ones left out."""
        for name, value in vars(self).items():
            if isinstance(value, dict):
                yield from ((f"{name}/{key}", array) for key, array in value.items())
            elif value is not None:
                yield name, value

    def columns(self, first: int, last: int) -> Rollout:
        """Views of the slots first..last-1."""
        views = {name: array[:, first:last] for name, array in self.fields()}
        return Rollout.from_fields(views)

    @staticmethod
    def from_fields(arrays: Mapping[str, Array]) -> Rollout:
        """The inverse of `fields`."""
        prefix = "observation/"
        observation = {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}
        return Rollout(observation, **{name: array for name, array in arrays.items() if not name.startswith(prefix)})

    def invalidate(self) -> None:
        """Make every row count for nothing, with harmless contents."""
        for _, array in self.fields():
            array[...] = 0


@dataclass(frozen=True)
class RolloutLayout:
    """The one schema that shared memory, checks and wire frames are derived from."""

    spec: SlotSpec
    num_steps: int
    num_slots: int
    same_step_reset: bool = False
    state_size: int = 0
    arrays: ArrayTable = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrays", dict(self._describe()))

    def _describe(self) -> Iterator[tuple[str, tuple[tuple[int, ...], np.dtype[Any]]]]:
        steps, rows, slots = self.num_steps, self.num_steps + 1, self.num_slots

        def entry(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
            return name, (shape, np.dtype(dtype))

        for key, spec in self.spec.observation.items():
            yield entry(f"observation/{key}", (spec.stack - 1 + rows, slots, *spec.shape), spec.dtype)
        yield entry("action", (steps, slots, self.spec.action.num_columns), self.spec.action.dtype)
        yield entry("log_prob", (steps, slots), "float32")
        yield entry("value", (rows, slots), "float32")
        yield entry("reward", (steps, slots), "float32")
        for flag in ("terminated", "truncated", "valid"):
            yield entry(flag, (steps, slots), "bool")
        yield entry("policy_version", (steps, slots), "int64")
        if self.spec.has_action_mask:
            yield entry("action_mask", (rows, slots, -(-self.spec.num_mask_bits // 8)), "uint8")
        if self.same_step_reset:
            yield entry("bootstrap_value", (steps, slots), "float32")
        if self.has_memory:
            yield entry("age", (rows, slots), "uint8")
        if self.state_size:
            yield entry("state", (1, slots, self.state_size), "float32")

    @property
    def has_memory(self) -> bool:
        """Whether the policy sees more than the present observation."""
        return self.state_size > 0 or any(spec.stack > 1 for spec in self.spec.observation.values())

    @property
    def nbytes(self) -> int:
        """Bytes of one rollout, every field aligned to a cache line."""
        return nbytes_of(self.arrays)

    def view(self, memory: memoryview, offset_bytes: int = 0) -> Rollout:
        """A rollout whose arrays lie in `memory`, which needs `nbytes` from `offset_bytes` on."""
        return Rollout.from_fields(views_of(self.arrays, memory, offset_bytes))

    def allocate(self) -> Rollout:
        """A rollout of zeros in ordinary memory."""
        return self.view(memoryview(bytearray(self.nbytes)))


def nbytes_of(arrays: ArrayTable) -> int:
    """Bytes of arrays one after another, each aligned to a cache line."""
    return sum(_aligned(_nbytes(shape, dtype)) for shape, dtype in arrays.values())


def views_of(arrays: ArrayTable, memory: memoryview, offset_bytes: int = 0) -> dict[str, Array]:
    """Those arrays in `memory`, which needs `nbytes_of` them from `offset_bytes` on."""
    views: dict[str, Array] = {}
    for name, (shape, dtype) in arrays.items():
        views[name] = np.ndarray(shape, dtype, buffer=memory, offset=offset_bytes)
        offset_bytes += _aligned(_nbytes(shape, dtype))
    return views


def _nbytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


@dataclass(frozen=True)
class EpisodeRecord:
    """One finished episode.

    Attributes:
        episode_return: sum of raw rewards.
        length_steps: environment transitions.
        seed: what the episode was reset with; -1 where the environment draws its own.
        figures: every number that the game put into its final `info`.
    """

    episode_return: float
    length_steps: int
    seed: int = -1
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass
class CollectorTimes:
    """Where a collector spent its time, in seconds."""

    step_s: float = 0.0
    inference_s: float = 0.0
    wait_s: float = 0.0
    other_s: float = 0.0

    def add(self, other: CollectorTimes) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless the condition holds."""
    if not condition:
        raise ConfigError(message)
