"""The `auto` values of the settings, from the environment and the machine. What comes out is saved with the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym

from millrace import system
from millrace.buffer.rate_limiter import checked, smallest_error
from millrace.collect.collector import EnvRows
from millrace.config import CollectConfig, Config, PPOConfig, ReplayConfig
from millrace.envs.game_slots import GameSlots
from millrace.envs.make import EnvMaker
from millrace.envs.protocol import SlotEnv
from millrace.envs.vector_slots import VectorSlots
from millrace.errors import ConfigError
from millrace.nets.actor import ActorMaker
from millrace.nets.inputs import image_keys
from millrace.types import RolloutLayout, SlotSpec

MOST_LAG_UNCORRECTED = 1
"""Up to here plain GAE and the clipped ratio hold their own (docs/staleness.md)."""
WORKERS_FOR_CENTRAL = 2
"""From here one policy for all was quicker than one each, if it needs torch (benchmarks/README.md)."""
ANY_LAG = 1_000_000
"""Replayed rows may be of any age: what is watched is how far the policy has moved since."""


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


def resolve(config: Config, probe: Probe, network: Any = None) -> Config:
    """The settings with every auto value filled in.

    Args:
        network: a user's own.

    Raises:
        ConfigError: settings that contradict each other.
    """
    config = replace(config, collect=_collect(config, probe), device=_device(config, probe))
    config = replace(config, collect=_inference(config, ActorMaker(probe.spec, config.net, network=network)))
    if config.replay.is_on:
        config = replace(config, replay=resolve_replay(config))
    _refuse_contradictions(config)
    config = replace(config, ppo=_ppo(config, probe))
    config = replace(config, ppo=_correction(config))
    ppo, batch = config.ppo, batch_size_rows(config)
    if batch % ppo.minibatch_size:
        near = max(size for size in range(1, min(ppo.minibatch_size, batch) + 1) if batch % size == 0)
        raise ConfigError(
            f"ppo.minibatch_size={ppo.minibatch_size} does not divide the batch of {batch} rows "
            f"({batch_in_words(config)}); try {near}"
        )
    return config


def batch_size_columns(config: Config) -> int:
    """Columns side by side in one update: a slot's rollout each, or a single step."""
    return config.replay.batch_size_items or config.collect.workers * config.collect.envs_per_worker


def batch_size_rows(config: Config) -> int:
    """Rows of one update: columns x steps."""
    return batch_size_columns(config) * (1 if config.replay.item == "step" else config.collect.rollout_steps)


def batch_in_words(config: Config) -> str:
    """What the rows of one update are made of."""
    collect, replay = config.collect, config.replay
    if not replay.is_on:
        return f"{collect.workers} workers x {collect.envs_per_worker} slots x {collect.rollout_steps} steps"
    if replay.item == "step":
        return f"{replay.batch_size_items} steps drawn"
    return f"{replay.batch_size_items} columns drawn x {collect.rollout_steps} steps"


def items_per_rollout(config: Config) -> int:
    """Replay items that come with one rollout of a worker."""
    collect = config.collect
    return collect.envs_per_worker * (collect.rollout_steps if config.replay.item == "step" else 1)


