"""A policy on its way into memory, stage by stage. Runs in a process of its own: see `walk`."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import safetensors
import safetensors.numpy

from millrace.checkpoints.store import FORMAT_VERSION, MANIFEST, Checkpoint
from millrace.collect.collector import EnvRows
from millrace.config import Config, EnvConfig, NetConfig
from millrace.deploy.evaluate import random_choice
from millrace.doctor.findings import Finding
from millrace.envs.make import EnvMaker
from millrace.envs.spaces import MASK_KEY, action_converter, leaf_value, leaves, slot_spec, space_from_json, with_stack
from millrace.errors import CheckpointError, EnvError, MillraceError
from millrace.nets.actor import Actor, ActorMaker, WeightsIndex
from millrace.nets.memory import Memory
from millrace.ops.sampling import best_actions, sample_actions
from millrace.types import Array, RolloutLayout, SlotSpec

POLICY_FILES = ("policy.json", "policy.safetensors")
TRAINER_FILES = ("trainer.json", "trainer.safetensors")
SAMPLES = 32
ENV_STEPS = 16
EARLIER = "use an earlier checkpoint"
ACTS_ONLY = "it can act and not resume: optimiser, counters and episodes in progress are lost"
OWN_NETWORK = "pass it: millrace.load_policy(PATH, network=...); files never name code"


class StuckError(CheckpointError):
    """A stage found something that leaves nothing for the next ones to look at."""

    def __init__(self, what: str, remedy: str = EARLIER) -> None:
        super().__init__(what)
        self.remedy = remedy


class Loading:
    """Each stage looks at one thing and says what it found; what it read is there for the stages after it.

    Args:
        path: a checkpoint's directory.
        env: to make instead of the one that the policy was trained on; empty = that one.
    """

    def __init__(self, path: Path, env: str = "") -> None:
        self.path = path
        self.checkpoint = Checkpoint(path)
        self._env = env

    # What stages share, read when the first of them asks ------------------------------------------------------

    @functools.cached_property
    def manifest(self) -> dict[str, Any]:
        """Empty where there is none."""
        try:
            manifest: dict[str, Any] = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
            return manifest
        except FileNotFoundError:
            return {}

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """The policy's description. It is read without the manifest, which has had a stage of its own."""
        try:
            record: dict[str, Any] = json.loads((self.path / "policy.json").read_text(encoding="utf-8"))
            return record
        except (OSError, ValueError) as error:
            raise StuckError(f"{self.path / 'policy.json'} cannot be read: {error}") from None

    @functools.cached_property
    def arrays(self) -> dict[str, Array]:
        path = self.path / "policy.safetensors"
        try:
            arrays: dict[str, Array] = safetensors.numpy.load_file(path)
            return arrays
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise StuckError(f"{path} cannot be read: {error}") from None

    @functools.cached_property
    def spec(self) -> SlotSpec:
        return SlotSpec.from_json(self.record["spec"])

    @functools.cached_property
    def spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        return space_from_json(self.record["observation_space"]), space_from_json(self.record["action_space"])

    @functools.cached_property
    def index(self) -> WeightsIndex:
        return [(name, tuple(shape)) for name, shape in self.record["weights_index"]]

    @functools.cached_property
    def net(self) -> NetConfig:
        return Config().replace({"net": self.record["net"]}, where=str(self.path)).net

    @functools.cached_property
    def actor(self) -> Actor:
        """With the weights in it."""
        actor = self._actor_maker().make()
        actor.load(np.concatenate([self.arrays[name].reshape(-1).astype(np.float32) for name, _ in self.index]))
        return actor

    @functools.cached_property
    def is_builtin(self) -> bool:
        """Whether the weights have the names of a network of ours."""
        maker = self._actor_maker()
        if maker.needs_torch:
            from millrace.nets.policy import Policy

            policy = Policy(self.spec, self.net, self.record["normalize_observation"])
            return {name for name, _ in policy.weights_index()} == {name for name, _ in self.index}
        try:
            _forward_zeros(maker)
        except KeyError:
            return False
        except ValueError:
            return True  # names that fit, and shapes that do not
        return True

    def _actor_maker(self) -> ActorMaker:
        return ActorMaker(self.spec, self.net, self.index, self.record["normalize_observation"])

    # The stages -----------------------------------------------------------------------------------------------

    def files(self) -> Finding:
        """Is everything there that belongs to it?"""
        sizes = {path.name: path.stat().st_size for path in self.path.iterdir() if path.is_file()}
        lacking = [name for name in POLICY_FILES if not sizes.get(name)]
        if lacking:
            raise StuckError(f"{self.path} lacks {' and '.join(lacking)}, or they are empty")
        if self._lacks_trainer():
            return Finding("warning", "files", f"the trainer's are missing: {ACTS_ONLY}", self._begin_anew())
        return Finding("ok", "files", f"{len(sizes)}, {sum(sizes.values()) / 2**20:.1f} MB")

    def _lacks_trainer(self) -> bool:
        return not all((self.path / name).is_file() for name in TRAINER_FILES)

    def _begin_anew(self) -> str:
        return f"resume an earlier checkpoint; `millrace eval {self.path}` plays this one"

    def verify_manifest(self) -> Finding:
        """Are the files those that were written?"""
        if not (self.path / MANIFEST).exists():
            _ = self.record, self.arrays
            what = "manifest.json is missing; the policy's files are whole as far as they themselves tell"
            return Finding("error", "manifest", what, f"copy it back, or {EARLIER}: nothing loads without", exit_code=4)
        self.checkpoint.verify("policy")
        if self._lacks_trainer():
            return Finding("ok", "manifest", "the digests of what is there are right")
        try:
            self.checkpoint.verify("trainer")
        except CheckpointError as error:
            return Finding("warning", "manifest", f"{error}: {ACTS_ONLY}", self._begin_anew())
        return Finding("ok", "manifest", "every digest is right")

    def format(self) -> Finding:
        """Is it of a format that this version reads?"""
        if not self.manifest:
            return Finding("note", "format", "not known without a manifest")
        version, writer = self.manifest["format_version"], self.manifest["millrace_version"]
        if version > FORMAT_VERSION:
            raise StuckError(
                f"{self.path} has format {version}, this Millrace reads up to {FORMAT_VERSION}",
                f"install millrace {writer}, which wrote it, or a later one",
            )
        return Finding("ok", "format", f"{version}, written by millrace {writer}")

    def check_spaces(self) -> Finding:
        """Do the spaces and what was made of them belong together?"""
        described = slot_spec(*self.spaces, self.spec.has_action_mask)
        stack = max(array.stack for array in self.spec.observation.values())
        if (with_stack(described, stack) if stack > 1 else described) != self.spec:
            raise StuckError(f"{self.path / 'policy.json'} contradicts itself: its spaces are not those of its arrays")
        return Finding("ok", "spaces", f"{_inputs(self.spec)} to {_outputs(self.spec)}")

    def network(self) -> Finding:
        """Can the network be made, and does it fit the spaces?"""
        numbers = sum(math.prod(shape) for _, shape in self.index)
        if not self.is_builtin:
            what = f"the weights are of a network of the user's own ({numbers:,} numbers), which no file can bring"
            return Finding("warning", "network", what, OWN_NETWORK)
        maker = self._actor_maker()
        try:
            _forward_zeros(maker)
        except (ValueError, RuntimeError) as error:
            raise StuckError(f"the network that {self.path} describes does not fit its spaces: {error}") from None
        place = "torch" if maker.needs_torch else "NumPy"
        return Finding("ok", "network", f"built in, {numbers:,} numbers, inference in {place}")

    def weights(self) -> Finding:
        """Are the arrays those that the network wants, and are they numbers?"""
        for name, shape in self.index:
            if name not in self.arrays:
                raise StuckError(f"{self.path / 'policy.safetensors'} lacks {name}")
            found = self.arrays[name]
            if found.shape != shape:
                raise StuckError(f"{name} has the shape {list(found.shape)}, the network wants {list(shape)}")
            broken = found.size - int(np.isfinite(found).sum())
            if broken:
                raise StuckError(
                    f"{broken:,} of {found.size:,} numbers of {name} are not finite",
                    f"{EARLIER}; `skipped_steps` and `bad_values` in metrics.jsonl tell when it began",
                )
        return Finding("ok", "weights", f"{len(self.index)} arrays of the right shapes, all finite")

    def environment(self) -> Finding:
        """Can the environment be made, has it the policy's spaces, and does it step?"""
        config = EnvConfig(self._env) if self._env else Config().replace({"env": self.record["env"]}).env
        try:
            what = self._play(EnvMaker(config))
        except MillraceError as error:
            return self._without_env(str(error), error.exit_code)
        except (Exception, SystemExit) as error:  # whatever a game may raise
            return self._without_env(f"{config.id}: {type(error).__name__}: {error}", EnvError.exit_code)
        return Finding("ok", "environment", what)

    def _without_env(self, what: str, exit_code: int) -> Finding:
        return Finding("error", "environment", what, without_env(self.path), exit_code=exit_code)

    def _play(self, maker: EnvMaker) -> str:
        env = maker.make(1, seed=0)
        try:
            if (env.spec.observation, env.spec.action) != (self.spec.observation, self.spec.action):
                observation, action = env.spaces
                raise EnvError(f"{maker.name} has other spaces than the policy: {observation} to {action}")
            choose = random_choice(env.spec, seed=0)
            layout = RolloutLayout(env.spec, 1, 1, env.same_step_reset)
            rows = EnvRows(layout.allocate(), layout).rows
            env.reset(rows[0])
            row = rows[0]
            for _ in range(ENV_STEPS):
                env.step(choose(row.observation, row.action_mask, np.zeros(1, bool)), rows[1])
                row = rows[1]
        finally:
            env.close()
        return f"{maker.name} is made, has the policy's spaces, and steps"

    def inference(self) -> Finding:
        """Does it act on observations drawn from its space: finite figures, legal actions?"""
        if not self.is_builtin:
            return Finding("note", "inference", "left out: the network is the user's own", OWN_NETWORK)
        observation, mask = self._samples()
        memory = Memory(self.spec, self.actor.state_size, SAMPLES)
        params, value = self.actor.forward(memory.see(observation), memory.state)
        if not (np.isfinite(params).all() and np.isfinite(value).all()):
            raise StuckError("the policy gives figures that are not finite for observations of its space")
        self._check_actions(params, mask)
        return Finding("ok", "inference", f"{SAMPLES} sampled observations: finite figures, legal actions")

    def _samples(self) -> tuple[dict[str, Array], Array | None]:
        space, _ = self.spaces
        space.seed(0)
        samples = [space.sample() for _ in range(SAMPLES)]
        arrays = {
            name: np.stack([leaf_value(sample, path, leaf) for sample in samples])
            for name, path, leaf in leaves(space)
            if name != MASK_KEY
        }
        arrays = {name: array.astype(self.spec.observation[name].dtype) for name, array in arrays.items()}
        return arrays, self._masks() if self.spec.has_action_mask else None

    def _masks(self) -> Array:
        """[N, M] some actions forbidden, of each kind at least one allowed."""
        rng = np.random.default_rng(0)
        mask = rng.random((SAMPLES, self.spec.num_mask_bits)) < 0.5
        first = 0
        for num_actions in self.spec.action.nvec:
            mask[np.arange(SAMPLES), first + rng.integers(num_actions, size=SAMPLES)] = True
            first += num_actions
        return mask

    def _check_actions(self, params: Array, mask: Array | None) -> None:
        spec, (_, action_space) = self.spec.action, self.spaces
        drawn = np.empty((SAMPLES, spec.num_columns), spec.dtype)
        sample_actions(spec, params, mask, np.random.default_rng(0), drawn, np.empty(SAMPLES, np.float32))
        convert = action_converter(action_space)
        for columns in (*best_actions(spec, params, mask), *drawn):
            if not action_space.contains(convert(columns)):
                raise StuckError(f"the policy chose {convert(columns)!r}, which is not in {action_space}")
        if mask is not None and not all(_allowed(spec.nvec, row, bits) for row, bits in zip(drawn, mask, strict=True)):
            raise StuckError("the policy chose an action that its mask forbids")


