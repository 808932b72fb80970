"""A policy on its way into memory, stage by stage. Runs in a process of its own: see `walk`."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from millrace.checkpoints.sealed import FORMAT_VERSION, MANIFEST
from millrace.collect.collector import EnvRows
from millrace.config import EnvConfig
from millrace.deploy.episodes import random_choice
from millrace.deploy.onnx_policy import OnnxPolicy
from millrace.deploy.policy import find_policy, make_actor
from millrace.deploy.record import PolicyRecord
from millrace.deploy.rllib_checkpoint import find_rllib
from millrace.doctor.findings import Finding
from millrace.envs.make import EnvMaker
from millrace.envs.spaces import MASK_KEY, action_converter, leaf_value, leaves
from millrace.errors import CheckpointError, EnvError, MillraceError, MissingExtraError
from millrace.nets.actor import Actor, ActorMaker
from millrace.nets.inputs import WeightsIndex
from millrace.nets.memory import Memory
from millrace.ops.sampling import best_actions, sample_actions
from millrace.types import Array, RolloutLayout, SlotSpec

POLICY_FILES = ("policy.json", "policy.safetensors")
TRAINER_FILES = ("trainer.json", "trainer.safetensors")
MAX_SAMPLES = 32
MAX_SAMPLED_NUMBERS = 4_000_000
ENV_STEPS = 16
EARLIER = "use an earlier checkpoint"
ANOTHER_COPY = "copy or export it again"
TRUSTED = "trusted"
ACTS_ONLY = "it can act and not resume: optimiser, counters and episodes in progress are lost"
OWN_NETWORK = "pass it: millrace.load_policy(PATH, network=...); files never name code"


class StuckError(CheckpointError):
    """A stage found something that leaves nothing for the next ones to look at."""


class Loading:
    """Each stage looks at one thing and says what it found; what it read is there for the stages after it.

    Args:
        path: a checkpoint's directory, or an exported policy.
        env: to make instead of the one that the policy was trained on; empty = that one.
        trust: whether it may be one of RLlib's checkpoints.
    """

    def __init__(self, path: Path, env: str = "", trust: bool = False) -> None:
        self.path = path
        self.is_rllib = find_rllib(path) is not None
        self.is_checkpoint = path.is_dir() and not self.is_rllib
        self._env, self._trust = env, trust

    @property
    def elsewhere(self) -> str:
        """What to do where this one is damaged."""
        return EARLIER if self.is_checkpoint else ANOTHER_COPY

    # What stages share, read when the first of them asks ------------------------------------------------------

    @functools.cached_property
    def file(self) -> Any:
        return find_policy(self.path, self._trust)

    @functools.cached_property
    def has_manifest(self) -> bool:
        return not self.is_checkpoint or (self.path / MANIFEST).exists()

    @functools.cached_property
    def parts(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """The policy's description and its arrays, by the manifest where there is one."""
        return self.file.read_policy() if self.has_manifest else self._bare_parts()

    def _bare_parts(self) -> tuple[dict[str, Any], dict[str, Array]]:
        text, arrays = (self.path / name for name in POLICY_FILES)
        try:
            return json.loads(text.read_text(encoding="utf-8")), safetensors.numpy.load_file(arrays)
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise StuckError(f"{MANIFEST} is missing, and the policy's files cannot be read: {error}") from None

    @functools.cached_property
    def record(self) -> PolicyRecord:
        return PolicyRecord.from_json(self.parts[0], str(self.path))

    @functools.cached_property
    def index(self) -> WeightsIndex:
        """What the weights of the network that is described consist of; nothing where a graph holds them."""
        return () if self._is_onnx else self._maker.make().index

    @property
    def _maker(self) -> ActorMaker:
        """Of what acts; RLlib's own module where Millrace has none like it."""
        record, network = self.record, getattr(self.file, "network", None)
        return ActorMaker(record.spec, record.net, record.normalize_observation, network)

    @functools.cached_property
    def is_builtin(self) -> bool:
        """Whether the weights have the names of a network of ours."""
        ours = {name for name, _ in self.index}
        return self._is_onnx or all(name in ours for name in self.parts[1] if name.startswith("network."))

    @functools.cached_property
    def actor(self) -> Actor:
        """With the weights in it."""
        if isinstance(self.file, OnnxPolicy):
            return self.file.make_actor(self.record.spec)
        return make_actor(self.record, self.parts[1], self._maker.network, str(self.path))

    @property
    def _is_onnx(self) -> bool:
        return isinstance(self.file, OnnxPolicy)

    # The stages -----------------------------------------------------------------------------------------------

    def files(self) -> Finding:
        """Is everything there that belongs to it?"""
        places = [path for path in self.path.rglob("*") if path.is_file()] if self.path.is_dir() else [self.path]
        sizes = {os.path.relpath(path, self.path): path.stat().st_size for path in places}
        lacking = [name for name in POLICY_FILES if self.is_checkpoint and not sizes.get(name)]
        if lacking:
            raise StuckError(f"{self.path} lacks {' and '.join(lacking)}, or they are empty")
        if self._lacks_trainer():
            return Finding("warning", "files", f"the trainer's are missing: {ACTS_ONLY}", self._act_only())
        return Finding("ok", "files", f"{len(sizes)}, {sum(sizes.values()) / 2**20:.1f} MB")

    def _lacks_trainer(self) -> bool:
        return self.is_checkpoint and not all((self.path / name).is_file() for name in TRAINER_FILES)

    def _act_only(self) -> str:
        return (
            f"resume an earlier checkpoint; `millrace eval {self.path}` plays this one, and `millrace train ENV "
            f"--init-from {self.path}` goes on from its weights"
        )

    def manifest(self) -> Finding:
        """Is there one, of a format that this version reads?"""
        if self.is_rllib:
            _ = self.parts
            what = "none: it is RLlib's, " + self.file.verify()["millrace_version"].removeprefix("RLlib ")
            return Finding("note", "manifest", what)
        if not self.has_manifest:
            _ = self.parts
            what = "manifest.json is missing; the policy's files are whole as far as they themselves tell"
            return Finding("error", "manifest", what, f"copy it back, or {EARLIER}: nothing loads without", exit_code=4)
        manifest = self.file.verify(MANIFEST) if self.is_checkpoint else self.file.verify()  # no part has that name
        version, writer = manifest["format_version"], manifest["millrace_version"]
        what = f"format {version}, written by millrace {writer}"
        if self.is_checkpoint and version != FORMAT_VERSION:
            return Finding("warning", "manifest", f"{what}, an earlier one: {ACTS_ONLY}", self._act_only())
        return Finding("ok", "manifest", what)

    def digests(self) -> Finding:
        """Are the files those that were written?"""
        if self.is_rllib or not self.has_manifest:
            return Finding("note", "digests", "not known without a manifest")
        if not self.is_checkpoint or self._lacks_trainer():
            _ = self.parts
            return Finding("ok", "digests", "right")
        self.file.verify("policy")
        try:
            self.file.verify("trainer")
        except CheckpointError as error:
            return Finding("warning", "digests", f"{_without(error, EARLIER)}: {ACTS_ONLY}", self._act_only())
        return Finding("ok", "digests", "right")

    def spaces(self) -> Finding:
        """Is the policy described, and does what it sees and does belong to its spaces?"""
        spec = self.record.spec
        return Finding("ok", "spaces", f"{_inputs(spec)} to {_outputs(spec)}")

    def network(self) -> Finding:
        """Can the network be made?"""
        if self._is_onnx:
            return Finding("ok", "network", "a graph, inference in ONNX Runtime")
        if not self.is_builtin:
            what = "the weights are of a network of the user's own, which no file can bring"
            return Finding("warning", "network", what, OWN_NETWORK)
        numbers = sum(math.prod(shape) for _, shape in self.index)
        kind = "RLlib's module" if self._maker.network is not None else "built in"
        place = "torch" if self._maker.needs_torch else "NumPy"
        return Finding("ok", "network", f"{kind}, {numbers:,} numbers, inference in {place}")

    def weights(self) -> Finding:
        """Are the arrays those that the network wants, and are they numbers?"""
        arrays = self.parts[1]
        if self._is_onnx:
            return Finding("ok", "weights", "inside the graph")
        for name, shape in self.index if self.is_builtin else ():
            if name not in arrays:
                raise StuckError(f"{self.path} lacks the weights {name}")
            if arrays[name].shape != tuple(shape):
                found, wanted = list(arrays[name].shape), list(shape)
                raise StuckError(f"{name} has the shape {found}, the network wants {wanted}")
        for name, array in arrays.items():
            broken = array.size - int(np.isfinite(array).sum())
            if broken:
                began = "`skipped_steps` and `bad_values` in metrics.jsonl tell when it began"
                raise StuckError(f"{broken:,} of {array.size:,} numbers of {name} are not finite; {began}")
        return Finding("ok", "weights", f"{len(arrays)} arrays, all finite")

    def environment(self) -> Finding:
        """Can the environment be made, has it the policy's spaces, and does it step?"""
        config = EnvConfig(self._env, frame_stack=self.record.env.frame_stack) if self._env else self.record.env
        if not self._env and not self.is_checkpoint and (":" in config.id or config.wrappers):
            what = f"left out: {config.id} or its wrappers are code, which is not run because a file names it"
            return Finding("note", "environment", what, "if you trust it: --env ENV")
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
            spec = self.record.spec
            if (env.spec.observation, env.spec.action) != (spec.observation, spec.action):
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
        observation = self._samples()
        count = len(next(iter(observation.values())))
        mask = _some_masks(self.record.spec, count) if self.record.spec.has_action_mask else None
        memory = Memory(self.record.spec, self.actor.state_size, count)
        params, value = self.actor.forward(memory.see(observation), memory.state)
        if not (np.isfinite(params).all() and np.isfinite(value).all()):
            raise StuckError("the policy gives figures that are not finite for observations of its space")
        self._check_actions(params, mask)
        return Finding("ok", "inference", f"{count} sampled observations: finite figures, legal actions")

    def _samples(self) -> dict[str, Array]:
        """[N, ...] observations, 32 where they are small."""
        space, spec = self.record.observation_space, self.record.spec
        numbers = sum(math.prod(array.seen_shape) for array in spec.observation.values())
        space.seed(0)
        samples = [space.sample() for _ in range(max(1, min(MAX_SAMPLES, MAX_SAMPLED_NUMBERS // max(numbers, 1))))]
        return {
            name: np.stack([leaf_value(sample, path, leaf) for sample in samples]).astype(spec.observation[name].dtype)
            for name, path, leaf in leaves(space)
            if name != MASK_KEY
        }

    def _check_actions(self, params: Array, mask: Array | None) -> None:
        spec, space = self.record.spec.action, self.record.action_space
        drawn = np.empty((len(params), spec.num_columns), spec.dtype)
        sample_actions(spec, params, mask, np.random.default_rng(0), drawn, np.empty(len(params), np.float32))
        convert = action_converter(space)
        for columns in (*best_actions(spec, params, mask), *drawn):
            if not space.contains(convert(columns)):
                raise StuckError(f"the policy chose {convert(columns)!r}, which is not in {space}")
        if mask is not None and not all(_allowed(spec.nvec, row, bits) for row, bits in zip(drawn, mask, strict=True)):
            raise StuckError("the policy chose an action that its mask forbids")


STAGES: dict[str, Callable[[Loading], Finding]] = {
    "files": Loading.files,
    "manifest": Loading.manifest,
    "digests": Loading.digests,
    "spaces": Loading.spaces,
    "network": Loading.network,
    "weights": Loading.weights,
    "environment": Loading.environment,
    "inference": Loading.inference,
}


def without_env(path: Path) -> str:
    """What can be done with a policy whose environment is not to be had."""
    return f"the policy needs it only to play: `millrace eval {path} --env ENV`; `millrace check-env ENV` looks closer"


def stuck(stage: str, error: Exception, elsewhere: str) -> Finding:
    """What ended a stage, as a finding."""
    if isinstance(error, MissingExtraError):
        what, _, remedy = str(error).partition(": ")
        return Finding("error", stage, what, remedy, exit_code=error.exit_code)
    if isinstance(error, MillraceError):
        return Finding("error", stage, _without(error, elsewhere), elsewhere, exit_code=error.exit_code)
    what = f"{type(error).__name__}: {error}"
    return Finding("error", stage, what, elsewhere, exit_code=CheckpointError.exit_code)


def _without(error: Exception, remedy: str) -> str:
    """The text of an error without what it says is to be done, which has a place of its own here."""
    return str(error).removesuffix(f"; {EARLIER}").removesuffix(f"; {remedy}")


def _inputs(spec: SlotSpec) -> str:
    return ", ".join(f"{name}: {array.dtype}{list(array.seen_shape)}" for name, array in spec.observation.items())


def _outputs(spec: SlotSpec) -> str:
    choices = [" x ".join(map(str, spec.action.nvec)) + " choices"] if spec.action.nvec else []
    numbers = [f"{spec.action.num_box} continuous"] if spec.action.num_box else []
    return " and ".join(choices + numbers) + (", masked" if spec.has_action_mask else "")


def _some_masks(spec: SlotSpec, count: int) -> Array:
    """[N, M] some actions forbidden, of each kind at least one allowed."""
    rng = np.random.default_rng(0)
    mask = rng.random((count, spec.num_mask_bits)) < 0.5
    first = 0
    for num_actions in spec.action.nvec:
        mask[np.arange(count), first + rng.integers(num_actions, size=count)] = True
        first += num_actions
    return mask


def _allowed(nvec: tuple[int, ...], columns: Array, mask: Array) -> bool:
    first = np.cumsum((0, *nvec[:-1]))
    return bool(mask[first + columns[: len(nvec)].astype(np.int64)].all())
