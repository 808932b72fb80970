"""PufferLib: its trainer over its emulation of Gymnasium environments, stepped one after another in one process.

Its own compiled games are other games than these. It counts resets as steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import pufferlib
import pufferlib.vector
import torch
from pufferlib import pufferl
from pufferlib.emulation import GymnasiumPufferEnv
from pufferlib.pytorch import nativize_dtype, nativize_tensor
from torch import Tensor, nn

from benchmarks import child
from benchmarks.compare.networks import DenseNetwork, map_network, pong_network
from benchmarks.compare.peer import Figures, Job, Meter, main
from benchmarks.envs import MapEnv, make_pong

FOREVER = 1_000_000_000
STEPS = 128
SETTINGS: dict[str, Any] = {
    "env": "benchmark",
    "device": "cpu",
    "torch_deterministic": False,
    "cpu_offload": False,
    "precision": "float32",
    "compile": False,
    "use_rnn": False,
    "total_timesteps": FOREVER,
    "checkpoint_interval": FOREVER,
    "batch_size": "auto",
    "bptt_horizon": STEPS,
    "max_minibatch_size": 32768,
    "update_epochs": 4,
    "optimizer": "adam",
    "learning_rate": 2.5e-4,
    "anneal_lr": False,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_eps": 1e-5,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip_coef": 0.1,
    "vf_coef": 0.5,
    "vf_clip_coef": 0.1,
    "ent_coef": 0.01,
    "max_grad_norm": 0.5,
    "vtrace_rho_clip": 1.0,
    "vtrace_c_clip": 1.0,
    "prio_alpha": 0.0,
    "prio_beta0": 1.0,
}
"""Ordinary PPO: its prioritised replay of segments is switched off by an exponent of 0."""


class Policy(nn.Module):
    """A network as PufferLib calls it; observations of several arrays come as one row of bytes."""

    def __init__(self, network: nn.Module, envs: Any) -> None:
        super().__init__()
        self._network = network
        env = envs.driver_env
        self._dtype = nativize_dtype(env.emulated) if env.is_obs_emulated else None

    def forward(self, observation: Tensor, state: Any = None) -> tuple[Tensor, Tensor]:
        if self._dtype is None:
            return self._network(observation=observation)
        return self._network(**nativize_tensor(observation, self._dtype))

    forward_eval = forward


class Trainer(pufferl.PuffeRL):  # type: ignore[misc, unused-ignore]  # checked without PufferLib
    """Without the display, which nobody sees here."""

    def print_dashboard(self, *_: Any, **__: Any) -> None:
        pass


def train(
    job: Job, make_env: Callable[[], Any], make_network: Callable[[], nn.Module], copies: int, minibatch: int
) -> Figures:
    """Collect, learn, and again, until measured for long enough."""
    torch.set_num_threads(2)
    torch.manual_seed(job.seed)
    pufferl.ADVANTAGE_CUDA = False  # it asks whether there is a compiler for GPUs, not whether there is one
    meter = Meter(job.seconds)
    make_one = partial(GymnasiumPufferEnv, env_creator=make_env)
    envs = pufferlib.vector.make(make_one, num_envs=copies, backend=pufferlib.vector.Serial, seed=job.seed)
    settings = {**SETTINGS, "seed": job.seed, "minibatch_size": minibatch, "data_dir": str(child.scratch())}
    trainer = Trainer(settings, envs, Policy(make_network(), envs))
    done = False
    while not done:
        trainer.evaluate()
        trainer.train()
        done = meter.update_done(trainer.global_step)
    trainer.utilization.stop()
    envs.close()
    return meter.figures()


def make_cartpole() -> gymnasium.Env[Any, Any]:
    """CartPole-v1 without wrappers that only check."""
    return gymnasium.make("CartPole-v1", disable_env_checker=True)


if __name__ == "__main__":
    cartpole = partial(train, make_env=make_cartpole, make_network=DenseNetwork, copies=64, minibatch=2048)
    pong = partial(train, make_env=make_pong, make_network=pong_network, copies=8, minibatch=256)
    maps = partial(train, make_env=MapEnv, make_network=map_network, copies=8, minibatch=256)
    main(
        {"cartpole-throughput": {"serial": cartpole}, "pong": {"serial": pong}, "dict": {"serial": maps}},
        packages=("pufferlib", "torch", "gymnasium", "ale-py", "numpy"),
    )
