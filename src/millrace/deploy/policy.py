"""A trained policy from a file: no worker, no environment, no code from the file; dense ones need no torch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from millrace.checkpoints.sealed import brief
from millrace.deploy.archive import SUFFIX, PolicyArchive
from millrace.deploy.onnx_policy import ONNX_SUFFIX, OnnxPolicy
from millrace.deploy.record import PolicyRecord
from millrace.deploy.rllib_checkpoint import RllibCheckpoint, find_rllib
from millrace.envs.spaces import MASK_KEY, action_converter, leaf_value, leaves
from millrace.errors import CheckpointError, ConfigError
from millrace.nets.actor import Actor, ActorMaker
from millrace.nets.memory import Memory
from millrace.ops.sampling import best_actions, sample_actions
from millrace.rundir import find_checkpoint, newest_run
from millrace.types import Array


class PolicyFile(Protocol):
    """Where a policy lies: a checkpoint, an archive, or an ONNX file."""

    @property
    def path(self) -> Path: ...

    def verify(self, part: str = "") -> dict[str, Any]:
        """Compare what lies there with its digests and return the manifest.

        Raises:
            CheckpointError: missing, damaged, or of a newer format.
        """

    def read_policy(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """The policy's description and its named arrays, in today's form.

        Raises:
            CheckpointError: as `verify`.
        """


class LoadedPolicy:
    """Acts on raw observations, one or a batch, and gives what `env.step` wants.

    Attributes:
        has_memory: whether it also needs what it has seen before: pass `state=policy.new_state()` then.
    """

    def __init__(self, record: PolicyRecord, actor: Actor, path: Path) -> None:
        self.checkpoint = path
        self.record = record
        self.env, self.spec = record.env, record.spec
        self.actor = actor
        self._leaves = leaves(record.observation_space)
        self.to_env = action_converter(record.action_space)
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
        arrays, mask, is_batch = self.arrays(obs, action_mask)
        params, _ = self.forward(arrays, state)
        columns = self.choose(params, mask, deterministic)
        actions = [self.to_env(row) for row in columns]
        return actions if is_batch else actions[0]

    def value(self, obs: Any, state: Memory | None = None) -> Array:
        """The value estimates [N] of one observation or a batch; `state` as in `act`, updated too."""
        return self.forward(self.arrays(obs, None)[0], state)[1]

    def forward(self, arrays: dict[str, Array], state: Memory | None) -> tuple[Array, Array]:
        """Distribution parameters [N, P] and values [N] for what `arrays` gives; `state` is updated.

        Raises:
            ValueError: a policy with memory without a state, or a state of other slots.
        """
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

    def choose(self, params: Array, mask: Array | None, deterministic: bool) -> Array:
        """Action columns [N, A] from parameters [N, P]; `to_env` makes of one row what `env.step` wants."""
        spec = self.spec.action
        if deterministic:
            return best_actions(spec, params, mask)
        action, log_prob = np.empty((len(params), spec.num_columns), spec.dtype), np.empty(len(params), np.float32)
        sample_actions(spec, params, mask, self._rng, action, log_prob)
        return action

    def arrays(self, obs: Any, mask: Array | None) -> tuple[dict[str, Array], Array | None, bool]:
        """An observation as the network takes it [N, ...], by key; its action mask [N, M]; whether it is a batch.

        Raises:
            ValueError: a shape that does not fit the observation space.
        """
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


def load_policy(path: str | Path | None = None, *, network: Any = None, trust: bool = False) -> LoadedPolicy:
    """The policy of a run, a checkpoint, an exported file, or (without a path) the newest run.

    Args:
        network: the `nn.Module` that was trained, where it was the user's own: files never name code.
        trust: whether it may be one of RLlib's checkpoints, which are pickles.

    Raises:
        CheckpointError: missing, damaged, newer than this Millrace, or of another network.
    """
    file = find_policy(path, trust)
    data, arrays = file.read_policy()
    if isinstance(file, RllibCheckpoint):
        network = file.network if network is None else network
        if file.policy.note:
            warnings.warn(file.policy.note, stacklevel=2)
    record = PolicyRecord.from_json(data, str(file.path))
    if isinstance(file, OnnxPolicy):
        return LoadedPolicy(record, file.make_actor(record.spec), file.path)
    return LoadedPolicy(record, make_actor(record, arrays, network, str(file.path)), file.path)


def find_policy(path: str | Path | None = None, trust: bool = False) -> PolicyFile:
    """What a path stands for: a run's newest whole checkpoint, a checkpoint, or an exported file.

    Args:
        trust: whether it may be one of RLlib's checkpoints.

    Raises:
        CheckpointError: there is nothing of the kind, or it is RLlib's and `trust` was not given.
    """
    path = path or newest_run()
    rllib = find_rllib(path)
    if rllib is not None:
        if not trust:
            raise CheckpointError(
                f"{rllib.path} is RLlib's, whose checkpoints are pickles: files that can run any code when they are "
                "loaded. Networks of RLlib's own kinds are read without running any of it; other modules are loaded by "
                "RLlib, as code. If you know where it comes from: --trust, in Python trust=True"
            )
        return rllib
    if Path(path).is_file():
        where = Path(path)
        if where.suffix not in (SUFFIX, ONNX_SUFFIX):
            raise CheckpointError(
                f"{where} is no policy: exported ones end in {SUFFIX} or {ONNX_SUFFIX}, checkpoints are directories"
            )
        return PolicyArchive(where) if where.suffix == SUFFIX else OnnxPolicy(where)
    return find_checkpoint(path)


def make_actor(record: PolicyRecord, arrays: Mapping[str, Array], network: Any, where: str) -> Actor:
    """The network with its weights.

    Raises:
        CheckpointError: names or shapes differ from what the network has.
    """
    try:
        actor = ActorMaker(record.spec, record.net, record.normalize_observation, network).make()
        load_arrays(actor, arrays)
    except (KeyError, RuntimeError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"{where} does not fit its network ({brief(error)}); a network of your own is passed as network=..."
        ) from None
    return actor


def load_arrays(actor: Actor, arrays: Mapping[str, Array]) -> None:
    """Give an actor its weights by name.

    Raises:
        KeyError, ValueError: a name is missing, or a shape differs.
    """
    for name, shape in actor.index:
        if arrays[name].shape != tuple(shape):
            raise ValueError(f"{name} is of shape {list(arrays[name].shape)}, not {list(shape)}")
    actor.load(np.concatenate([arrays[name].reshape(-1).astype(np.float32) for name, _ in actor.index]))
