"""Policies out of RLlib's checkpoints: found, read and brought into Millrace's form without Ray.

The files are pickles, which can run anything when they are loaded as pickles are. Here they are only read
(`inert_pickle`); a module of another class than RLlib's own is the exception, see `rllib_module`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym

from millrace.checkpoints.sealed import brief, policy_files, seal
from millrace.checkpoints.store import PREFIX
from millrace.config import EnvConfig, NetConfig
from millrace.deploy import rllib_files
from millrace.deploy.inert_pickle import path_of, read_pickle
from millrace.deploy.record import PolicyRecord
from millrace.deploy.rllib_files import (
    POLICY_STATE,
    RefusedError,
    array_of_text,
    arrays_of,
    constructed,
    env_of,
    is_plain_box,
    only,
    record_of,
    settings_of,
    space_of,
)
from millrace.deploy.rllib_network import Filter, OtherNetworkError, RllibNetwork, RllibPolicy, filter_of, layers_under
from millrace.deploy.rllib_older import read_older
from millrace.envs.spaces import slot_spec
from millrace.errors import CheckpointError, MillraceError, MissingExtraError
from millrace.types import Array

MARKS = (rllib_files.CLASS_FILE, *rllib_files.VERSION_FILES, POLICY_STATE, "algorithm_state.pkl", "policies")
OWN_CLASSES = ("DefaultPPOTorchRLModule", "PPOTorchRLModule", "DefaultAPPOTorchRLModule", "APPOTorchRLModule")
MASKING_CLASS = "ActionMaskingTorchRLModule"
PASSED_THROUGH = (
    "AddObservationsFromEpisodesToBatch",
    "AddTimeDimToBatchAndZeroPad",
    "AddStatesFromEpisodesToBatch",
    "AgentToModuleMapping",
    "BatchIndividualItems",
    "NumpyToTensor",
    "GetActions",
    "TensorToNumpy",
    "UnBatchToIndividualItems",
    "ModuleToAgentUnmapping",
    "RemoveSingleTsTimeRankFromBatch",
    "ListifyDataForVectorEnv",
)
"""RLlib's default pieces between environment and module that change the form of things alone."""


