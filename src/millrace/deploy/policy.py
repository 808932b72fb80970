"""A trained policy from a checkpoint: no worker, no environment, no code from the file; dense ones need no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from millrace.config import Config
from millrace.envs.spaces import MASK_KEY, action_converter, leaf_value, leaves, space_from_json, space_to_json
from millrace.errors import CheckpointError
from millrace.nets.actor import Actor, ActorMaker, WeightsIndex
from millrace.nets.memory import Memory
from millrace.ops.sampling import best_actions, sample_actions
from millrace.rundir import find_checkpoint
from millrace.types import Array, SlotSpec


def describe_policy(
    config: Config, spec: SlotSpec, spaces: tuple[gym.Space[Any], gym.Space[Any]], index: WeightsIndex
) -> dict[str, Any]:
    """Everything besides the arrays that is needed to act, as plain values."""
    observation_space, action_space = spaces
    return {
        "env": dataclasses.asdict(config.env),
        "spec": spec.to_json(),
        "observation_space": space_to_json(observation_space),
        "action_space": space_to_json(action_space),
        "net": dataclasses.asdict(config.net),
        "normalize_observation": config.ppo.normalize_observation,
        "weights_index": [[name, list(shape)] for name, shape in index],
    }


class LoadedPolicy:
    """Acts on raw observations, one or a batch, and gives what `env.step` wants.

    Attributes:
        has_memory: whether it also needs what it has seen before: pass `state=policy.new_state()` then.
    """

    def __init__(self, record: Mapping[str, Any], actor: Actor, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.env = Config().replace({"env": record["env"]}).env
        self.spec = SlotSpec.from_json(record["spec"])
        self.actor = actor
        self._leaves = leaves(space_from_json(record["observation_space"]))
        self._convert = action_converter(space_from_json(record["action_space"]))
        self._rng = np.random.default_rng(0)
        self.has_memory = not self.new_state().is_empty

    def new_state(self, num_slots: int = 1) -> Memory:
        """What a policy with memory carries from step to step: make one for each episode, or for a batch of them.

        `act` updates it. Where an episode of a batch ends, `state.begin(mask)` forgets the slots of a mask [N].
        """
        return Memory(self.spec, self.actor.state_size, num_slots)

    def act(
        self, obs: Any, state: Memory | None = None, *, action_mask: Array | None = None, deterministic: bool = True
    ) -> Any:
        """The action for an observation as the environment gives it, or a list of actions for a batch.

        Args:
            obs: matches the observation space, or with one leading dimension more.
            state: from `new_state`, updated; needed by policies with recurrence or stacked frames.
            action_mask: [M] or [N, M], where the mask is not part of the observation.
            deterministic: the most probable action; else a draw.

        Raises:
            ValueError: a shape that does not fit, or a policy with memory without a state.
        """
        arrays, mask, is_batch = self._arrays(obs, action_mask)
        params, _ = self._forward(arrays, state)
        columns = self._choose(params, mask, deterministic)
        actions = [self._convert(row) for row in columns]
        return actions if is_batch else actions[0]

    def value(self, obs: Any, state: Memory | None = None) -> Array:
        """The value estimates [N] of one observation or a batch; `state` as in `act`, updated too."""
        return self._forward(self._arrays(obs, None)[0], state)[1]

    def _forward(self, arrays: dict[str, Array], state: Memory | None) -> tuple[Array, Array]:
        if state is None:
            if self.has_memory:
                raise ValueError(
                    "this policy has memory: make state = policy.new_state() for each episode and pass it to act"
                )
            return self.actor.forward(arrays)
        num_rows = len(next(iter(arrays.values())))
        if len(state.age) != num_rows:
            raise ValueError(f"the state is of {len(state.age)} slots, the observation of {num_rows}")
        return self.actor.forward(state.see(arrays), state.state)

    def _choose(self, params: Array, mask: Array | None, deterministic: bool) -> Array:
        spec = self.spec.action
        if deterministic:
            return best_actions(spec, params, mask)
        action, log_prob = np.empty((len(params), spec.num_columns), spec.dtype), np.empty(len(params), np.float32)
        sample_actions(spec, params, mask, self._rng, action, log_prob)
        return action

    def _arrays(self, obs: Any, mask: Array | None) -> tuple[dict[str, Array], Array | None, bool]:
        arrays, is_batch = {}, False
        for name, path, space in self._leaves:
            value = leaf_value(obs, path, space)
            if name == MASK_KEY:
                mask = value
                continue
            spec = self.spec.observation[name]
            is_batch = value.ndim > len(spec.shape)
            if value.shape[int(is_batch) :] != spec.shape:
                raise ValueError(f"the observation {name} has shape {value.shape}; {spec.shape} or [N, ...] is needed")
            arrays[name] = (value if is_batch else value[None]).astype(spec.dtype, copy=False)
        if mask is not None:
            mask = np.asarray(mask, bool).reshape(-1, self.spec.action.num_logits)
        return arrays, mask, is_batch


def load_policy(path: str | Path | None = None, *, network: Any = None) -> LoadedPolicy:
    """The policy of a run, a checkpoint, or (without a path) the newest run.

    Args:
        network: the `nn.Module` that was trained, where it was the user's own: files never name code.

    Raises:
        CheckpointError: missing, damaged, newer than this Millrace, or of another network.
    """
    checkpoint = find_checkpoint(path)
    record, arrays = checkpoint.read_policy()
    index = [(name, tuple(shape)) for name, shape in record["weights_index"]]
    net = Config().replace({"net": record["net"]}, where=str(checkpoint.path)).net
    maker = ActorMaker(SlotSpec.from_json(record["spec"]), net, index, record["normalize_observation"], network)
    try:
        weights = np.concatenate([arrays[name].reshape(-1).astype(np.float32) for name, _ in index])
        actor = maker.make()
        actor.load(weights)
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint.path} does not fit its network ({error}); a network of your own is passed as network=..."
        ) from None
    return LoadedPolicy(record, actor, checkpoint.path)
