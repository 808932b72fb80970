"""Every setting of a run: one frozen, documented, self-checking dataclass per room.

Settings come from defaults, then a TOML file, then the command line or keyword arguments, each overruling the
one before. What is written back as TOML is complete and can be trained from again. `auto` values are marked
"0 = auto" or "empty = auto" and are resolved by `millrace.resolve` before anything starts.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from millrace.errors import ConfigError
from millrace.types import require

RECIPES = Path(__file__).parent / "recipes"
FAMILIES = {"ALE/": "atari"}
"""Recipes whose settings are the defaults of all environments whose ids begin so."""

SHORT_NAMES = {
    "total_env_steps": "total_env_steps",
    "seed": "seed",
    "device": "device",
    "run_dir": "run_dir",
    "backend": "collect.backend",
    "workers": "collect.workers",
    "envs_per_worker": "collect.envs_per_worker",
    "rollout_steps": "collect.rollout_steps",
    "max_policy_lag": "collect.max_policy_lag",
    "worker_nice": "collect.worker_nice",
    "max_episode_steps": "env.max_episode_steps",
    "curriculum": "curriculum",
    "imitate": "imitate.player",
    "engine": "engine",
}
"""Names without a dot for the settings that everyone touches, on the command line and as keyword arguments."""


@dataclass(frozen=True)
class EnvConfig:
    """The environment and how it is wrapped."""

    id: str = "CartPole-v1"
    """Gymnasium id (`CartPole-v1`), or `module:function` that makes an environment."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments for the environment's constructor."""
    wrappers: tuple[str, ...] = ()
    """Gymnasium wrappers, `module:Class`, applied in this order to each single environment."""
    max_episode_steps: int = 0
    """Truncate episodes after this many steps; 0 = what the environment says."""
    vectorization: Literal["auto", "native", "single"] = "auto"
    """`native` uses the game's own vector form, `single` one object per copy; auto takes native where there is one."""
    frame_stack: int = 0
    """The latest frames that the policy sees, each stored once; 0 = auto: 4 for Atari (`ALE/...`), else 1."""
    on_bad_value: Literal["count", "refuse"] = "count"
    """A missing or non-finite reward or observation ends that episode and is counted, or ends the run."""

    def __post_init__(self) -> None:
        require(bool(self.id), "env.id is empty; name an environment, for example CartPole-v1")
        require(self.frame_stack >= 0, f"env.frame_stack={self.frame_stack} must be 0 (auto) or more")
        require(self.max_episode_steps >= 0, f"env.max_episode_steps={self.max_episode_steps} must be 0 or more")


