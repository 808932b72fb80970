"""The choices of a run in words, for its first lines on the screen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from millrace.buffer.slab import Slab
from millrace.config import Config
from millrace.resolve import ANY_LAG, batch_size_rows

if TYPE_CHECKING:
    from millrace.run import Run


def describe_run(run: Run) -> list[str]:
    """Sizes and the choices that were made, a line each."""
    config = run.config
    collect, setup = config.collect, run.source.pool.setup
    lines = [
        f"run       {run.directory.path}",
        f"collect   {collect.backend}, {collect.workers} x {collect.envs_per_worker} slots x "
        f"{collect.rollout_steps} steps, {describe_lag(config)}",
        *([f"ray       {run.ray.describe()}"] if run.ray is not None else []),
        f"act       {describe_inference(config, setup.actor_maker.needs_torch)}",
        *([describe_replay(config, Slab.nbytes(setup.layout, setup.num_rollouts))] if config.replay.is_on else []),
        f"learn     {batch_size_rows(config):,} rows an update, {config.ppo.epochs} epochs of minibatches of "
        f"{config.ppo.minibatch_size}, {config.ppo.threads} threads, {config.device}",
        f"correct   {describe_correction(config)}",
    ]
    if run.probe.exactness not in ("state", "replay"):
        lines.append(f"resume    begins new episodes: {run.probe.exactness}")
    return lines


def describe_lag(config: Config) -> str:
    """How old acting policies may be."""
    collect = config.collect
    age = "of any age" if collect.max_policy_lag == ANY_LAG else f"lag {collect.max_policy_lag}"
    exactly = " exactly" if collect.deterministic else ""
    every = f", new weights every {collect.publish_every_updates} updates" if collect.publish_every_updates > 1 else ""
    return f"{age}{exactly}{every}"


def describe_inference(config: Config, needs_torch: bool) -> str:
    """Where actions come from, and why."""
    collect = config.collect
    library = "torch" if needs_torch else "NumPy"
    if collect.inference == "local":
        copies = "here" if collect.backend == "serial" else "in each worker"
        return f"in {library}, {copies}" + (", which repeats exactly" if needs_torch and _is_exact(config) else "")
    threads = collect.inference_threads
    place = config.device if config.device != "cpu" else f"{threads} thread{'s' * (threads > 1)}"
    halves = ", a half of each one's slots at a time" if collect.double_buffering else ""
    why = "so that workers need no torch; " if needs_torch else ""
    return (
        f"in {library}, central, in one process ({place}) for all {collect.workers} workers{halves} "
        f"({why}--collect.inference)"
    )


def _is_exact(config: Config) -> bool:
    return config.collect.max_policy_lag == 0 or config.collect.deterministic


def describe_replay(config: Config, nbytes: int) -> str:
    """What the buffer holds and how often it is learned from."""
    replay = config.replay
    ratio = replay.samples_per_insert
    often = "as often as the learner can" if math.isinf(ratio) else f"{ratio:g} times on average"
    return (
        f"replay    {replay.sampler}, {replay.capacity_items:,} {replay.item}s ({nbytes / 2**20:,.0f} MiB), the first "
        f"drawn once {replay.min_size_items:,} are held, each drawn {often} and learned from "
        f"{config.ppo.epochs} times a draw"
    )


def describe_correction(config: Config) -> str:
    """What is done about rows of another policy than the present one, and why."""
    ppo = config.ppo
    why = "replay" if config.replay.is_on else f"lag {config.collect.max_policy_lag}"
    why += ", exploration tiers" if config.collect.exploration_tiers else ""
    choices = f"{ppo.targets} targets, {ppo.objective} objective, {ppo.values}'s values"
    return f"{choices} ({why}; --ppo.targets, --ppo.objective)"
