"""The gradient of the PPO objective on a minibatch: by autograd for any network, by hand for dense ones on a CPU."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from millrace.config import PPOConfig
from millrace.learner.autograd import AutogradGradients
from millrace.learner.auxiliary import Auxiliary
from millrace.learner.dense import DenseGradients
from millrace.learner.flat import FlatParameters
from millrace.learner.rows import Rows
from millrace.learner.sequences import SequenceGradients
from millrace.nets.dense_network import DenseNetwork
from millrace.nets.policy import Policy
from millrace.types import require

Stats = dict[str, float]


class Gradients(Protocol):
    """Computes gradients over one batch: `prepare` once an update, `shuffle` once an epoch."""

    def prepare(self, rows: Rows, state: Tensor | None = None) -> None:
        """Take the rows of an update; and the recurrent state [B, S] before them, for networks with recurrence."""

    def shuffle(self, generator: torch.Generator) -> None:
        """Put the prepared rows into random order."""

    def compute(self, first: int, last: int, clip: float, wants_stats: bool) -> tuple[float, Stats]:
        """Write the gradient on the rows first..last-1 of the present order; the loss, and figures if wanted."""


def make_gradients(
    policy: Policy, parameters: FlatParameters, config: PPOConfig, auxiliary: Auxiliary | None = None
) -> Gradients:
    """By hand where the network is ours and dense, on one CPU thread in float32; else by autograd.

    Raises:
        ConfigError: `ppo.compile` with recurrence, whose sequences have a new shape in every minibatch.
    """
    network = policy.network
    if policy.state_size:
        require(not config.compile, "ppo.compile does not take networks with memory; use ppo.compile=false")
        return SequenceGradients(policy, parameters, config, auxiliary)
    on_cpu = parameters.vector.device.type == "cpu"
    is_plain = config.precision == "fp32" and not config.compile and auxiliary is None
    is_plain = is_plain and not policy.has_state_log_std
    if isinstance(network, DenseNetwork) and on_cpu and config.threads <= 1 and is_plain:
        return DenseGradients(policy, network, config)
    return AutogradGradients(policy, parameters, config, auxiliary)