@dataclass(frozen=True)
class CollectConfig:
    """Where and how experience is collected."""

    backend: Literal["auto", "serial", "processes", "ray"] = "auto"
    """`serial` collects in this process, `processes` in worker processes, `ray` in actors of a Ray cluster; auto: one
    of the first two, by cores and workers."""
    workers: int = 0
    """Collectors, each with its own environments and policy copy; 0 = auto, from the cores."""
    scaling: Literal["off", "machine"] = "off"
    """`machine`: `workers` is the most; fewer where memory runs short or the learner is the limit, each change told."""
    min_workers: int = 1
    """The least that `scaling` leaves."""
    workers_schedule: tuple[int, ...] = ()
    """How many workers collect in each of so many equal stages of the run: `[1, 2, 4]`; empty = all of them."""
    envs_per_worker: int = 0
    """Environment copies that one worker steps together; 0 = auto."""
    rollout_steps: int = 0
    """T, the steps of one rollout; 0 = auto."""
    max_policy_lag: int = -1
    """How many updates old the acting policy may be when its rollout is learned from. 0: lock-step; -1 = auto."""
    on_stale: Literal["wait", "drop"] = "wait"
    """A rollout about to exceed the lag is waited for, or dropped and counted."""
    step_timeout_s: float = 60.0
    """A worker that does not finish a step within this time is restarted."""
    start_timeout_s: float = 120.0
    """A worker that is not ready within this time is restarted."""
    max_restarts: int = 20
    """Restarts allowed within any `restart_window_s`; one more stops the run with a checkpoint."""
    restart_window_s: float = 600.0
    """The window over which restarts are counted."""
    restart_backoff_s: float = 0.5
    """Pause before the first restart of a worker; doubles with each failure in the window, up to 30 s."""
    worker_nice: int = 0
    """Added to the workers' niceness (0..19), so that they give way to other programs; 0 = as this process."""
    action_log_steps: int = 20_000
    """Actions kept per slot so that a crash can be replayed; 0 turns the log off."""
    deterministic: bool = False
    """Update u learns wholly from the policy of update u - `max_policy_lag`: asynchronous, yet the same every time."""
    inference: Literal["auto", "local", "central"] = "auto"
    """Each worker acts with a copy of the policy, or one process acts for all. Auto: central for networks that need
    torch, on CUDA or with two workers and more; local where a run is to repeat itself bit for bit (lag 0)."""
    double_buffering: bool = True
    """`central`: a worker steps one half of its slots while the actions of the other half are computed."""
    max_batch_slots: int = 0
    """`central`: most slots that one forward pass takes, in whole questions of workers; 0 = all that are waiting."""
    max_wait_ms: float = 1.0
    """`central`: once a worker asks, others are waited for this long, but no longer than an answer takes, so that more
    slots share a forward pass."""
    inference_threads: int = 0
    """`central`: threads of a forward pass on the CPU; 0 = auto, a quarter of the cores."""
    publish_every_updates: int = 1
    """Collectors get new weights after this many updates."""
    publish_every_s: float = 0.0
    """And not before this many seconds have passed; for replay only."""
    exploration_tiers: tuple[float, ...] = ()
    """Temperatures of the acting policy, dealt out to the workers in turn: `[1.0, 1.5]`; empty = 1 for all."""
    emphasis: float = 0.0
    """Rows of workers with better-than-average episodes weigh more: `exp(emphasis x deviations above)`; 0 = off."""

    @property
    def first_workers(self) -> int:
        """How many of the workers a run begins with."""
        if self.workers_schedule:
            return min(self.workers_schedule[0], self.workers)
        return self.workers if self.scaling == "off" else min(self.min_workers, self.workers)

    def temperature_of(self, worker: int) -> float:
        """At which a worker draws its actions."""
        return self.exploration_tiers[worker % len(self.exploration_tiers)] if self.exploration_tiers else 1.0

    def __post_init__(self) -> None:
        require(self.workers >= 0, f"collect.workers={self.workers} must be 0 (auto) or more")
        require(self.envs_per_worker >= 0, f"collect.envs_per_worker={self.envs_per_worker} must be 0 (auto) or more")
        require(self.rollout_steps >= 0, f"collect.rollout_steps={self.rollout_steps} must be 0 (auto) or more")
        require(self.max_policy_lag >= -1, f"collect.max_policy_lag={self.max_policy_lag} must be -1 (auto) or more")
        require(0 <= self.worker_nice <= 19, f"collect.worker_nice={self.worker_nice} must lie in 0..19")
        require(
            self.publish_every_updates >= 1, f"collect.publish_every_updates={self.publish_every_updates} must be 1+"
        )
        require(self.publish_every_s >= 0, f"collect.publish_every_s={self.publish_every_s} must be 0 (off) or more")
        require(
            all(temperature > 0 for temperature in self.exploration_tiers),
            f"collect.exploration_tiers={self.exploration_tiers} must be temperatures above 0; try [1.0, 1.5]",
        )
        require(self.max_batch_slots >= 0, f"collect.max_batch_slots={self.max_batch_slots} must be 0 (all) or more")
        require(self.max_wait_ms >= 0, f"collect.max_wait_ms={self.max_wait_ms} must be 0 or more")
        require(
            self.inference_threads >= 0, f"collect.inference_threads={self.inference_threads} must be 0 (auto) or more"
        )
        require(self.emphasis >= 0, f"collect.emphasis={self.emphasis} must be 0 (off) or more; try 0.5")
        require(self.min_workers >= 1, f"collect.min_workers={self.min_workers} must be 1 or more")
        require(
            all(workers >= 1 for workers in self.workers_schedule),
            f"collect.workers_schedule={self.workers_schedule} must be numbers of workers, 1 or more",
        )
        require(
            not (self.workers_schedule and self.scaling != "off"),
            f'give collect.workers_schedule or collect.scaling="{self.scaling}", not both',
        )
        require(self.step_timeout_s > 0, f"collect.step_timeout_s={self.step_timeout_s} must be above 0")
        require(self.start_timeout_s > 0, f"collect.start_timeout_s={self.start_timeout_s} must be above 0")