STAGES: dict[str, Callable[[Loading], Finding]] = {
    "files": Loading.files,
    "manifest": Loading.verify_manifest,
    "format": Loading.format,
    "spaces": Loading.check_spaces,
    "network": Loading.network,
    "weights": Loading.weights,
    "environment": Loading.environment,
    "inference": Loading.inference,
}


def without_env(path: Path) -> str:
    """What can be done with a policy whose environment is not to be had."""
    return f"the policy needs it only to play: `millrace eval {path} --env ENV`; `millrace check-env ENV` looks closer"


def _inputs(spec: SlotSpec) -> str:
    return ", ".join(f"{name}: {array.dtype}{list(array.seen_shape)}" for name, array in spec.observation.items())


def _outputs(spec: SlotSpec) -> str:
    choices = [" x ".join(map(str, spec.action.nvec)) + " choices"] if spec.action.nvec else []
    numbers = [f"{spec.action.num_box} continuous"] if spec.action.num_box else []
    return " and ".join(choices + numbers) + (", masked" if spec.has_action_mask else "")


def _forward_zeros(maker: ActorMaker) -> None:
    """One step with weights of 0.

    Raises:
        KeyError, ValueError, RuntimeError: the weights are not such a network's.
    """
    actor = maker.make()
    actor.load(np.zeros(sum(math.prod(shape) for _, shape in maker.index), np.float32))
    memory = Memory(maker.spec, actor.state_size, 1)
    nothing = {key: np.zeros((1, *array.shape), array.dtype) for key, array in maker.spec.observation.items()}
    params, value = actor.forward(memory.see(nothing), memory.state)
    if params.shape != (1, maker.spec.action.num_params) or value.shape != (1,):
        raise ValueError(f"it gives {params.shape[1]} parameters, the actions want {maker.spec.action.num_params}")


def _allowed(nvec: tuple[int, ...], columns: Array, mask: Array) -> bool:
    first = np.cumsum((0, *nvec[:-1]))
    return bool(mask[first + columns[: len(nvec)].astype(np.int64)].all())