def resolve_replay(config: Config) -> ReplayConfig:
    """Sizes of the buffer in items, the capacity in whole rollouts.

    Raises:
        ConfigError: draws and inserts could come to wait for each other.
    """
    replay, collect = config.replay, config.collect
    is_step, per_rollout = replay.item == "step", items_per_rollout(config)
    batch = replay.batch_size_items or (256 if is_step else collect.workers * collect.envs_per_worker)
    wanted = replay.capacity_items or (100_000 if is_step else 10 * batch)
    capacity = -(-wanted // per_rollout) * per_rollout
    min_size = replay.min_size_items or batch
    error = replay.error_items or smallest_error(replay.samples_per_insert, batch, per_rollout)
    checked(replay.samples_per_insert, min_size, error, capacity=capacity, batch_size=batch, insert_size=per_rollout)
    return replace(replay, batch_size_items=batch, capacity_items=capacity, min_size_items=min_size, error_items=error)


def _refuse_contradictions(config: Config) -> None:
    """Settings that are each right and do not go together."""
    collect, replay = config.collect, config.replay
    ahead = collect.publish_every_updates - 1
    has_memory = config.net.memory != "none"
    for is_wrong, sentence in (
        (
            replay.is_on and collect.deterministic,
            "collect.deterministic=true wants each rollout used once, in turn; leave the [replay] settings out",
        ),
        (
            collect.inference == "central" and collect.deterministic,
            "collect.deterministic=true wants the same batches every time, and central inference batches whatever is "
            'there; use collect.inference="local"',
        ),
        (
            collect.inference == "central" and collect.backend == "serial",
            'collect.inference="central" is one process for many workers; use collect.backend="processes", or '
            'collect.inference="local"',
        ),
        (
            collect.publish_every_s and not replay.is_on,
            f"collect.publish_every_s={collect.publish_every_s} is for replay, where no lag bounds a policy's age; "
            "use collect.publish_every_updates",
        ),
        (
            not replay.is_on and ahead > collect.max_policy_lag,
            f"collect.publish_every_updates={collect.publish_every_updates} makes acting policies {ahead} updates old; "
            f"use collect.max_policy_lag={ahead} or more",
        ),
        (
            replay.is_on and collect.max_policy_lag == 0,
            "collect.max_policy_lag=0 forgets at each update what replay would learn from again; leave it out, or -1",
        ),
        (
            replay.item == "step" and has_memory,
            f'net.memory={config.net.memory} learns from whole sequences; use replay.item="column"',
        ),
        (
            replay.is_on and config.rnd.coef,
            f"rnd.coef={config.rnd.coef} gives novelty as it is when a step is learned from, which replay makes stale; "
            "use rnd.coef=0 or leave the [replay] settings out",
        ),
        (
            replay.when_full == "block" and math.isinf(replay.samples_per_insert),
            'replay.when_full="block" waits until items were drawn often enough, and replay.samples_per_insert=inf '
            'never is; use "overwrite"',
        ),
        (
            replay.burn_in_steps and not has_memory,
            f"replay.burn_in_steps={replay.burn_in_steps} brings a recurrent state up to date; set net.memory, or 0",
        ),
        (
            replay.burn_in_steps >= collect.rollout_steps,
            f"replay.burn_in_steps={replay.burn_in_steps} leaves nothing of collect.rollout_steps="
            f"{collect.rollout_steps} to learn from",
        ),
        (
            (collect.scaling != "off" or bool(collect.workers_schedule))
            and not replay.is_on
            and (collect.max_policy_lag == 0 or collect.deterministic),
            "a number of workers that changes wants batches that may come from any of them; use "
            "collect.max_policy_lag=1 or more, without collect.deterministic",
        ),
        (
            collect.scaling == "machine" and collect.backend == "ray",
            'collect.scaling="machine" goes by the cores of this machine, and Ray by those of the cluster; give '
            "collect.workers, of which as many collect as find a place, or collect.workers_schedule",
        ),
        (
            bool(collect.exploration_tiers) and config.ppo.objective not in ("auto", "decoupled"),
            f"collect.exploration_tiers act otherwise than the policy that learns, which ppo.objective="
            f'"{config.ppo.objective}" does not correct for; use "decoupled"',
        ),
    ):
        if is_wrong:
            raise ConfigError(sentence)


def _correction(config: Config) -> PPOConfig:
    """What corrects for the difference between the acting and the learning policy, from lag and reuse."""
    ppo, collect, replay = config.ppo, config.collect, config.replay
    is_stale = replay.is_on or collect.max_policy_lag > MOST_LAG_UNCORRECTED
    targets = ppo.targets if ppo.targets != "auto" else "vtrace" if is_stale else "gae"
    # Clipping around the acting policy bounds how far an update goes from it: the decoupled objective has no such bound
    # and falls long before (docs/staleness.md), but tiers act otherwise than the policy that is to stay near.
    objective = ppo.objective if ppo.objective != "auto" else "decoupled" if collect.exploration_tiers else "clip"
    wants_present = is_stale or targets != "gae"
    values = ppo.values if ppo.values != "auto" else "learner" if wants_present else "actor"
    return replace(ppo, targets=targets, objective=objective, values=values)


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
    lag = collect.max_policy_lag
    if lag < 0:
        overlapping = 0 if backend == "serial" else 1
        lag = ANY_LAG if config.replay.is_on else max(overlapping, collect.publish_every_updates - 1)
    return replace(
        collect, backend=backend, workers=workers, envs_per_worker=envs, rollout_steps=steps, max_policy_lag=lag
    )


def _inference(config: Config, actor_maker: ActorMaker) -> CollectConfig:
    """Where actions are computed, and with how many threads.

    One process keeps up with the learner, which makes a dozen such passes over each row. An answer depends on what is
    batched with it in its last digits, so that lock-step, which promises to repeat itself bit for bit, stays local.
    """
    collect = config.collect
    is_free = collect.backend in ("processes", "ray") and collect.max_policy_lag > 0 and not collect.deterministic
    pays = config.device != "cpu" or collect.workers >= WORKERS_FOR_CENTRAL
    inference = collect.inference
    if inference == "auto":
        inference = "central" if is_free and actor_maker.needs_torch and pays else "local"
    threads = collect.inference_threads or max(1, system.available_cores() // 4)
    return replace(collect, inference=inference, inference_threads=threads)


def _ppo(config: Config, probe: Probe) -> PPOConfig:
    ppo, batch = config.ppo, batch_size_rows(config)
    threads = ppo.threads
    if not threads and not image_keys(probe.spec, config.net):
        threads = 1  # without convolutions the pieces are too small to share, and another program stalls both
    if not threads:
        overlapping = config.collect.backend != "serial" and config.collect.max_policy_lag > 0
        # Two even where a worker wants one of two cores: waiting threads yield theirs (`system.yield_while_waiting`).
        cores = system.available_cores()
        threads = max(min(2, cores), cores - config.collect.workers) if overlapping else cores
    if config.net.memory != "none":
        return _sequence_minibatches(config, replace(ppo, threads=threads))
    # Ours: an eighth held 500 on CartPole with four seeds of four, a quarter with three (benchmarks/README.md).
    wanted = max(1, batch // (ppo.minibatches or (1 if config.replay.item == "step" else 8)))
    minibatch = ppo.minibatch_size or max(size for size in range(1, wanted + 1) if batch % size == 0)
    if ppo.minibatches and batch % ppo.minibatches:
        raise ConfigError(f"ppo.minibatches={ppo.minibatches} does not divide the batch of {batch} rows; try 4")
    return replace(ppo, threads=threads, minibatch_size=minibatch, minibatches=0)


def _sequence_minibatches(config: Config, ppo: PPOConfig) -> PPOConfig:
    """Minibatches of whole sequences: some slots, all of their steps."""
    steps = config.collect.rollout_steps
    slots = batch_size_columns(config)
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


def usable_device(name: str) -> str:
    """The device itself, once it is known to be there.

    Raises:
        ConfigError: torch knows no such device, or cannot use it on this machine.
    """
    import torch

    try:
        torch.zeros(1, device=name)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device={name} cannot be used here: {reason}; `millrace doctor` tells what torch finds, device=cpu is "
            "always there"
        ) from error
    return name