@dataclass(frozen=True)
class RayConfig:
    """`collect.backend = "ray"`: the cluster, and what each worker asks of it."""

    address: str = ""
    """`auto` for the cluster that this machine belongs to, or `HOST:6379`; empty = the environment variable
    `RAY_ADDRESS`, which `ray job submit` sets, or else a cluster of this machine alone, for this run."""
    worker_cpus: float = 1.0
    """CPUs reserved for each worker; several workers that mostly wait may share one."""
    worker_memory_mb: int = 0
    """Memory reserved for each worker; 0 = none."""
    inference_cpus: float = 1.0
    """CPUs reserved for central inference."""
    inference_gpus: float = -1.0
    """GPUs reserved for central inference; -1 = auto: one where the cluster has any and the network needs torch."""
    inference_port: int = 0
    """Port at which central inference is asked, to be opened in a firewall; 0 = any that is free."""
    wait_for_results: int = 1
    """Rollouts that must have come before they are taken in; more of them cost less of the learner's process."""
    num_cpus: int = 0
    """CPUs of a cluster that this run starts; 0 = auto: this machine's cores, or as many as the workers ask for."""
    object_store_memory_mb: int = 0
    """Shared memory of a cluster that this run starts; 0 = as Ray chooses, about 30 % of the machine's memory."""
    dashboard: bool = False
    """Whether a cluster that this run starts has Ray's dashboard and its Prometheus endpoint."""
    dashboard_port: int = 8265
    """Where the dashboard is."""
    working_dir: str = ""
    """Directory with the user's code that is carried to the nodes; empty = auto: on a cluster, for a `module:function`
    that is not installed, the directory it was found in."""
    pip: tuple[str, ...] = ()
    """Packages that are installed on the nodes for this run."""

    def __post_init__(self) -> None:
        require(self.worker_cpus > 0, f"ray.worker_cpus={self.worker_cpus} must be above 0; try 0.5")
        for name in ("worker_memory_mb", "inference_cpus", "inference_port", "num_cpus", "object_store_memory_mb"):
            require(getattr(self, name) >= 0, f"ray.{name}={getattr(self, name)} must be 0 or more")
        require(self.wait_for_results >= 1, f"ray.wait_for_results={self.wait_for_results} must be 1 or more")
        require(
            not self.address.startswith("ray://"),
            f"ray.address={self.address}: Ray's client would carry every rollout twice; start this program on a node "
            "of the cluster (`ray job submit`), or give HOST:6379",
        )