@dataclass(frozen=True)
class RllibCheckpoint:
    """One policy of RLlib's on disk; the same methods as those of Millrace's own files.

    Attributes:
        path: of an algorithm, a learner group, a learner, its modules, one module, or an older policy.
    """

    path: Path

    @cached_property
    def policy(self) -> RllibPolicy:
        """The policy in Millrace's form.

        Raises:
            CheckpointError: damaged, or nothing that can be brought into it; says what and which Ray wrote it.
        """
        try:
            return _read(self.path)
        except (RefusedError, OtherNetworkError) as error:
            version = _version(self.path)
            raise CheckpointError(f"{self.path}, written by Ray {version}, is not loaded: {error}") from None
        except MillraceError:
            raise
        except Exception as error:  # whatever a hostile file provokes
            raise CheckpointError(f"{self.path} is not whole, or of another form ({brief(error)})") from None

    @property
    def network(self) -> Any:
        """The torch module to act through where it is not one of Millrace's; else None."""
        return self.policy.network

    def read_policy(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """The policy's description and its named arrays, in Millrace's form."""
        return self.policy.record.to_json(), self.policy.arrays

    def read_trainer(self) -> dict[str, Any]:
        """RLlib's optimiser and statistics are none of Millrace's.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(f"{self.path} is RLlib's, which keeps no moments of rewards")

    def verify(self, part: str = "") -> dict[str, Any]:
        """The manifest that the policy would have as one of Millrace's: RLlib's files have no digests to compare."""
        files = policy_files(*self.read_policy())
        name = self.path.name
        env_steps = int(name[len(PREFIX) :]) if name.startswith(PREFIX) and name[len(PREFIX) :].isdigit() else 0
        manifest: dict[str, Any] = json.loads(seal(files, env_steps, f"RLlib of Ray {_version(self.path)}"))
        return manifest


def find_rllib(path: str | Path | None) -> RllibCheckpoint | None:
    """What RLlib wrote at a path: one of its checkpoints, or the newest in a run; None where it is not RLlib's."""
    if not path or not Path(path).is_dir():
        return None
    where = Path(path)
    if (where / "config.toml").is_file():
        found = [
            step for step in where.glob(f"checkpoints/{PREFIX}*") if (step / rllib_files.VERSION_FILES[0]).is_file()
        ]
        return RllibCheckpoint(max(found)) if found else None
    is_ours = (where / "manifest.json").exists()
    return RllibCheckpoint(where) if not is_ours and any((where / mark).exists() for mark in MARKS) else None


def _read(path: Path) -> RllibPolicy:
    if (path / "policies").is_dir() or (path / POLICY_STATE).exists():
        return read_older(path)
    module = _module_directory(path)
    algorithm = next((place for place in (module, *list(module.parents)[:4]) if (place / "env_runner").is_dir()), None)
    config = _config_of(algorithm) if algorithm else None
    env, around = env_of(config), record_of(config, str(algorithm))
    pieces = _Pieces.of(algorithm) if algorithm else _Pieces()
    note = (
        ""
        if algorithm
        else (
            f"{module} is a module without its algorithm: that it was fed raw observations and that its actions are "
            "scaled to the action space, as RLlib does by default, is assumed"
        )
    )
    return dataclasses.replace(_translated(module, pieces, env, around), note=note)


def _config_of(algorithm: Path) -> Any:
    args = constructed(algorithm)[1]
    return args[0] if args else None


def _version(path: Path) -> str:
    places = (place for place in (path, *list(path.parents)[:4]))
    found = (rllib_files.ray_version(place) for place in places if any((place / mark).exists() for mark in MARKS))
    return next(found, "of an unknown version")


def _module_directory(path: Path) -> Path:
    """Down to the one module that acts.

    Raises:
        RefusedError: there are several, or none.
    """
    for step in ("learner_group", "learner", "rl_module"):
        path = path / step if (path / step).is_dir() else path
    modules = sorted(place.parent for place in path.glob(f"*/{rllib_files.CLASS_FILE}"))
    return only(modules, path) if modules else path


@dataclass(frozen=True)
class _Pieces:
    """What lies between the environment and the module.

    Attributes:
        spaces: of one agent of the environment; None where it has several.
        is_flat: whether observations are laid out as one vector.
        others: pieces that Millrace has no counterpart of.
    """

    spaces: tuple[gym.Space[Any], gym.Space[Any]] | None = None
    is_flat: bool = False
    observation_filter: Filter | None = None
    unsquashes: bool = True
    others: tuple[str, ...] = ()

    @staticmethod
    def of(algorithm: Path) -> _Pieces:
        runner = algorithm / "env_runner"
        pieces = _Pieces()
        _, (observation, action, *_), kwargs = _pipeline(runner / "env_to_module_connector")
        if path_of(action).rpartition(".")[2] not in ("Dict", "") and path_of(observation):
            pieces = dataclasses.replace(pieces, spaces=(space_of(observation), space_of(action)))
        for kind, _, settings in (
            *kwargs["connectors"],
            *_pipeline(runner / "module_to_env_connector")[2]["connectors"],
        ):
            pieces = pieces._with(path_of(kind), settings, runner / "env_to_module_connector")
        return pieces

    def _with(self, kind: str, settings: Mapping[str, Any], where: Path) -> _Pieces:
        name = kind.rpartition(".")[2]
        if kind.startswith("ray.rllib.connectors."):
            if name in PASSED_THROUGH:
                return self
            if name == "FlattenObservations" and not any(settings.get(key) for key in settings if "key" in key):
                return dataclasses.replace(self, is_flat=True)
            if name == "MeanStdFilter":
                return dataclasses.replace(self, observation_filter=_filter(where / name / "state.pkl"))
            if name == "NormalizeAndClipActions":
                return dataclasses.replace(self, unsquashes=bool(settings.get("normalize_actions", True)))
        return dataclasses.replace(self, others=(*self.others, name or "an unnamed one"))

    def checked(self) -> _Pieces:
        """The same.

        Raises:
            RefusedError: Millrace would not do what RLlib does.
        """
        if self.others:
            raise RefusedError(
                f"it has pieces between environment and network that Millrace has not: {', '.join(self.others)}"
            )
        if self.observation_filter is not None and (self.spaces is None or not is_plain_box(self.spaces[0])):
            raise RefusedError("its observations are normalised, and are not one array of floating-point numbers")
        return self


def _pipeline(directory: Path) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    kind, args, kwargs = constructed(directory)
    if len(args) < 2:
        args = (kwargs.get("input_observation_space"), kwargs.get("input_action_space"))
    return kind, args, {"connectors": (), **kwargs}


def _filter(path: Path) -> Filter:
    """Of one agent, from the state of RLlib's connector."""
    try:
        state = read_pickle(path)
        (moments,) = state.values()
        (running,) = moments["running_stats"]
        sums = {key: array_of_text(x) if isinstance(x, str) else x for key, x in running.items()}
        return filter_of(sums, moments)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise RefusedError(f"its observations are normalised, by moments that are not of one array: {path}") from None


def _translated(module: Path, pieces: _Pieces, env: EnvConfig, around: PolicyRecord | None) -> RllibPolicy:
    """The module as a network of Millrace's, or through RLlib where there is none like it."""
    kind, args, kwargs = constructed(module)
    names = ("observation_space", "action_space", "inference_only", "learner_only", "model_config", "catalog_class")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    found = pieces.spaces or (space_of(given["observation_space"]), space_of(given["action_space"]))
    pieces = dataclasses.replace(pieces, spaces=found).checked()
    arrays, settings = arrays_of(module), settings_of(given.get("model_config"))
    try:
        _check_class(kind, given)
        if any(part.startswith("encoder.") and ".cnn." in part for part in arrays):
            return _convolutional(arrays, settings, pieces, env, around)
        network = _network(settings, arrays, pieces, found)
        record = network.record(env, around)
        return RllibPolicy(record, network.arrays(record, around is not None))
    except OtherNetworkError as error:
        return _through_rllib(module, pieces, env, around, error)


def _check_class(kind: str, given: Mapping[str, Any]) -> None:
    """That it is one of RLlib's own, whose arrays tell all about it."""
    name = kind.rpartition(".")[2]
    if not kind.startswith("ray.rllib.") or name not in (*OWN_CLASSES, MASKING_CLASS, "IMPALATorchRLModule"):
        raise OtherNetworkError(f"its module is a {kind}, not one of RLlib's own for PPO")
    if given.get("catalog_class") is not None and path_of(given["catalog_class"]).rpartition(".")[2] != "PPOCatalog":
        raise OtherNetworkError(f"its module is built by {path_of(given['catalog_class'])}")


def _convolutional(
    arrays: Mapping[str, Array],
    settings: Mapping[str, Any],
    pieces: _Pieces,
    env: EnvConfig,
    around: PolicyRecord | None,
) -> RllibPolicy:
    """RLlib's network for one image, as a torch module of its own."""
    record = _described(pieces, env, around)
    images = list(record.spec.observation.values())
    if len(images) != 1 or record.spec.action.num_box or pieces.observation_filter is not None:
        raise OtherNetworkError("it has convolutions, beside other arrays, continuous actions or a filter")
    from millrace.deploy.rllib_convolutions import RllibConvolutions

    network = RllibConvolutions(arrays, settings, images[0], around is not None)
    numbers = {f"network.{name}": tensor.detach().numpy() for name, tensor in network.state_dict().items()}
    return RllibPolicy(dataclasses.replace(record, net=NetConfig(image="flat")), numbers, network)


def _described(pieces: _Pieces, env: EnvConfig, around: PolicyRecord | None) -> PolicyRecord:
    """The environment as the network's surroundings tell of it."""
    if around is not None:
        return around
    assert pieces.spaces is not None
    return PolicyRecord(env, slot_spec(*pieces.spaces, mask_in_info=False), *pieces.spaces, NetConfig())


def _network(
    settings: Mapping[str, Any], arrays: Mapping[str, Array], pieces: _Pieces, found: tuple[Any, Any]
) -> RllibNetwork:
    """A dense network, with an LSTM behind it or not."""
    shared = any(part.startswith("encoder.encoder.") for part in arrays)
    encoders = ["encoder.encoder."] if shared else ["encoder.actor_encoder.", "encoder.critic_encoder."]
    has_memory = any(".lstm." in part or ".gru." in part for part in arrays)
    heads = [layers_under(arrays, f"{head}.net.mlp.") for head in ("pi", "vf")]
    if (
        not heads[0]
        or not heads[1]
        or not all(any(part.startswith(encoder) for part in arrays) for encoder in encoders)
    ):
        raise RefusedError("it holds no value function; name the learner's module, not that of an environment runner")
    trunks = [layers_under(arrays, f"{encoder}{'tokenizer.' if has_memory else ''}net.mlp.") for encoder in encoders]
    activation = str(settings.get("fcnet_activation", "tanh"))
    if len(heads[0]) > 1:
        if has_memory or str(settings.get("head_fcnet_activation", "relu")) != activation:
            raise OtherNetworkError("its heads have layers of their own")
        shared, trunks = False, [trunks[0] + heads[0][:-1], trunks[-1] + heads[1][:-1]]
    return RllibNetwork(
        *found,
        actor=trunks[0],
        critic=trunks[-1],
        policy_head=heads[0][-1],
        value_head=heads[1][-1],
        activation=activation,
        shared=shared,
        memory=[_memory(arrays, encoder) for encoder in encoders] if has_memory else [],
        log_std=arrays.get("pi.log_std"),
        log_std_limit=float(settings.get("log_std_clip_param", math.inf)),
        observation_filter=pieces.observation_filter,
        unsquashes=pieces.unsquashes,
    )


def _memory(arrays: Mapping[str, Array], encoder: str) -> dict[str, Array]:
    prefix = f"{encoder}lstm."
    found = {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}
    if sorted(found) != ["bias_hh_l0", "bias_ih_l0", "weight_hh_l0", "weight_ih_l0"]:
        raise OtherNetworkError("its recurrence is not one LSTM layer")
    return found


def _through_rllib(
    module: Path, pieces: _Pieces, env: EnvConfig, around: PolicyRecord | None, reason: OtherNetworkError
) -> RllibPolicy:
    """Acts by RLlib's own code; the one way in which a pickle is loaded as such."""
    if pieces.is_flat or pieces.observation_filter is not None or pieces.spaces is None:
        raise reason
    from millrace.deploy.rllib_module import load_module

    record = _described(pieces, env, around)
    try:
        return RllibPolicy(*load_module(module, record, pieces.unsquashes, around is not None))
    except MissingExtraError as error:
        raise RefusedError(f"{reason}; {error}") from None
