"""Torch policies that RLlib wrote before it had RLModules: `algorithm_state.pkl` and `policies/ID/policy_state.pkl`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from millrace.deploy.inert_pickle import path_of, read_pickle
from millrace.deploy.rllib_files import POLICY_STATE, RefusedError, env_of, is_plain_box, only, space_of_dict
from millrace.deploy.rllib_network import Filter, RllibNetwork, RllibPolicy, filter_of, layers_under
from millrace.types import Array

OLD_CLASSES = ("PPOTorchPolicy", "APPOTorchPolicy", "ImpalaTorchPolicy", "A2CTorchPolicy", "A3CTorchPolicy")


def read_older(path: Path) -> RllibPolicy:
    """A torch policy of the API stack before RLModules."""
    algorithm = path if (path / "policies").is_dir() else path.parent.parent
    if (path / "policies").is_dir():
        path = only(sorted(place.parent for place in path.glob(f"policies/*/{POLICY_STATE}")), path)
    state = read_pickle(path / POLICY_STATE)
    try:
        spec, arrays = state["policy_spec"], state["weights"]
        config = spec["config"]
        kind = spec["policy_class"] if isinstance(spec["policy_class"], str) else path_of(spec["policy_class"])
        network = _older_network(kind, spec, arrays, config, _older_filter(algorithm, path.name, config))
    except (KeyError, TypeError, AttributeError) as error:
        raise RefusedError(f"its policy's state is of another form ({type(error).__name__}: {error})") from None
    record = network.record(env_of(config), None)
    return RllibPolicy(record, network.arrays(record, False))


def _older_network(
    kind: str, spec: Mapping[str, Any], arrays: Mapping[str, Array], config: Any, seen: Filter | None
) -> RllibNetwork:
    model = config.get("model")
    if kind.rpartition(".")[2] not in OLD_CLASSES:
        raise RefusedError(
            f"its policy is a {kind}; of that API stack, torch policies of PPO, APPO, IMPALA and A2C are loaded"
        )
    for name in ("custom_model", "use_lstm", "use_attention", "no_final_linear", "custom_preprocessor"):
        if model.get(name):
            raise RefusedError(f"its model has {name}={model[name]!r}, which Millrace has no form for")
    hidden = layers_under(arrays, "_hidden_layers.")
    if not hidden or not all(name.startswith(("_hidden", "_logits", "_value", "_append")) for name in arrays):
        raise RefusedError("its network is not RLlib's dense one")
    observation = spec["observation_space"]
    original = space_of_dict(observation.get("original_space", observation))
    if seen is not None and not is_plain_box(original):
        raise RefusedError("its observations are normalised, and are not one array of floating-point numbers")
    critic = layers_under(arrays, "_value_branch_separate.")
    return RllibNetwork(
        original,
        space_of_dict(spec["action_space"]),
        actor=hidden,
        critic=critic or hidden,
        policy_head=_single(arrays, "_logits._model."),
        value_head=_single(arrays, "_value_branch._model."),
        activation=str(model.get("fcnet_activation", "tanh")),
        shared=not critic,
        log_std=arrays.get("_append_free_log_std.log_std"),
        log_std_limit=float(model.get("log_std_clip_param", math.inf)),
        observation_filter=seen,
        unsquashes=bool(config.get("normalize_actions", True)),
    )


def _single(arrays: Mapping[str, Array], prefix: str) -> tuple[Array, Array]:
    (layer,) = layers_under(arrays, prefix)
    return layer


def _older_filter(algorithm: Path, policy_id: str, config: Any) -> Filter | None:
    if config.get("observation_filter", "NoFilter") == "NoFilter":
        return None
    path = algorithm / "algorithm_state.pkl"
    if config["observation_filter"] != "MeanStdFilter" or not path.exists():
        raise RefusedError(f"its observations pass {config['observation_filter']}, whose state is not in {path}")
    worker = read_pickle(path)["worker"]
    seen = worker["filters"][policy_id]
    names = {"clip_by_value": "clip", "de_mean_to_zero": "demean", "de_std_to_one": "destd"}
    return filter_of(seen.state["running_stats"].state, {name: seen.state[older] for name, older in names.items()})