@dataclass(frozen=True)
class ReplayConfig:
    """Experience learned from more than once. An item is one slot's column of a rollout, or one step."""

    sampler: Literal["fifo", "uniform", "prioritized"] = "fifo"
    """`fifo`: in order of arrival, which with `samples_per_insert` 1 is a queue and no replay at all."""
    item: Literal["column", "step"] = "column"
    """What is drawn: a slot's column of `collect.rollout_steps` steps, or a single step."""
    samples_per_insert: float = 1.0
    """How often an item is drawn on average; epochs multiply it. `inf` lets the learner run free."""
    capacity_items: int = 0
    """Items that are held; 0 = auto: 10 batches of columns, 100,000 steps."""
    min_size_items: int = 0
    """Items that must be held before the first is drawn; 0 = auto: one batch."""
    preload_s: float = 0.0
    """Seconds that must have passed before the first is drawn."""
    batch_size_items: int = 0
    """Items drawn for one update; 0 = auto: a column of every slot, or 256 steps."""
    error_items: float = 0.0
    """How far draws may be from `samples_per_insert` times inserts, in draws; 0 = auto: as little as cannot block."""
    when_full: Literal["overwrite", "block"] = "overwrite"
    """A full buffer overwrites its oldest rollout, or collectors wait until items drawn often enough have left."""
    alpha: float = 0.6
    """`prioritized`: chances go by priority to this power; 0 is uniform (Schaul 2016)."""
    beta: float = 0.4
    """`prioritized`: power of the importance weights at the start; grows to 1 at `total_env_steps` (Schaul 2016)."""
    priority: Literal["advantage", "td_error"] = "td_error"
    """What makes an item worth drawing: its absolute advantage or temporal-difference error."""
    eta: float = 0.9
    """A column's priority: this share of its largest, the rest of its mean (Kapturowski 2019)."""
    burn_in_steps: int = 0
    """First steps of a column that only bring a recurrent state up to date and are not learned from."""
    refresh_rollouts: int = 1
    """`item = "step"`: rollouts whose advantages are computed anew at each update, those longest without first."""

    @property
    def is_on(self) -> bool:
        """Whether anything is learned from more than once, or in another order than it came."""
        return self.sampler != "fifo" or self.samples_per_insert != 1.0 or self.item == "step"

    def __post_init__(self) -> None:
        require(self.samples_per_insert > 0, f"replay.samples_per_insert={self.samples_per_insert} must be above 0")
        for name in ("capacity_items", "min_size_items", "batch_size_items", "error_items", "preload_s"):
            require(getattr(self, name) >= 0, f"replay.{name}={getattr(self, name)} must be 0 or more")
        for name in ("alpha", "beta", "eta"):
            require(0 <= getattr(self, name) <= 1, f"replay.{name}={getattr(self, name)} must lie in 0..1")
        require(
            self.sampler != "fifo" or self.samples_per_insert >= 1,
            f"replay.samples_per_insert={self.samples_per_insert} under 1 skips items, which `fifo` does not; "
            'use replay.sampler="uniform"',
        )


@dataclass(frozen=True)
class NetConfig:
    """The network. Separate actor and critic for vectors, a shared convolutional encoder for images."""

    hidden: tuple[int, ...] = (64, 64)
    """Widths of the dense layers."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Non-linearity of the dense layers."""
    shared: bool = False
    """One trunk and memory for actor and critic; images always share theirs."""
    image: Literal["auto", "small", "nature", "impala", "flat"] = "auto"
    """Convolutions for images, or `flat` into the dense layers; auto: flat up to 2048 numbers, nature from 64 x 64."""
    log_std_init: float = 0.0
    """Initial log standard deviation of continuous actions."""
    state_log_std: bool = False
    """Log standard deviations are outputs of the network, as RLlib has it, instead of one free parameter each."""
    memory: Literal["none", "gru", "lstm"] = "none"
    """Recurrence between the encoder and the heads, for games whose observation does not tell everything."""
    memory_size: int = 128
    """Width of the recurrent layer."""

    def __post_init__(self) -> None:
        require(self.memory_size > 0, f"net.memory_size={self.memory_size} must be above 0")
        require(all(width > 0 for width in self.hidden), f"net.hidden={self.hidden} must be positive widths")


