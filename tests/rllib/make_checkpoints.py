"""Writes checkpoints.tar.xz: checkpoints of RLlib, and what its own modules make of some observations.

    python tests/rllib/make_checkpoints.py [NAME ...]      with ray[rllib], from the root of the repository

Only the files that acting needs are kept. `expected.npz` beside each holds observations, the inputs of the action's
distribution, values, and the most probable actions as the environment would get them.
"""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import ray
import torch
import tree
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import FlattenObservations, MeanStdFilter, PrevActionsPrevRewards
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule
from ray.rllib.utils.numpy import flatten_inputs_to_1d_tensor
from ray.rllib.utils.spaces.space_utils import get_base_struct_from_space, unsquash_action

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
os.environ["PYTHONPATH"] = str(HERE)

import own_classes as own  # noqa: E402 - found beside this file

ROWS = 16
KEPT = (
    "class_and_ctor_args.pkl",
    "rllib_checkpoint.json",
    "learner_group/meta",
    "learner_group/learner/meta",
    "env_runner/env_",
    "env_runner/module_",
    "policies/",
)
KEPT_BELOW = "learner_group/learner/rl_module/"


def small(config=None):
    """One tiny update, with a learning rate at which it is seen."""
    sizes = {"train_batch_size": 64, "minibatch_size": 32, "num_epochs": 1, "lr": 0.01}
    config = config or PPOConfig()
    return config.env_runners(num_env_runners=0, num_envs_per_env_runner=2).training(**sizes).debugging(seed=0)


def net(config, **settings):
    return config.rl_module(model_config=DefaultModelConfig(**{"fcnet_hiddens": [8, 6], **settings}))


def older(config, **model):
    config = config.api_stack(enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False)
    return config.training(model={"fcnet_hiddens": [8, 6], **model})


def through(config, *pieces):
    """With pieces between environment and module."""
    return config.env_runners(env_to_module_connector=lambda *_, **__: [piece() for piece in pieces])


def configs():
    masking = RLModuleSpec(module_class=ActionMaskingTorchRLModule, model_config={"fcnet_hiddens": [8]})
    two = MultiRLModuleSpec(rl_module_specs={name: RLModuleSpec() for name in ("left", "right")})
    cartpole, pendulum = small().environment("CartPole-v1"), small().environment("Pendulum-v1")
    yield "discrete", net(cartpole.copy())
    yield "apart", net(cartpole.copy(), vf_share_layers=False, fcnet_activation="relu")
    yield "filtered", net(through(pendulum.copy(), MeanStdFilter))
    yield (
        "free",
        net(
            through(small().environment(own.Numbers), lambda: MeanStdFilter(clip_by_value=np.inf)),
            free_log_std=True,
            head_fcnet_hiddens=[5],
            head_fcnet_activation="tanh",
        ),
    )
    yield "masked", small().environment(own.Masked).rl_module(rl_module_spec=masking)
    yield "lstm", net(cartpole.copy(), use_lstm=True, lstm_cell_size=5, max_seq_len=4, vf_share_layers=False)
    yield "flat", net(through(small().environment(own.Parts), FlattenObservations))
    appo = small(APPOConfig()).env_runners(rollout_fragment_length=16).learners(num_learners=0)
    yield "appo", net(appo.environment("CartPole-v1"))
    yield (
        "several",
        small()
        .environment(own.Two)
        .multi_agent(policies={"left", "right"}, policy_mapping_fn=lambda agent, *_, **__: agent)
        .rl_module(rl_module_spec=two, model_config=DefaultModelConfig(fcnet_hiddens=[4])),
    )
    yield "own", cartpole.copy().rl_module(rl_module_spec=RLModuleSpec(module_class=own.OwnModule))
    yield "pictures", net(small().environment(own.Pictures), conv_filters=[[4, 3, 2], [4, 3, 2]])
    yield "looking_back", net(through(cartpole.copy(), PrevActionsPrevRewards, FlattenObservations))
    yield "older", older(cartpole.copy())
    yield (
        "older_filtered",
        older(pendulum.copy(), free_log_std=True, vf_share_layers=True).env_runners(observation_filter="MeanStdFilter"),
    )
    yield "older_lstm", older(cartpole.copy(), use_lstm=True, lstm_cell_size=5, max_seq_len=4)


def expected(algo, saved: Path, name: str) -> dict[str, np.ndarray]:
    """Observations by flat name, and what RLlib makes of them."""
    if name.startswith("older"):
        return expected_older(algo)
    module_id = "right" if name == "several" else "default_policy"
    module = RLModule.from_checkpoint(saved / "learner_group/learner/rl_module" / module_id)
    space, action_space = spaces_of(algo, module, module_id)
    space.seed(1)
    rows = [space.sample() for _ in range(ROWS)]
    rows = [clean(row) for row in rows]
    seen = [as_seen(algo, row, space) for row in rows]
    batch = tree.map_structure(lambda *parts: torch.from_numpy(np.stack(parts).astype(np.float32)), *seen)
    with torch.no_grad():
        params, value = run_lstm(module, batch) if name == "lstm" else run(module, batch)
    return {**named(rows), **outputs(params, value, action_space)}


