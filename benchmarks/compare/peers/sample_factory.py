"""Sample Factory: all in one process (serial), or collecting in two processes beside the learner (async)."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import torch
from sample_factory.algo.runners.runner import AlgoObserver, Runner
from sample_factory.algo.utils.context import global_model_factory
from sample_factory.algo.utils.misc import ExperimentStatus
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.model.encoder import Encoder
from sample_factory.train import make_runner
from torch import Tensor

from benchmarks import child
from benchmarks.compare.networks import MapBody
from benchmarks.compare.peer import Figures, Job, Meter, main
from benchmarks.envs import MapEnv, make_pong

EPOCH_MINIBATCHES = 4
COMMON: dict[str, Any] = {
    "device": "cpu",
    "rollout": 128,
    "num_batches_per_epoch": EPOCH_MINIBATCHES,
    "num_epochs": 4,
    "use_rnn": False,
    "normalize_input": False,
    "normalize_returns": False,
    "log_to_file": False,
    "restart_behavior": "overwrite",
}
SERIAL: dict[str, Any] = {"serial_mode": True, "async_rl": False, "num_workers": 1, "worker_num_splits": 1}
ASYNC: dict[str, Any] = {"serial_mode": False, "async_rl": True, "num_workers": 2, "worker_num_splits": 2}
CARTPOLE: dict[str, Any] = {
    "batch_size": 2048,
    "encoder_mlp_layers": (64, 64),
    "nonlinearity": "tanh",
    "actor_critic_share_weights": False,
}
PONG: dict[str, Any] = {
    "batch_size": 256,
    "encoder_conv_architecture": "convnet_atari",
    "encoder_conv_mlp_layers": (512,),
    "nonlinearity": "relu",
    "obs_scale": 255.0,
}
MAPS: dict[str, Any] = {"batch_size": 256}


class MapEncoder(Encoder):  # type: ignore[misc, unused-ignore]  # checked without Sample Factory
    """The body for maps and vectors."""

    def __init__(self, settings: Any, observation_space: Any) -> None:
        super().__init__(settings)
        self._body = MapBody()

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        return self._body(**observation)

    def get_out_size(self) -> int:
        return MapBody.num_features


class MeterUpdates(AlgoObserver):  # type: ignore[misc, unused-ignore]  # checked without Sample Factory
    """Tells the meter of each update."""

    def __init__(self, meter: Meter, rows: int) -> None:
        self._meter = meter
        self._rows = rows

    def on_training_step(self, runner: Runner, training_iteration_since_resume: int) -> None:
        if self._meter.update_done(training_iteration_since_resume * self._rows):
            runner.cfg.train_for_env_steps = -1  # the runner looks at it next


def make_cartpole(*_: Any, **__: Any) -> gymnasium.Env[Any, Any]:
    """CartPole-v1 without wrappers that only check."""
    return gymnasium.make("CartPole-v1", disable_env_checker=True)


def make_pong_env(*_: Any, **__: Any) -> gymnasium.Env[Any, Any]:
    """As Sample Factory calls it."""
    return make_pong()


def make_map_env(*_: Any, **__: Any) -> gymnasium.Env[Any, Any]:
    """As Sample Factory calls it."""
    return MapEnv()


def train(job: Job, env: str, placement: dict[str, Any], copies: int, settings: dict[str, Any]) -> Figures:
    """`copies` environments in each worker, until measured for long enough."""
    torch.manual_seed(job.seed)
    register_env("cartpole", make_cartpole)
    register_env("pong", make_pong_env)
    register_env("maps", make_map_env)
    if env == "maps":
        global_model_factory().register_encoder_factory(MapEncoder)
    everything = {**COMMON, **placement, **settings, "num_envs_per_worker": copies, "seed": job.seed}
    arguments = [f"--env={env}", f"--train_dir={child.scratch()}", *_command_line(everything)]
    _, runner = make_runner(parse_full_cfg(parse_sf_args(arguments)[0], arguments))
    meter = Meter(job.seconds)
    runner.register_observer(MeterUpdates(meter, settings["batch_size"] * EPOCH_MINIBATCHES))
    status = runner.init()
    if status == ExperimentStatus.SUCCESS:
        status = runner.run()
    if status != ExperimentStatus.SUCCESS:
        raise RuntimeError(f"Sample Factory ended with status {status}")
    return meter.figures()


def _command_line(settings: dict[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in settings.items():
        words += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return words


if __name__ == "__main__":
    cartpole = partial(train, env="cartpole", placement=ASYNC, copies=64, settings=CARTPOLE)
    pong = partial(train, env="pong", settings=PONG)
    maps = partial(train, env="maps", settings=MAPS)
    main(
        {
            "cartpole-throughput": {"async": cartpole},
            "pong": {
                "serial": partial(pong, placement=SERIAL, copies=8),
                "async": partial(pong, placement=ASYNC, copies=4),
            },
            "dict": {
                "serial": partial(maps, placement=SERIAL, copies=8),
                "async": partial(maps, placement=ASYNC, copies=4),
            },
        },
        packages=("sample-factory", "torch", "gymnasium", "ale-py", "numpy"),
    )