@dataclass(frozen=True)
class PPOConfig:
    """Targets, objective and optimiser."""

    learning_rate: float = 1e-3
    """Adam's step size at the start."""
    learning_rate_schedule: Literal["linear", "constant", "kl"] = "linear"
    """`linear` falls to 0 at `total_env_steps`; `kl` keeps the KL of an update near `ppo.desired_kl`."""
    desired_kl: float = 0.01
    """What the `kl` schedule aims at: above twice this the rate falls by 1.5, below half of it it rises."""
    epochs: int = 4
    """Passes over each batch."""
    minibatch_size: int = 0
    """Rows per gradient step; 0 = auto, an eighth of the batch. Must divide the batch."""
    minibatches: int = 0
    """Gradient steps per epoch, instead of `minibatch_size`; 0 = as the size says."""
    gamma: float = 0.99
    """Discount per step."""
    gae_lambda: float = 0.95
    """Bias against variance in the advantages."""
    clip: float = 0.2
    """Range of the policy ratio."""
    clip_schedule: Literal["linear", "constant"] = "constant"
    """Linear falls to 0 at `total_env_steps`."""
    dual_clip: float = 0.0
    """Lower bound of the objective where the advantage is negative, in advantages (Ye 2020: 3); 0 = none."""
    value_clip: float = 0.0
    """Range of the value change per update, in units of the value; 0 = no clipping."""
    value_coef: float = 0.5
    """Weight of the value loss."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this norm."""
    adam_eps: float = 1e-5
    """Adam's epsilon (Huang 2022, detail 3)."""
    normalize_advantage: bool = True
    """Per minibatch."""
    normalize_observation: bool = False
    """Subtract running mean and divide by running deviation (floating-point observations only)."""
    normalize_reward: bool = False
    """Divide rewards by the running deviation of the discounted return."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this, after any normalisation."""
    reward_clip: float = 0.0
    """Rewards are clipped to plus and minus this, last of all; 0 = not."""
    recompute_advantage: bool = False
    """Compute values and advantages anew before each epoch after the first (Andrychowicz 2020)."""
    objective: Literal["auto", "clip", "proximal", "decoupled"] = "auto"
    """What the ratio is clipped around: the acting policy (`clip`), or the policy before the update, uncorrected
    (`proximal`) or corrected (`decoupled`, Hilton 2021); auto: `clip`, or `decoupled` with exploration tiers."""
    targets: Literal["auto", "gae", "vtrace", "clipped_gae"] = "auto"
    """How advantages come about; auto: `gae` up to a lag of 1, else `vtrace`, which corrects for the acting policy."""
    values: Literal["auto", "actor", "learner"] = "auto"
    """Whose values targets start from: the actor's, or the learner's at the update; auto: as `targets` wants them."""
    rho_bar: float = 1.0
    """`vtrace`, `clipped_gae`: largest ratio that weighs a temporal difference (Espeholt 2018)."""
    c_bar: float = 1.0
    """`vtrace`, `clipped_gae`: largest ratio that carries differences back (Espeholt 2018)."""
    ratio_cap: float = 100.0
    """Largest ratio of present to acting policy in the objective; beyond it there is no gradient (Hilton 2021)."""
    age_weight: float = 1.0
    """Rows weigh this to the power of their policy's age in updates; 1 = all the same."""
    target_kl: float = 0.0
    """Stop the epochs of an update when the approximate KL exceeds this; 0 = never."""
    threads: int = 0
    """CPU threads of the learner; 0 = auto: the cores that the workers leave."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: the learner's layers in bfloat16; heads, loss, parameters and optimiser in float32."""
    compile: bool = False
    """The learner's network through `torch.compile`: 5 to 60 s at start, and a C++ compiler on a CPU."""
    overlap_transfers: bool = True
    """On a GPU: batches go there from page-locked memory; observations as each rollout arrives, while it computes."""
    cuda_graphs: bool = False
    """On a GPU: a gradient step is recorded once and replayed, which spares small networks the launching of kernels."""

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, f"ppo.learning_rate={self.learning_rate} must be above 0")
        require(self.epochs >= 1, f"ppo.epochs={self.epochs} must be 1 or more")
        require(self.minibatch_size >= 0, f"ppo.minibatch_size={self.minibatch_size} must be 0 (auto) or more")
        require(0 <= self.gamma <= 1, f"ppo.gamma={self.gamma} must lie in 0..1")
        require(0 <= self.gae_lambda <= 1, f"ppo.gae_lambda={self.gae_lambda} must lie in 0..1")
        require(self.clip > 0, f"ppo.clip={self.clip} must be above 0")
        require(
            not (self.minibatch_size and self.minibatches),
            f"give ppo.minibatch_size={self.minibatch_size} or ppo.minibatches={self.minibatches}, not both",
        )
        require(self.desired_kl > 0, f"ppo.desired_kl={self.desired_kl} must be above 0")
        require(self.dual_clip == 0 or self.dual_clip > 1, f"ppo.dual_clip={self.dual_clip} must be 0 (off) or above 1")
        require(self.reward_clip >= 0, f"ppo.reward_clip={self.reward_clip} must be 0 (off) or more")
        require(self.value_clip >= 0, f"ppo.value_clip={self.value_clip} must be 0 or more")
        require(
            self.rho_bar >= self.c_bar > 0, f"ppo.c_bar={self.c_bar} must be above 0, up to ppo.rho_bar={self.rho_bar}"
        )
        require(self.ratio_cap > 1, f"ppo.ratio_cap={self.ratio_cap} must be above 1")
        require(0 < self.age_weight <= 1, f"ppo.age_weight={self.age_weight} must lie above 0, up to 1")
        require(self.max_grad_norm > 0, f"ppo.max_grad_norm={self.max_grad_norm} must be above 0")


