"""A network as RLlib saved it, in the form of Millrace's own: then it acts, exports and is examined as those do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from millrace.config import EnvConfig, NetConfig
from millrace.deploy.record import PolicyRecord
from millrace.envs.spaces import MASK_KEY, Leaf, leaves, slot_spec
from millrace.nets.actor import LOG_STD_LIMIT, OBSERVATION_CLIP
from millrace.nets.inputs import dense_keys, dense_trunks, module_name, recurrent_layer
from millrace.types import Array

Layer = tuple[Array, Array]  # weight [out, in] and bias [out]
FILTER_EPS = 1e-8  # RLlib divides by the deviation plus this


class OtherNetworkError(Exception):
    """A network that has no form of Millrace's own; says which."""


@dataclass(frozen=True)
class Filter:
    """Running moments that observations are normalised by.

    Attributes:
        clip: bound of what comes out; None for none.
        count: observations that they are of.
    """

    mean: Array
    deviation: Array
    clip: float | None
    count: int


@dataclass(frozen=True)
class RllibNetwork:
    """Dense layers for actor and critic, recurrence behind them if any, and the heads.

    Attributes:
        observation_space, action_space: of the environment, before anything of RLlib's.
        actor, critic: the dense layers of each; the same where `shared`.
        memory: an LSTM's arrays by torch's names, for the actor and the critic or for both.
        log_std: free parameters; None where the head gives them.
        log_std_limit: their largest absolute value.
        observation_filter: of a plain Box of floating-point numbers.
        unsquashes: whether -1..1 stands for the bounds of the action space.
    """

    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    actor: list[Layer]
    critic: list[Layer]
    policy_head: Layer
    value_head: Layer
    activation: str
    shared: bool
    memory: list[dict[str, Array]] = field(default_factory=list)
    log_std: Array | None = None
    log_std_limit: float = LOG_STD_LIMIT
    observation_filter: Filter | None = None
    unsquashes: bool = True

    def record(self, env: EnvConfig, around: PolicyRecord | None) -> PolicyRecord:
        """The description.

        Args:
            around: the environment's, where Millrace trained it and prepared the observations itself.
        """
        net = NetConfig(
            hidden=tuple(len(bias) for _, bias in self.actor),
            activation="tanh" if self.activation == "tanh" else "relu",
            shared=self.shared,
            image="flat",
            state_log_std=isinstance(self.action_space, spaces.Box) and self.log_std is None,
            memory="lstm" if self.memory else "none",
            memory_size=len(self.memory[0]["bias_ih_l0"]) // 4 if self.memory else NetConfig.memory_size,
        )
        if around is not None:
            return dataclasses.replace(around, net=net, normalize_observation=self._normalizes)
        spec = slot_spec(self.observation_space, self.action_space, mask_in_info=False)
        return PolicyRecord(env, spec, self.observation_space, self.action_space, net, self._normalizes)

    @property
    def _normalizes(self) -> bool:
        """Whether the filter is one of Millrace's; one that does not clip is folded into the first layer."""
        return self.observation_filter is not None and self.observation_filter.clip is not None

    def arrays(self, record: PolicyRecord, is_prepared: bool) -> dict[str, Array]:
        """The weights under Millrace's names.

        Args:
            is_prepared: whether the network saw observations as Millrace's own see them.

        Raises:
            OtherNetworkError: a network of Millrace's would not act alike.
        """
        if self.activation not in ("tanh", "relu"):
            raise OtherNetworkError(f"its activation is {self.activation}, not tanh or relu")
        made: dict[str, Array] = {}
        trunks = dense_trunks(record.spec, record.net)
        for trunk, layers in zip(trunks, (self.actor, self.critic), strict=False):
            for depth, layer in enumerate(layers):
                weight, bias = layer if depth else self._first(layer, record, is_prepared)
                made |= {f"network.{trunk}.{depth}.weight": weight, f"network.{trunk}.{depth}.bias": bias}
        for trunk, memory in zip(trunks, self.memory, strict=False):
            made |= {f"network.{recurrent_layer(trunk)}.{name}": array for name, array in memory.items()}
        for name, (weight, bias) in (("policy_head", self._head()), ("value_head", self.value_head)):
            made |= {f"network.{name}.weight": weight, f"network.{name}.bias": bias}
        return {
            name: np.asarray(x, np.float32)
            for name, x in {**made, **self._deviations(), **self._moments(record)}.items()
        }

    def _first(self, layer: Layer, record: PolicyRecord, is_prepared: bool) -> Layer:
        """The first layer for observations as Millrace prepares them: other order, images scaled."""
        weight, bias = layer
        seen = self.observation_filter
        if seen is not None and seen.clip is None:
            factor = 1 / (seen.deviation + FILTER_EPS)
            weight = weight.astype(np.float64) * factor
            bias = bias - weight @ seen.mean
        if is_prepared:
            return weight, bias
        columns = dict(_columns(self.observation_space))
        parts = []
        for key in dense_keys(record.spec, record.net):
            index, scale = columns[key], record.spec.observation[key].scale
            parts.append(np.where(index < 0, 0.0, weight[:, index] / scale))
        joined = np.concatenate(parts, axis=1)
        if sum((index >= 0).sum() for index in columns.values()) != weight.shape[1]:
            raise OtherNetworkError(
                f"its first layer has {weight.shape[1]} inputs, and its observations {joined.shape[1]}"
            )
        return joined, bias

    def _head(self) -> Layer:
        """The actor's head, for actions in the environment's units."""
        weight, bias = self.policy_head
        if not isinstance(self.action_space, spaces.Box) or not self._scales:
            return weight, bias
        half, middle = self._half_range()
        mean = np.s_[: len(half)]
        weight, bias = weight.astype(np.float64), bias.astype(np.float64)
        weight[mean] *= half[:, None]
        bias[mean] = bias[mean] * half + middle
        if self.log_std is None:
            bias[len(half) :] += np.log(half)
        return weight, bias

    def _half_range(self) -> tuple[Array, Array]:
        low, high = self.action_space.low.ravel().astype(float), self.action_space.high.ravel().astype(float)
        return (high - low) / 2, (high + low) / 2

    @property
    def _scales(self) -> bool:
        return self.unsquashes and bool(np.isfinite([self.action_space.low, self.action_space.high]).all())

    def _deviations(self) -> dict[str, Array]:
        if not isinstance(self.action_space, spaces.Box):
            return {}
        if self.log_std is None:
            if self.log_std_limit < LOG_STD_LIMIT:
                raise OtherNetworkError(
                    f"it bounds log standard deviations at {self.log_std_limit:g}, not {LOG_STD_LIMIT:g}"
                )
            return {}
        log_std = self.log_std.astype(np.float64).clip(-self.log_std_limit, self.log_std_limit)
        return {"log_std": log_std + np.log(self._half_range()[0]) if self._scales else log_std}

    def _moments(self, record: PolicyRecord) -> dict[str, Array]:
        seen = self.observation_filter
        if seen is None or seen.clip is None:
            return {}
        if seen.clip != OBSERVATION_CLIP:
            raise OtherNetworkError(f"normalised observations are clipped at {seen.clip:g}, not {OBSERVATION_CLIP:g}")
        ((key, array),) = record.spec.observation.items()
        parts = {
            "offset": seen.mean,
            "factor": 1 / (seen.deviation + FILTER_EPS),
            "mean": seen.mean,
            "sum_of_squares": seen.deviation**2 * seen.count,
        }
        shaped = {name: part.reshape(array.shape) for name, part in parts.items()} | {"row_count": np.array(seen.count)}
        return {f"normalizer.{module_name(key)}.{name}": part for name, part in shaped.items()}


