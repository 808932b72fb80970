"""The gradient of the PPO objective by autograd: any network, any device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from millrace.config import PPOConfig
from millrace.errors import ConfigError
from millrace.learner.auxiliary import Auxiliary
from millrace.learner.flat import FlatParameters
from millrace.learner.rows import Rows
from millrace.learner.uploads import sent
from millrace.nets.policy import Policy
from millrace.ops import losses
from millrace.ops.distributions import log_prob_and_entropy


def compiled(policy: Policy) -> Callable[..., tuple[Tensor, Tensor]]:
    """The policy's forward, compiled at its first call; parameters and their names stay the policy's own.

    Raises:
        ConfigError: there is no compiler.
    """
    forward = torch.compile(policy)

    def call(observation: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        try:
            outputs: tuple[Tensor, Tensor] = forward(observation)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            raise ConfigError(f"ppo.compile: {error.inner_exception}; ppo.compile=false needs no compiler") from error
        return outputs

    return call


class AutogradGradients:
    """Any network on any device."""

    def __init__(
        self, policy: Policy, parameters: FlatParameters, config: PPOConfig, auxiliary: Auxiliary | None = None
    ) -> None:
        self._policy, self._parameters, self._config = policy, parameters, config
        self._auxiliary = auxiliary
        self._network = compiled(policy) if config.compile else policy
        self._autocast = torch.autocast(
            parameters.vector.device.type, torch.bfloat16, enabled=config.precision == "bf16"
        )
        self._rows: Rows
        self._shuffled: Rows

    def prepare(self, rows: Rows, state: Tensor | None = None) -> None:
        self._rows = rows

    def shuffle(self, generator: torch.Generator) -> None:
        self._take(torch.randperm(len(self._rows), generator=generator))

    def _take(self, index: Tensor) -> None:
        self._shuffled = self._rows.take(sent(index, self._rows.weight.device))

    def _forward(self, rows: Rows, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Parameters and values of the rows first..last-1 of the present order."""
        params, value = self._network(rows.seen())
        return params, value

    def evaluate(self, first: int, last: int) -> tuple[Rows, Tensor, Tensor]:
        """The rows first..last-1 of the present order, with their parameters and values."""
        rows = self._shuffled.slice(first, last)
        with self._autocast:
            params, value = self._forward(rows, first, last)
        return rows, params, value

    def forward(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Parameters and values of any rows, for networks without recurrence."""
        with self._autocast:
            return self._forward(rows, 0, len(rows))

    def compute(self, first: int, last: int, clip: float, wants_stats: bool) -> tuple[float, dict[str, float]]:
        loss, stats = self.backward(*self.evaluate(first, last), clip, wants_stats)
        return float(loss), {name: float(x.detach()) for name, x in stats.items()}

    def backward(
        self, rows: Rows, params: Tensor, value: Tensor, clip: float | Tensor, wants_stats: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Write the gradient on rows of which the policy says `params` and `value`; the loss and figures, scalars."""
        config = self._config
        log_prob, entropy = log_prob_and_entropy(self._policy.spec.action, params, rows.action, rows.action_mask)
        log_ratio = log_prob - rows.log_prob
        advantage = rows.advantage
        if config.normalize_advantage:
            advantage = losses.normalize_advantages(advantage, rows.weight)
        is_corrected = config.objective == "decoupled"
        policy_loss = losses.clipped_policy_loss(
            log_ratio,
            advantage,
            rows.weight,
            clip,
            config.dual_clip,
            rows.log_importance if is_corrected else None,
            config.ratio_cap,
        )
        value_loss = losses.value_loss(value, rows.value, rows.target, rows.weight, config.value_clip)
        mean_entropy = losses.weighted_mean(entropy, rows.weight)
        loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * mean_entropy
        extra = None if self._auxiliary is None else self._auxiliary(self._policy, rows)
        loss = loss if extra is None else loss + extra
        self._parameters.grad.zero_()
        loss.backward()  # type: ignore[no-untyped-call]
        if not wants_stats:
            return loss.detach(), {}
        with torch.no_grad():
            outside = (log_ratio.exp() - 1).abs().gt(clip).float()
            behaviour = log_ratio if rows.log_importance is None else log_ratio + rows.log_importance
            stats = {
                "policy_loss": policy_loss,
                "value_loss": value_loss,
                "entropy": mean_entropy,
                "kl": losses.approximate_kl(behaviour, rows.weight),
                "clip_share": losses.weighted_mean(outside, rows.weight),
                "effective_sample_share": losses.effective_sample_share(behaviour, rows.weight),
                "ratio_tail_share": losses.ratio_tail_share(behaviour, rows.weight),
            }
            if rows.log_importance is not None:
                stats["kl_proximal"] = losses.approximate_kl(log_ratio, rows.weight)
            if extra is not None:
                stats["auxiliary_loss"] = extra
        return loss.detach(), stats
