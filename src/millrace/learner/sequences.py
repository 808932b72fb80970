"""Gradients for networks with recurrence: whole sequences, minibatches that split slots and never time."""

from __future__ import annotations

import torch
from torch import Tensor

from millrace.config import PPOConfig
from millrace.learner.autograd import AutogradGradients
from millrace.learner.auxiliary import Auxiliary
from millrace.learner.flat import FlatParameters
from millrace.learner.rows import Rows
from millrace.learner.uploads import sent
from millrace.nets.policy import Policy


class SequenceGradients(AutogradGradients):
    """A minibatch is some slots with all of their T steps, unrolled from the state at the rollout's start."""

    def __init__(
        self, policy: Policy, parameters: FlatParameters, config: PPOConfig, auxiliary: Auxiliary | None = None
    ) -> None:
        super().__init__(policy, parameters, config, auxiliary)
        self._state: Tensor
        self._slots: Tensor

    def prepare(self, rows: Rows, state: Tensor | None = None) -> None:
        assert state is not None
        super().prepare(rows)
        self._state = state

    def shuffle(self, generator: torch.Generator) -> None:
        """Put the slots into random order, and their rows so that each minibatch is time-major."""
        num_slots = len(self._state)
        num_steps = len(self._rows) // num_slots
        self._slots = torch.randperm(num_slots, generator=generator)
        step = torch.arange(num_steps)[None, :, None] * num_slots
        minibatches = self._slots.view(-1, 1, self._config.minibatch_size // num_steps)
        self._take((step + minibatches).flatten())
        self._slots = sent(self._slots, self._state.device)
        self._num_steps = num_steps

    def _forward(self, rows: Rows, first: int, last: int) -> tuple[Tensor, Tensor]:
        slots = self._slots[first // self._num_steps : last // self._num_steps]
        assert rows.begins is not None
        begins = rows.begins.view(self._num_steps, len(slots))
        params, value, _ = self._policy.unroll(rows.seen(), self._state[slots], begins)
        return params, value