def filter_of(running: Mapping[str, Any], settings: Mapping[str, Any]) -> Filter:
    """From RLlib's running sums of one array, as RLlib computes with them.

    Raises:
        KeyError: they are of another form.
    """
    mean, count = np.asarray(running["mean_array"]), int(running["num_pushes"])
    if "sum_sq_diff_array" in running:
        variance = (running["sum_sq_diff_array"] / (count - 1) if count > 1 else 0 * mean).astype(np.float32)
    else:  # before Ray 2.48 or so, under a name that says something else
        variance = (running["std_array"] / (count - 1) if count > 1 else mean**2).astype(np.float32)
    deviation = np.sqrt(np.maximum(variance, 0))
    clip = settings["clip_by_value"]
    return Filter(
        mean if settings["de_mean_to_zero"] else 0 * mean,
        deviation if settings["de_std_to_one"] else np.ones_like(deviation),
        None if clip is None or math.isinf(clip) else float(clip),
        count,
    )


def _columns(space: gym.Space[Any]) -> Iterator[tuple[str, Array]]:
    """For each observation array, which input of RLlib's network each input of ours is; -1 for none.

    RLlib lays the parts of a space side by side, sorted by key, categories one-hot.
    """
    found = [leaf for leaf in leaves(space) if leaf[0] != MASK_KEY]
    first = 0
    for name, _, leaf in sorted(found, key=lambda one: _sortable(one)):
        yield name, np.where((index := _one_hot(leaf)) < 0, -1, index + first)
        first += int(index.max()) + 1


def _sortable(leaf: Leaf) -> tuple[Any, ...]:
    return tuple((isinstance(key, str), key) for key in leaf[1])


def _one_hot(leaf: gym.Space[Any]) -> Array:
    """Inputs of one leaf, counted from 0, in our order; categories of unlike number are padded with -1."""
    if isinstance(leaf, spaces.Discrete):
        return np.arange(int(leaf.n))
    if not isinstance(leaf, spaces.MultiDiscrete):
        return np.arange(int(np.prod(leaf.shape, dtype=np.int64)))
    sizes = leaf.nvec.ravel().astype(int)
    places = np.full((len(sizes), sizes.max()), -1)
    places[np.arange(sizes.max()) < sizes[:, None]] = np.arange(sizes.sum())
    return places.ravel()


def layers_under(arrays: Mapping[str, Array], prefix: str) -> list[Layer]:
    """The dense layers whose names begin so, `PREFIX.NUMBER....weight`, in order of the numbers.

    Raises:
        OtherNetworkError: there are other arrays among them.
    """
    depths: dict[int, dict[str, Array]] = {}
    for name, array in arrays.items():
        if name.startswith(prefix):
            number, _, rest = name[len(prefix) :].partition(".")
            depths.setdefault(int(number), {})[rest.rpartition(".")[2]] = array
    made = []
    for depth in sorted(depths):
        weight, bias = depths[depth].get("weight"), depths[depth].get("bias")
        if weight is None or weight.ndim != 2:
            raise OtherNetworkError("it has layers that are not dense, such as layer normalisation")
        made.append((weight, np.zeros(len(weight), weight.dtype) if bias is None else bias))
    return made


@dataclass(frozen=True)
class RllibPolicy:
    """What a checkpoint came to.

    Attributes:
        network: RLlib's own module where Millrace has no form for it; arrays are its parameters then.
        note: what had to be assumed; empty where nothing had.
    """

    record: PolicyRecord
    arrays: dict[str, Array]
    network: Any = None
    note: str = ""
