"""The `auto` values of the settings, from the environment and the machine. What comes out is saved with the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym

from millrace import system
from millrace.collect.collector import EnvRows
from millrace.config import CollectConfig, Config, PPOConfig
from millrace.envs.game_slots import GameSlots
from millrace.envs.make import EnvMaker
from millrace.envs.protocol import SlotEnv
from millrace.envs.vector_slots import VectorSlots
from millrace.errors import ConfigError
from millrace.nets.inputs import image_keys
from millrace.types import RolloutLayout, SlotSpec


@dataclass(frozen=True)
class Probe:
    """What one look at the environment told."""

    spec: SlotSpec
    spaces: tuple[gym.Space[Any], gym.Space[Any]]
    same_step_reset: bool
    is_native: bool
    exactness: str


def probe_env(maker: EnvMaker, options: Sequence[Mapping[str, Any]] = ()) -> Probe:
    """Make one copy, look, and close it; compiled games compile here, before workers start.

    Args:
        options: that will come up in training: each is tried, so that none fails in the middle of the night.
    """
    env = maker.make(1, seed=0)
    try:
        _try_options(env, [stage for stage in options if stage])
        is_native = isinstance(env, GameSlots | VectorSlots)
        if isinstance(env, GameSlots):
            _compile(env)
        return Probe(env.spec, env.spaces, env.same_step_reset, is_native, env.exactness)
    finally:
        env.close()


def _try_options(env: SlotEnv, stages: Sequence[Mapping[str, Any]]) -> None:
    layout = RolloutLayout(env.spec, 1, 1)
    for options in stages:
        env.set_options(options)
        env.reset(EnvRows(layout.allocate(), layout).rows[0])


def _compile(env: GameSlots) -> None:
    layout = RolloutLayout(env.spec, 1, env.num_slots)
    rollout = layout.allocate()
    rows = EnvRows(rollout, layout).rows
    env.reset(rows[0])
    env.step(rollout.action[0], rows[1])


def resolve(config: Config, probe: Probe) -> Config:
    """The settings with every auto value filled in.

    Raises:
        ConfigError: settings that contradict each other.
    """
    config = replace(config, collect=_collect(config, probe))
    config = replace(config, ppo=_ppo(config, probe), device=_device(config, probe))
    collect, ppo = config.collect, config.ppo
    batch = batch_size_rows(config)
    if batch % ppo.minibatch_size:
        near = max(size for size in range(1, min(ppo.minibatch_size, batch) + 1) if batch % size == 0)
        raise ConfigError(
            f"ppo.minibatch_size={ppo.minibatch_size} does not divide the batch of {batch} rows "
            f"({collect.workers} workers x {collect.envs_per_worker} slots x {collect.rollout_steps} steps); try {near}"
        )
    return config


def batch_size_rows(config: Config) -> int:
    """Rows of one update: workers x slots x steps."""
    return config.collect.workers * config.collect.envs_per_worker * config.collect.rollout_steps


def _collect(config: Config, probe: Probe) -> CollectConfig:
    collect, cores = config.collect, system.available_cores()
    backend = collect.backend
    if backend == "auto":
        backend = "serial" if cores == 1 and collect.workers <= 1 else "processes"
    # One core is the learner's.
    workers = collect.workers or (1 if backend == "serial" else max(1, cores - 1))
    # Many slots are cheap where neither the game nor the network costs much.
    is_wide = probe.is_native and not image_keys(probe.spec, config.net)
    envs = collect.envs_per_worker or (64 if is_wide else 8)
    steps = collect.rollout_steps or (32 if is_wide else 128)
    lag = collect.max_policy_lag if collect.max_policy_lag >= 0 else (0 if backend == "serial" else 1)
    return replace(
        collect, backend=backend, workers=workers, envs_per_worker=envs, rollout_steps=steps, max_policy_lag=lag
    )


def _ppo(config: Config, probe: Probe) -> PPOConfig:
    ppo, batch = config.ppo, batch_size_rows(config)
    threads = ppo.threads
    if not threads and not image_keys(probe.spec, config.net):
        threads = 1  # without convolutions the pieces are too small to share, and another program stalls both
    if not threads:
        overlapping = config.collect.backend == "processes" and config.collect.max_policy_lag > 0
        # Two even where a worker wants one of two cores: waiting threads yield theirs (`system.yield_while_waiting`).
        cores = system.available_cores()
        threads = max(min(2, cores), cores - config.collect.workers) if overlapping else cores
    if config.net.memory != "none":
        return _sequence_minibatches(config, replace(ppo, threads=threads))
    # Ours: an eighth held 500 on CartPole with four seeds of four, a quarter with three (benchmarks/README.md).
    wanted = max(1, batch // (ppo.minibatches or 8))
    minibatch = ppo.minibatch_size or max(size for size in range(1, wanted + 1) if batch % size == 0)
    if ppo.minibatches and batch % ppo.minibatches:
        raise ConfigError(f"ppo.minibatches={ppo.minibatches} does not divide the batch of {batch} rows; try 4")
    return replace(ppo, threads=threads, minibatch_size=minibatch, minibatches=0)


def _sequence_minibatches(config: Config, ppo: PPOConfig) -> PPOConfig:
    """Minibatches of whole sequences: some slots, all of their steps."""
    steps = config.collect.rollout_steps
    slots = config.collect.workers * config.collect.envs_per_worker
    if ppo.minibatch_size:
        if ppo.minibatch_size % steps:
            raise ConfigError(
                f"ppo.minibatch_size={ppo.minibatch_size} must be a multiple of collect.rollout_steps={steps}: with "
                f"net.memory={config.net.memory} minibatches split slots and never time; try {steps}"
            )
        return ppo
    wanted = max(1, slots // (ppo.minibatches or 4))
    per_minibatch = max(size for size in range(1, wanted + 1) if slots % size == 0)
    if ppo.minibatches and slots != per_minibatch * ppo.minibatches:
        raise ConfigError(
            f"ppo.minibatches={ppo.minibatches} does not divide the {slots} slots, as it must with recurrence; "
            f"try {slots // per_minibatch}"
        )
    return replace(ppo, minibatch_size=per_minibatch * steps, minibatches=0)


def _device(config: Config, probe: Probe) -> str:
    if config.device != "auto":
        return config.device
    if not image_keys(probe.spec, config.net):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
