"""The PPO learner."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
import torch

from millrace.buffer.batch import Batch, Draws
from millrace.config import PPOConfig, ReplayConfig
from millrace.learner.auxiliary import Auxiliary
from millrace.learner.flat import FlatParameters
from millrace.learner.intrinsic import Intrinsic
from millrace.learner.rewards import RewardScaler
from millrace.learner.rows import Rows
from millrace.learner.schedules import Schedules
from millrace.learner.steps import Meanwhile, make_steps
from millrace.learner.targets import Targets
from millrace.nets.policy import Policy
from millrace.ops import losses
from millrace.types import Array, Rollout, require


class Learner:
    """Turns batches into better weights.

    Args:
        policy: on the device to learn on.
        total_env_steps: where linear schedules reach 0.
        intrinsic: rewards beside the game's.
        auxiliary: a loss beside PPO's, on the same device.
        replay: how drawn experience is treated.
    """

    def __init__(
        self,
        policy: Policy,
        config: PPOConfig,
        total_env_steps: int,
        seed: int,
        intrinsic: Intrinsic | None = None,
        auxiliary: Auxiliary | None = None,
        replay: ReplayConfig | None = None,
    ) -> None:
        self.policy = policy
        self._replay = replay = replay or ReplayConfig()
        self.config = config
        self.updates = 0
        self.skipped_steps = 0
        self.busy_s = 0.0
        self._schedules = Schedules(config, total_env_steps)
        self._intrinsic, self._auxiliary = intrinsic, auxiliary
        own = [] if auxiliary is None else auxiliary.parameters()
        # Each once, also where the module keeps the policy itself.
        parameters = FlatParameters(dict.fromkeys([*policy.parameters(), *own]))
        self._steps = make_steps(policy, parameters, config, auxiliary)
        self._generator = torch.Generator().manual_seed(seed)
        self._reward_scaler = RewardScaler(config.gamma) if config.normalize_reward else None
        self._targets = Targets(policy, config, self._reward_scaler, replay.burn_in_steps)

    def weights(self) -> Array:
        """Parameters and normalisers as one flat float32 vector."""
        return self.policy.flat_weights()

    def update(self, batch: Batch, env_steps: int, meanwhile: Meanwhile | None = None) -> dict[str, float]:
        """Learn from one batch and return the figures of the update.

        Args:
            env_steps: before this batch; schedules go by it.
            meanwhile: called with some seconds at most to take, again and again while a device computes.
        """
        begin = perf_counter()
        learning_rate, clip = self._schedules.at(env_steps)
        bonus = self._bonus(batch.rollout)
        self._steps.begin(learning_rate, clip)
        rows = self._epochs(batch, bonus)
        num_skipped = self._steps.finish(meanwhile)
        self.skipped_steps += num_skipped
        stats = {**self._steps.figures(), **value_figures(rows)}
        if batch.draws is not None:
            self._judge(batch.draws, rows, batch.rollout.reward.shape)
        if not num_skipped:  # else something in the batch is not finite
            observe(self.policy, self._reward_scaler, batch)
            self._schedules.observe_kl(kl_of_update(stats))
            if self._intrinsic is not None:
                stats |= self._intrinsic.learn(batch)
        if bonus is not None:
            stats["intrinsic_reward"] = float(bonus[batch.rollout.valid].mean())
        self.updates += 1
        self.busy_s += perf_counter() - begin
        if batch.draws is not None:
            stats["target_age"] = batch.draws.target_age
        return {**stats, "learning_rate": learning_rate, "clip": clip, **batch.lags()}

    def _bonus(self, rollout: Rollout) -> Array | None:
        """[T, B] intrinsic reward, if there is any."""
        if self._intrinsic is None:
            return None
        bonus = np.asarray(self._intrinsic.reward(rollout), np.float32)
        require(
            bonus.shape == rollout.reward.shape,
            f"{type(self._intrinsic).__name__}.reward gave an array {list(bonus.shape)}; it must be [T, B], here "
            f"{list(rollout.reward.shape)}",
        )
        return bonus

    def _epochs(self, batch: Batch, bonus: Array | None) -> Rows:
        """K passes over the rows in random order; the rows as they were before the first."""
        config, size = self.config, self.config.minibatch_size
        first_rows = rows = self._targets.rows(batch, bonus)
        state = self._targets.state(batch.rollout)
        self._steps.prepare(rows, state)
        for epoch in range(config.epochs):
            if epoch and config.recompute_advantage:
                rows = self._targets.refreshed(rows, batch)
                self._steps.prepare(rows, state)
            self._steps.shuffle(self._generator)
            wants_stats = epoch == config.epochs - 1 or config.target_kl > 0
            for first in range(0, len(rows), size):
                self._steps.step(first, first + size, wants_stats)
            if config.target_kl and kl_of_update(self._steps.figures()) > config.target_kl:
                break
        return first_rows

    def _judge(self, draws: Draws, rows: Rows, shape: tuple[int, ...]) -> None:
        """Write what was found out about drawn rows [T, N] where the buffer looks for it."""
        assert rows.td_error is not None
        priority = rows.td_error if self._replay.priority == "td_error" else rows.advantage
        draws.priority = priority.view(shape).cpu().numpy()
        draws.error = (rows.target - rows.value).view(shape).cpu().numpy()

    def save_state(self) -> dict[str, Any]:
        """Optimiser, random state and counters, as plain values and arrays."""
        return {
            "updates": self.updates,
            "skipped_steps": self.skipped_steps,
            "kl_rate": self._schedules.kl_rate,
            "generator": self._generator.get_state().numpy(),
            "reward_scaler": None if self._reward_scaler is None else self._reward_scaler.save_state(),
            "adam": self._steps.save_state(),
            "intrinsic": None if self._intrinsic is None else self._intrinsic.save_state(),
            "auxiliary": None if self._auxiliary is None else _arrays(self._auxiliary.state_dict()),
        }

    def load_reward_statistics(self, state: dict[str, Any]) -> None:
        """Take over the reward statistics alone, which another learner's values are in units of."""
        if self._reward_scaler is not None and state["reward_scaler"] is not None:
            self._reward_scaler.load_state({**state["reward_scaler"], "running": {}})

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue exactly where `save_state` was taken.

        Raises:
            ConfigError: it had an auxiliary loss and this learner has none, or the other way round.
        """
        require(
            (state.get("auxiliary") is None) == (self._auxiliary is None),
            "the checkpoint and this run do not agree on an auxiliary loss; give resume the auxiliary=... of train",
        )
        self.updates, self.skipped_steps = int(state["updates"]), int(state["skipped_steps"])
        self._schedules.kl_rate = float(state["kl_rate"])
        self._generator.set_state(torch.from_numpy(np.array(state["generator"], np.uint8)))
        if self._reward_scaler is not None and state["reward_scaler"] is not None:
            self._reward_scaler.load_state(state["reward_scaler"])
        if self._intrinsic is not None and state.get("intrinsic") is not None:
            self._intrinsic.load_state(state["intrinsic"])
        if self._auxiliary is not None:
            self._auxiliary.load_state_dict(
                {name: torch.from_numpy(np.array(x)) for name, x in state["auxiliary"].items()}
            )
        self._steps.load_state(state["adam"])


def observe(policy: Policy, reward_scaler: RewardScaler | None, batch: Batch) -> None:
    """Add each rollout that has come since the batch before to the normalisers, once, after the update."""
    for key, normalizer in policy.normalizers():
        for rollout in [batch.rollout] if batch.fresh is None else batch.fresh:
            rows = rollout.present(key)[:-1][rollout.valid]
            normalizer.update(torch.from_numpy(rows).to(normalizer.mean.device))
    if reward_scaler is not None:
        for worker, block in batch.blocks():
            reward_scaler.update(worker, block)


def _arrays(tensors: dict[str, Any]) -> dict[str, Array]:
    return {name: tensor.cpu().numpy().copy() for name, tensor in tensors.items()}


def value_figures(rows: Rows) -> dict[str, float]:
    """How values at collection and value targets lie."""
    target_mean = losses.weighted_mean(rows.target, rows.weight)
    target_variance = losses.weighted_mean((rows.target - target_mean) ** 2, rows.weight)
    value_mean = losses.weighted_mean(rows.value, rows.weight)
    value_variance = losses.weighted_mean((rows.value - value_mean) ** 2, rows.weight)
    figures = {
        "value_mean": value_mean,
        "value_scale": (value_variance / target_variance.clamp_min(1e-8)).sqrt(),
        "target_mean": target_mean,
        "target_deviation": target_variance.sqrt(),
        "explained_variance": losses.explained_variance(rows.value, rows.target, rows.weight),
    }
    return dict(zip(figures, torch.stack(list(figures.values())).tolist(), strict=True))


def kl_of_update(stats: dict[str, float]) -> float:
    """From the policy before the update, where that is not the one that acted."""
    return stats.get("kl_proximal", stats["kl"])
