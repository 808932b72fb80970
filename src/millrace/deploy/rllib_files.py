"""What RLlib's files say, as far as acting needs it. Nothing in them runs, and nothing of Ray's is needed."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from millrace.config import EnvConfig
from millrace.deploy.inert_pickle import Inert, path_of, read_pickle
from millrace.deploy.record import MAX_OBSERVATION_BYTES, PolicyRecord
from millrace.envs.spaces import space_from_json
from millrace.errors import CheckpointError
from millrace.types import Array

CLASS_FILE = "class_and_ctor_args.pkl"
MODULE_STATES = ("module_state.pkl", "module_state.pt")
RECORD_KEY = "millrace"
"""Where an environment of Millrace's has its description among its arguments."""
POLICY_STATE = "policy_state.pkl"
DEFAULT_ID = "default_policy"
VERSION_FILES = ("rllib_checkpoint.json", "metadata.json")


class RefusedError(Exception):
    """What RLlib does between environment and network, and Millrace does not; says what."""


def ray_version(directory: Path) -> str:
    """Of the Ray that wrote a directory, or a word for not knowing."""
    for name in VERSION_FILES:
        try:
            return str(json.loads((directory / name).read_text(encoding="utf-8"))["ray_version"])[:40]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return "an unknown version"


def only(places: list[Path], where: Path) -> Path:
    """The place of the one policy that acts: the only one, or RLlib's default.

    Raises:
        RefusedError: there are several, or none.
    """
    by_id = {place.name: place for place in places}
    if DEFAULT_ID in by_id or len(by_id) == 1:
        return by_id.get(DEFAULT_ID, places[0])
    names = ", ".join(str(place) for place in places)
    raise RefusedError(f"it has no policy in {where}" if not places else f"it has several policies, name one: {names}")