@dataclass(frozen=True)
class RNDConfig:
    """Novelty as a reward beside the game's, for games that seldom reward: random network distillation."""

    coef: float = 0.0
    """What novelty is worth, in units of its own deviation; 0 = off."""
    learning_rate: float = 1e-4
    """Adam's step size for the network that learns what is known."""
    share: float = 1.0
    """Part of the rows of each update that train it, once; less lets novelty last longer where batches are large."""
    gamma: float = 0.99
    """Discount of the novelty return whose deviation is the unit."""

    def __post_init__(self) -> None:
        require(self.coef >= 0, f"rnd.coef={self.coef} must be 0 (off) or more")
        require(self.learning_rate > 0, f"rnd.learning_rate={self.learning_rate} must be above 0")
        require(0 < self.share <= 1, f"rnd.share={self.share} must lie above 0, up to 1")
        require(0 <= self.gamma <= 1, f"rnd.gamma={self.gamma} must lie in 0..1")


@dataclass(frozen=True)
class ImitateConfig:
    """A warm start: before PPO begins, the policy learns to act as a player does."""

    player: str = ""
    """`walker` or `oracle` (Realm), `random`, `module:function`, or recorded games `FILE.jsonl`; empty = nobody."""
    env_steps: int = 100_000
    """Transitions that the player plays; `total_env_steps` does not count them."""
    epochs: int = 4
    """Passes over each of its rollouts."""
    learning_rate: float = 1e-3
    """Adam's step size at the start; falls linearly to 0."""
    value_coef: float = 0.5
    """Weight of the value loss beside the negative log-probability of the player's actions."""

    def __post_init__(self) -> None:
        require(self.env_steps > 0, f"imitate.env_steps={self.env_steps} must be above 0")
        require(self.epochs >= 1, f"imitate.epochs={self.epochs} must be 1 or more")
        require(self.learning_rate > 0, f"imitate.learning_rate={self.learning_rate} must be above 0")
        require(self.value_coef >= 0, f"imitate.value_coef={self.value_coef} must be 0 or more")


@dataclass(frozen=True)
class RllibConfig:
    """What `engine = "rllib"` needs besides; docs/rllib.md says what the other settings become there."""

    algorithm: Literal["PPO", "APPO"] = "PPO"
    """RLlib's algorithm: lock-step, or asynchronous with V-trace."""
    seats: int = 1
    """Slots that play one game: from 2 on, agents of RLlib's `MultiAgentEnv` that share a policy."""

    def __post_init__(self) -> None:
        require(self.seats >= 1, f"rllib.seats={self.seats} must be 1 or more")