def spaces_of(algo, module, module_id):
    if module_id != "default_policy":
        return module.observation_space, module.action_space
    env = algo.env_runner.env
    return env.single_observation_space, env.single_action_space


def clean(row):
    """Masks of 0 and 1; and CartPole's velocities have no bounds: the samples are very large."""
    if isinstance(row, dict) and "action_mask" in row:
        row["action_mask"] = np.maximum(row["action_mask"].round(), [1, 0, 0]).astype(np.float32)
    return tree.map_structure(lambda x: np.clip(x, -50, 50) if np.asarray(x).dtype.kind == "f" else x, row)


def as_seen(algo, row, space):
    """What RLlib's pieces make of an observation."""
    for piece in getattr(algo.env_runner, "_env_to_module", None) or algo.env_runner.env_to_module:
        if type(piece).__name__ == "MeanStdFilter":
            row = piece._filters[None](row, update=False)
        if "Flatten" in type(piece).__name__:
            row = flatten_inputs_to_1d_tensor(row, get_base_struct_from_space(space), batch_axis=False)
    return row


def run(module, batch):
    outputs = module.forward_inference({"obs": tree.map_structure(torch.clone, batch)})
    values = module.compute_values({"obs": tree.map_structure(torch.clone, batch)})
    return outputs["action_dist_inputs"].numpy(), values.numpy()


def run_lstm(module, batch):
    """The rows as one episode."""
    state = tree.map_structure(lambda x: torch.as_tensor(x)[None], module.get_initial_state())
    params, values = [], []
    for row in batch:
        inputs = {"obs": row[None, None], "state_in": state}
        values.append(module.compute_values(dict(inputs)).numpy().ravel())
        outputs = module.forward_inference(dict(inputs))
        state = outputs["state_out"]
        params.append(outputs["action_dist_inputs"].numpy()[0])
    return np.concatenate(params), np.concatenate(values)


def expected_older(algo) -> dict[str, np.ndarray]:
    policy, worker = algo.get_policy(), algo.env_runner
    space = policy.observation_space
    space.seed(1)
    rows = [clean(space.sample()) for _ in range(ROWS)]
    seen = np.stack([worker.filters["default_policy"](row, update=False) for row in rows]).astype(np.float32)
    if policy.config["model"]["use_lstm"]:
        return named(rows)
    _, _, extra = policy.compute_actions(seen, explore=False)
    value = policy.model.value_function().detach().numpy()
    return {**named(rows), **outputs(extra["action_dist_inputs"], value, policy.action_space)}


def named(rows):
    """The arrays of the observations by key; `obs` where there is one alone."""
    if not isinstance(rows[0], dict):
        return {"observation/obs": np.stack(rows)}
    return {f"observation/{key}": np.stack([row[key] for row in rows]) for key in rows[0]}


def outputs(params, value, space):
    found = {"params": params, "value": value}
    if isinstance(space, gym.spaces.Box):
        mean = params[:, : params.shape[1] // 2]
        found["action"] = np.stack([unsquash_action(row, space) for row in mean])
    return found


def keep(name: str, target: Path, config) -> None:
    algo = config.build_algo() if hasattr(config, "build_algo") else config.build()
    for _ in range(2):
        algo.train()
    with tempfile.TemporaryDirectory() as whole:
        algo.save_to_path(whole) if not name.startswith("older") else algo.save(whole)
        for path in sorted(Path(whole).rglob("*")):
            inside = path.relative_to(whole).as_posix()
            is_state = inside == "algorithm_state.pkl" and name.startswith("older")
            if path.is_file() and (inside.startswith((*KEPT, KEPT_BELOW)) or is_state):
                (target / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / inside)
    if name == "looking_back":
        return
    np.savez(target / "expected.npz", **expected(algo, target, name))
    algo.stop()


def main(names: list[str]) -> None:
    """Adds to what is in the archive already; a name twice is an error."""
    version = "" if ray.__version__ == "2.60.0" else f"_{ray.__version__}"
    target = HERE / "checkpoints.tar.xz"
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as made:
        if target.exists():
            with tarfile.open(target) as archive:
                archive.extractall(made, filter="data")
        for name, config in configs():
            if not names or name in names:
                (Path(made) / (name + version)).mkdir()
                keep(name, Path(made) / (name + version), config)
                print(name + version, flush=True)
        with tarfile.open(target, "w:xz") as archive:
            for path in sorted(Path(made).rglob("*")):
                if path.is_file():
                    archive.add(path, path.relative_to(made).as_posix(), filter=anonymous)
    ray.shutdown()


def anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """A file of nobody's and no time, so that archives compare."""
    info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, "", ""
    return info


if __name__ == "__main__":
    main(sys.argv[1:])