def constructed(directory: Path) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Class, arguments and keyword arguments of a component that RLlib saved.

    Raises:
        CheckpointError: the file is missing or none of that kind.
    """
    path = directory / CLASS_FILE
    try:
        data = read_pickle(path)
        args, kwargs = data["ctor_args_and_kwargs"]
        return path_of(data["class"]), tuple(args), dict(kwargs)
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path} does not say how its component was made") from None


def arrays_of(module: Path) -> dict[str, Array]:
    """The named arrays of a module's state.

    Raises:
        CheckpointError: missing, or something else.
    """
    path = next((path for name in MODULE_STATES if (path := module / name).exists()), module / MODULE_STATES[0])
    if not path.exists() and path.with_suffix(".msgpack").exists():
        raise CheckpointError(f"the state in {module} is msgpack, which is not read; save it with use_msgpack=False")
    state = read_pickle(path)
    if not isinstance(state, dict) or not all(isinstance(x, np.ndarray) for x in state.values()) or not state:
        raise CheckpointError(f"{path} does not hold the arrays of a torch module")
    return {str(name): array for name, array in state.items()}


def env_of(config: Any) -> EnvConfig:
    """The environment that an algorithm's settings name, with those of its arguments that are plain values.

    A name is never one by which code would be imported.
    """
    get = config.get if isinstance(config, Inert | dict) else lambda name: None
    env, kwargs = get("env"), get("env_config")
    name = env if isinstance(env, str) else path_of(env)
    plain = {str(key): value for key, value in kwargs.items() if _is_plain(value)} if isinstance(kwargs, dict) else {}
    return EnvConfig(id=name.replace(":", ".") or "unknown", kwargs=plain)


def record_of(config: Any, where: str) -> PolicyRecord | None:
    """The environment's description, where it was one of Millrace's.

    Raises:
        CheckpointError: it is damaged.
    """
    given = config.get("env_config") if isinstance(config, Inert | dict) else None
    data = given.get(RECORD_KEY) if isinstance(given, dict) else None
    return PolicyRecord.from_json(data, where) if isinstance(data, dict) else None


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return isinstance(value, bool | int | float | str)


def settings_of(config: Any) -> dict[str, Any]:
    """A model's settings: a dictionary, or RLlib's dataclass of them."""
    state = config.state if isinstance(config, Inert) else config
    return dict(state) if isinstance(state, Mapping) else {}


# Spaces ------------------------------------------------------------------------------------------------------


def space_of(pickled: Any) -> gym.Space[Any]:
    """A pickled space, made anew from its plain values.

    Raises:
        RefusedError: a kind that Millrace has no form for.
    """
    try:
        return space_from_json(_pickled_space(pickled))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RefusedError(f"a space of it cannot be read ({type(error).__name__}: {error})") from None


def _pickled_space(pickled: Any) -> dict[str, Any]:
    path = path_of(pickled)
    kind = path.rpartition(".")[2]
    if not path.startswith(("gymnasium.spaces.", "gym.spaces.")):
        raise RefusedError(f"a space of it is a {path or type(pickled).__name__}")
    get = pickled.get
    if kind in ("Dict", "Tuple"):
        parts = get("spaces")
        if kind == "Dict":
            return {"type": kind, "spaces": {str(key): _pickled_space(part) for key, part in parts.items()}}
        return {"type": kind, "spaces": list(map(_pickled_space, parts))}
    if kind == "Box":
        return _box(get("low"), get("high"), get("dtype"))
    if kind == "Discrete":
        return {"type": kind, "n": int(get("n")), "start": int(get("start", 0))}
    if kind == "MultiDiscrete":
        return _multi_discrete(get("nvec"), get("start"))
    if kind == "MultiBinary":
        return {"type": kind, "shape": [int(size) for size in get("_shape")]}
    raise RefusedError(f"a space of it is a {kind}")


def _box(low: Array, high: Array, dtype: Any) -> dict[str, Any]:
    bounds = {"low": _texts(low), "high": _texts(high)}
    return {"type": "Box", "shape": list(low.shape), "dtype": np.dtype(dtype).name, **bounds}


def _texts(bound: Array) -> list[str]:
    return [repr(float(x)) for x in bound.ravel()]


def _multi_discrete(nvec: Array, start: Array | None) -> dict[str, Any]:
    return {"type": "MultiDiscrete", "nvec": nvec.tolist(), "start": (nvec * 0 if start is None else start).tolist()}


def space_of_dict(data: Mapping[str, Any]) -> gym.Space[Any]:
    """A space as RLlib's older policies write it: as a dictionary, arrays as text.

    Raises:
        RefusedError: a kind that Millrace has no form for.
    """
    try:
        return space_from_json(_written_space(data))
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedError(f"a space of it cannot be read ({type(error).__name__}: {error})") from None


def _written_space(data: Mapping[str, Any]) -> dict[str, Any]:
    kind = data["space"]
    if isinstance(kind, Mapping):
        return _written_space(kind)
    if kind == "box":
        return _box(array_of_text(data["low"]), array_of_text(data["high"]), data["dtype"])
    if kind == "discrete":
        return {"type": "Discrete", "n": int(data["n"]), "start": int(data.get("start", 0))}
    if kind == "multi-discrete":
        return _multi_discrete(array_of_text(data["nvec"]), None)
    if kind == "dict":
        return {"type": "Dict", "spaces": {key: _written_space(part) for key, part in data["spaces"].items()}}
    raise RefusedError(f"a space of it is a {kind}")


def array_of_text(text: str) -> Array:
    """An array that RLlib wrote as compressed text.

    Raises:
        ValueError: it is none, or far too large.
    """
    packed = zlib.decompressobj()
    content = packed.decompress(base64.b64decode(text), MAX_OBSERVATION_BYTES)
    if packed.unconsumed_tail:
        raise ValueError("an array is too large")
    return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))


def is_plain_box(space: gym.Space[Any]) -> bool:
    """Whether moments of single numbers can be kept of it."""
    return isinstance(space, spaces.Box) and np.dtype(space.dtype).kind == "f"