@dataclass(frozen=True)
class StopConfig:
    """When a run ends: at whichever comes first. 0 = never for that reason."""

    episodes: int = 0
    """Finished episodes."""
    updates: int = 0
    """Learner updates."""
    wall_s: float = 0.0
    """Seconds of the run, those before a resume included."""
    mean_return: float | None = None
    """Mean return of the last 100 training episodes."""


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation while training, on fixed seeds; it never disturbs training's random states."""

    every_env_steps: int = 0
    """Evaluate each time this many steps have passed; 0 = never."""
    episodes: int = 20
    """Episodes per evaluation."""
    deterministic: bool = True
    """Take the most probable action instead of sampling."""
    seed: int = 10_000
    """Seed of the first episode."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Environment arguments that differ from training's."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every_env_steps: int = 0
    """Write each time this many steps have passed; 0 = never for that reason."""
    every_s: float = 60.0
    """Write each time this many seconds have passed; 0 = never for that reason."""
    keep_last: int = 10
    """The newest that are kept; 0 = all."""
    keep_every_env_steps: int = 0
    """Keep for good one checkpoint in this many steps; 0 = none."""
    pool_versions: int = 0
    """Policies of the latest updates kept as files in the run's `pool/`, for other programs; 0 = none."""
    pool_every_updates: int = 100
    """Updates between two of them."""

    def __post_init__(self) -> None:
        require(self.pool_versions >= 0, f"checkpoint.pool_versions={self.pool_versions} must be 0 (off) or more")
        require(self.pool_every_updates >= 1, f"checkpoint.pool_every_updates={self.pool_every_updates} is below 1")


@dataclass(frozen=True)
class MetricsConfig:
    """Where figures go. `metrics.jsonl` in the run directory is always written."""

    tensorboard: bool = True
    """Write TensorBoard files (needs the extra `tensorboard`; left out with a note where it is missing)."""
    console: Literal["auto", "live", "lines", "json", "off"] = "auto"
    """A live display on a terminal, plain lines elsewhere; or the rows as JSON lines, or nothing."""
    every_s: float = 0.5
    """Seconds between log rows; an update in between adds to the next row."""


