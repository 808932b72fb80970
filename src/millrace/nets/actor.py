"""What a collector needs of a policy: distribution parameters and values for a batch of slots."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from millrace.config import NetConfig
from millrace.nets.inputs import (
    WeightsIndex,
    dense_index,
    dense_keys,
    dense_trunks,
    image_keys,
    module_name,
    normalized_keys,
    recurrent_layer,
    state_size,
)
from millrace.ops.recurrence import gru_step, lstm_step
from millrace.types import Array, ArraySpec, SlotSpec

OBSERVATION_CLIP = 10.0
LOG_STD_LIMIT = 20.0
"""Where log standard deviations are outputs of the network; as RLlib has it."""


class Forward(Protocol):
    """What a collector needs of a policy."""

    def forward(self, observation: dict[str, Array], state: Array | None = None) -> tuple[Array, Array]:
        """Raw observations as seen [B, ...] to distribution parameters [B, P] and values [B], float32.

        Args:
            state: [B, S] recurrent state, overwritten with the next one; None for networks without.
        """


class Actor(Forward, Protocol):
    """A policy copy that only acts.

    Attributes:
        state_size: S, the numbers of recurrent state that a slot needs.
        index: what the flat weights consist of.
    """

    state_size: int
    index: WeightsIndex

    def load(self, weights: Array) -> None:
        """Take the flat float32 weights."""


@dataclass(frozen=True)
class ActorMaker:
    """How to make an actor: picklable, so that workers make their own.

    Attributes:
        network: a user's own torch module; it rules the NumPy actor out.
    """

    spec: SlotSpec
    net: NetConfig
    normalize_observation: bool = False
    network: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """The network travels from the learner's device to processes that may not have it, and without its memory."""
        network = None if self.network is None else copy.deepcopy(self.network).cpu()
        return {**vars(self), "network": network}

    @property
    def needs_torch(self) -> bool:
        """Dense and recurrent networks run in NumPy, three times faster at these sizes and without torch's memory."""
        return self.network is not None or bool(image_keys(self.spec, self.net))

    @property
    def state_size(self) -> int:
        """S, the numbers of recurrent state that one slot needs."""
        return state_size(self.spec, self.net) if self.network is None else int(getattr(self.network, "state_size", 0))

    def make(self, device: str = "cpu", threads: int = 1) -> Actor:
        """An actor without weights; where, and with how many threads, matters only to those that need torch."""
        if not self.needs_torch:
            return NumpyActor(self.spec, self.net, self.normalize_observation)
        from millrace.nets.torch_actor import TorchActor

        return TorchActor(self.spec, self.net, self.normalize_observation, self.network, device, threads)


class NumpyActor:
    """The dense policy of `millrace.nets.policy` in NumPy, with or without a recurrent layer behind it."""

    def __init__(self, spec: SlotSpec, net: NetConfig, normalize_observation: bool) -> None:
        self._spec = spec
        self._keys = dense_keys(spec, net)
        self._normalized = set(normalized_keys(spec, normalize_observation))
        self._activation = np.tanh if net.activation == "tanh" else _relu
        self.state_size = state_size(spec, net)
        self._recurrence = {"none": None, "gru": gru_step, "lstm": lstm_step}[net.memory]
        self._memories: list[dict[str, Array]] = []  # the parts of each recurrent layer
        self._output_size = net.memory_size
        self._trunks = dense_trunks(spec, net)
        self._depth = len(net.hidden)
        self.index = dense_index(spec, net, normalize_observation)
        self._parts: dict[str, Array] = {}

    def load(self, weights: Array) -> None:
        first = 0
        for name, shape in self.index:
            size = int(np.prod(shape, dtype=np.int64))
            part = weights[first : first + size].reshape(shape)
            # Transposed once here instead of at every step.
            self._parts[name] = np.array(part.T if "weight" in name.rpartition(".")[2] else part, order="C")
            first += size
        self._memories = [self._parts_under(f"network.{recurrent_layer(trunk)}.") for trunk in self._trunks]
        self._log_std = self._parts.get("log_std")

    def forward(self, observation: dict[str, Array], state: Array | None = None) -> tuple[Array, Array]:
        x = self._inputs(observation)
        hidden = [self._dense(trunk, x) for trunk in self._trunks]
        if self._recurrence is not None:
            assert state is not None
            streams = np.split(state, len(hidden), axis=1)
            for i, (memory, stream) in enumerate(zip(self._memories, streams, strict=True)):
                stream[...] = self._recurrence(memory, hidden[i], stream)
                hidden[i] = stream[:, : self._output_size]
        parts = self._parts
        params = hidden[0] @ parts["network.policy_head.weight"]
        params += parts["network.policy_head.bias"]
        value = hidden[-1] @ parts["network.value_head.weight"]
        value += parts["network.value_head.bias"]
        num_box = self._spec.action.num_box
        if num_box and self._log_std is None:
            np.clip(params[:, -num_box:], -LOG_STD_LIMIT, LOG_STD_LIMIT, out=params[:, -num_box:])
        if self._log_std is not None:
            params = np.concatenate([params, np.broadcast_to(self._log_std, (len(params), self._log_std.size))], 1)
        return params, value[:, 0]

    def _parts_under(self, prefix: str) -> dict[str, Array]:
        return {name[len(prefix) :]: part for name, part in self._parts.items() if name.startswith(prefix)}

    def _dense(self, trunk: str, x: Array) -> Array:
        for layer in range(self._depth):
            x = x @ self._parts[f"network.{trunk}.{layer}.weight"]
            x += self._parts[f"network.{trunk}.{layer}.bias"]
            x = self._activation(x, out=x)
        return x

    def _inputs(self, observation: dict[str, Array]) -> Array:
        columns = [self._prepared(key, observation[key]) for key in self._keys]
        return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)

    def _prepared(self, key: str, array: Array) -> Array:
        if key in self._normalized:
            name = f"normalizer.{module_name(key)}"
            offset, factor = self._parts[f"{name}.offset"], self._parts[f"{name}.factor"]
            # Broadcast over the frames of a stack, if there is one.
            normalized = (array.astype(np.float32, copy=False) - offset) * factor
            return np.clip(normalized, -OBSERVATION_CLIP, OBSERVATION_CLIP).reshape(len(array), -1)
        return prepared(self._spec.observation[key], array)


def prepared(spec: ArraySpec, array: Array) -> Array:
    """One raw observation array [B, ...] as a dense layer sees it, [B, inputs]: scaled, or one-hot."""
    if spec.num_classes:
        one_hot: Array = array[..., None] == np.arange(spec.num_classes)
        return one_hot.reshape(len(array), -1).astype(np.float32)
    flat = array.reshape(len(array), -1).astype(np.float32, copy=False)
    return flat * np.float32(spec.scale) if spec.scale != 1.0 else flat


def _relu(x: Array, out: Array) -> Array:
    return np.maximum(x, 0.0, out=out)