@dataclass(frozen=True)
class Config:
    """One run."""

    env: EnvConfig = field(default_factory=EnvConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    net: NetConfig = field(default_factory=NetConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    rnd: RNDConfig = field(default_factory=RNDConfig)
    imitate: ImitateConfig = field(default_factory=ImitateConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    rllib: RllibConfig = field(default_factory=RllibConfig)
    curriculum: dict[str, Any] = field(default_factory=dict)
    """Environment options over training progress: `n_treasures = ["norm", 13]`, `{from = 0, to = 1, until = 0.5}`."""
    total_env_steps: int = 500_000
    """Environment transitions after which the run is complete; schedules go by it."""
    seed: int = 0
    """Everything random derives from it."""
    device: str = "auto"
    """`cpu`, `cuda`, or auto: cuda for convolutional networks where there is a GPU, else cpu."""
    run_dir: str = ""
    """Directory of the run; empty = runs/ENV-TIME."""
    engine: Literal["millrace", "rllib"] = "millrace"
    """Who trains: `rllib` hands environment, masks and network to RLlib, for comparison (extra `rllib`)."""

    def __post_init__(self) -> None:
        require(self.total_env_steps > 0, f"total_env_steps={self.total_env_steps} must be above 0")

    def to_toml(self) -> str:
        """The complete settings as TOML, in the order of this file, top-level keys first."""
        tables = {name: value for name, value in _items(self) if dataclasses.is_dataclass(value)}
        lines = [toml_line(name, value) for name, value in _items(self) if name not in tables]
        for name, table in tables.items():
            lines += ["", f"[{name}]", *(toml_line(key, value) for key, value in _items(table) if value is not None)]
        return "\n".join(lines) + "\n"

    @staticmethod
    def named(source: str) -> Config:
        """The settings that a TOML file, a recipe of the package, or an environment's id stands for."""
        if source.endswith(".toml"):
            return Config.from_toml(source)
        recipes = recipe_names()
        if source in recipes:
            return Config.from_toml(RECIPES / f"{source}.toml")
        near = difflib.get_close_matches(source, recipes, 1, cutoff=0.8)
        if near and ":" not in source:
            raise ConfigError(f"there is no recipe or environment {source!r}; did you mean the recipe {near[0]}?")
        family = next((recipe for prefix, recipe in FAMILIES.items() if source.startswith(prefix)), None)
        config = Config.from_toml(RECIPES / f"{family}.toml") if family else Config()
        return config.replace({"env.id": source})

    @staticmethod
    def from_toml(path: str | Path) -> Config:
        """Defaults overruled by the file.

        Raises:
            ConfigError: the file cannot be read or parsed, or a key is unknown or of the wrong type.
        """
        return Config().replace(read_toml(path), where=str(path))

    def replace(self, settings: Mapping[str, Any], where: str = "settings") -> Config:
        """These settings with some overruled: nested tables or dotted keys (`{"ppo.clip": 0.1}`)."""
        return replace_checked(self, _nest(settings), where)


T = TypeVar("T")


def read_toml(path: str | Path) -> dict[str, Any]:
    """The file as nested dictionaries, with errors that name file and line."""
    try:
        return parse_toml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the settings file {path}: {error.strerror}") from None
    except ValueError as error:  # TOML's own error and Unicode's are both of this kind
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def parse_toml(text: str) -> dict[str, Any]:
    """TOML as nested dictionaries; ValueError where it is none."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib  # type: ignore[no-redef, import-not-found, unused-ignore]
    return tomllib.loads(text)


def recipe_names() -> list[str]:
    """The settings files that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def setting_names(config: Any = None, prefix: str = "") -> Iterator[str]:
    """Every dotted setting name."""
    for name, value in _items(config or Config()):
        if dataclasses.is_dataclass(value):
            yield from setting_names(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def look_up(config: Any, name: str) -> Any:
    """The value of a setting by its dotted name."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _items(config: Any) -> list[tuple[str, Any]]:
    return [(f.name, getattr(config, f.name)) for f in dataclasses.fields(config)]


def _nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in settings.items():
        *tables, key = name.split(".")
        target = nested
        for table in tables:
            target = target.setdefault(table, {})
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            target[key].update(value)
        else:
            target[key] = dict(value) if isinstance(value, Mapping) else value
    return nested


def replace_checked(
    config: T, settings: Mapping[str, Any], where: str, prefix: str = "", known: Iterable[str] = ()
) -> T:
    """A dataclass of settings with some overruled.

    Args:
        prefix: of its names, where it is a table.
        known: the names to suggest where one is unknown, if not those of `Config`.

    Raises:
        ConfigError: a name is unknown, with the nearest one, or a value of the wrong type.
    """
    hints = typing.get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in hints:
            raise ConfigError(f"{where}: there is no setting {prefix}{name}{_suggestion(prefix + name, known)}")
        current = getattr(config, name)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: {prefix}{name} is a table of settings, not {value!r}")
            changes[name] = replace_checked(current, value, where, f"{prefix}{name}.", known)
        else:
            changes[name] = _checked(hints[name], value, f"{where}: {prefix}{name}")
    return typing.cast(T, dataclasses.replace(typing.cast(Any, config), **changes))


def _suggestion(name: str, known: Iterable[str]) -> str:
    names = list(known or setting_names())
    near = [full for full in names if full.endswith("." + name)] or difflib.get_close_matches(name, names, 1)
    return f"; did you mean {near[0]}?" if near else "; see `millrace config ENV` for all of them"


def _checked(hint: Any, value: Any, where: str) -> Any:
    """The value as the type that the field wants, or a ConfigError that says what was wrong."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in arguments:
            return value
        near = difflib.get_close_matches(str(value), [str(a) for a in arguments], 1)
        hint_text = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{where}={value!r} must be one of {', '.join(map(repr, arguments))}{hint_text}")
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_checked(arguments[0], item, where) for item in value)
    if origin is dict and isinstance(value, Mapping):
        return dict(value)
    if type(None) in arguments:
        return None if value is None else _checked(arguments[0], value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e6 is how people write a million
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}={value!r} must be {getattr(hint, '__name__', str(hint))}")


def toml_line(name: str, value: Any) -> str:
    """`name = value` as TOML."""
    return f"{name} = {_toml_value(value)}"


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_toml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, float):
        return repr(value)  # keeps every bit; inf and nan are TOML too
    return json.dumps(value, ensure_ascii=False)
