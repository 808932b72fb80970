"""Gradient steps: one after another on a CPU, or queued on a device that computes while this process goes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from millrace.config import PPOConfig
from millrace.errors import ConfigError
from millrace.learner.autograd import AutogradGradients
from millrace.learner.auxiliary import Auxiliary
from millrace.learner.flat import Adam, FlatParameters
from millrace.learner.gradients import Gradients, Stats, make_gradients
from millrace.learner.graph import CudaGraph, Graph
from millrace.learner.rows import Rows
from millrace.learner.uploads import sent
from millrace.nets.policy import Policy
from millrace.types import require

Meanwhile = Callable[[float], object]

WAIT_S = 0.002  # between two looks at whether the device is done
STEPS_BEFORE_RECORDING = 3  # in which libraries choose their kernels and take their memory
MOST_DIFFERENCE = 0.02  # between gradients made directly and by the graph, as a share: bfloat16 and atomic sums differ


class Steps(Protocol):
    """The steps of an update: `begin` and `prepare` once, `shuffle` for each epoch, then `step` after `step`."""

    def begin(self, learning_rate: float, clip: float) -> None:
        """What holds for all steps of the update."""

    def prepare(self, rows: Rows, state: Tensor | None = None) -> None:
        """Take the rows; and the recurrent state [B, S] before them, for networks with recurrence."""

    def shuffle(self, generator: torch.Generator) -> None:
        """Put the prepared rows into random order."""

    def step(self, first: int, last: int, wants_stats: bool) -> None:
        """Descend on the rows first..last-1; where loss or gradient are not finite, leave everything as it is."""

    def figures(self) -> dict[str, float]:
        """Means over the steps since `shuffle`."""

    def finish(self, meanwhile: Meanwhile | None = None) -> int:
        """Wait until all steps are made, calling `meanwhile(seconds)` all the while; how many changed nothing."""

    def save_state(self) -> dict[str, Any]:
        """Of the optimiser: the same whoever makes the steps."""

    def load_state(self, state: dict[str, Any]) -> None: ...


def make_steps(
    policy: Policy, parameters: FlatParameters, config: PPOConfig, auxiliary: Auxiliary | None = None
) -> Steps:
    """As the device wants them that the parameters lie on.

    Raises:
        ConfigError: settings that do not go together.
    """
    gradients = make_gradients(policy, parameters, config, auxiliary)
    device = parameters.vector.device
    if config.cuda_graphs:
        require(
            not policy.state_size,
            "ppo.cuda_graphs does not take networks with memory, whose sequences have a new shape in every minibatch; "
            "use ppo.cuda_graphs=false",
        )
        require(device.type == "cuda", f"ppo.cuda_graphs=true wants device=cuda, not {device.type}")
        assert isinstance(gradients, AutogradGradients)
        return GraphedSteps(gradients, parameters, config, CudaGraph())
    if device.type == "cpu":
        return HostSteps(gradients, parameters, config)
    assert isinstance(gradients, AutogradGradients)
    return DeviceSteps(gradients, parameters, config)


class HostSteps:
    """Each step is looked at as soon as it is made."""

    def __init__(self, gradients: Gradients, parameters: FlatParameters, config: PPOConfig) -> None:
        self._gradients, self._parameters = gradients, parameters
        self._max_grad_norm = config.max_grad_norm
        self._optimizer = Adam(parameters, config.adam_eps)
        self._learning_rate = self._clip = 0.0
        self._num_skipped = 0
        self._stats: list[Stats] = []

    def begin(self, learning_rate: float, clip: float) -> None:
        self._learning_rate, self._clip, self._num_skipped = learning_rate, clip, 0

    def prepare(self, rows: Rows, state: Tensor | None = None) -> None:
        self._gradients.prepare(rows, state)

    def shuffle(self, generator: torch.Generator) -> None:
        self._gradients.shuffle(generator)
        self._stats = []

    def step(self, first: int, last: int, wants_stats: bool) -> None:
        loss, stats = self._gradients.compute(first, last, self._clip, wants_stats)
        norm = float(self._parameters.clip_grad(self._max_grad_norm))
        if math.isfinite(loss) and math.isfinite(norm):
            self._optimizer.step(self._learning_rate)
        else:
            self._num_skipped += 1
        self._stats.append({**stats, "grad_norm": norm})

    def figures(self) -> dict[str, float]:
        return {name: sum(stat[name] for stat in self._stats) / len(self._stats) for name in self._stats[0]}

    def finish(self, meanwhile: Meanwhile | None = None) -> int:
        return self._num_skipped

    def save_state(self) -> dict[str, Any]:
        return self._optimizer.save_state()

    def load_state(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state(state)


class DeviceSteps:
    """Nothing that a step computes comes back before the update ends, so that the device always has the next one.

    Whether loss and gradient are finite is decided there too.
    """

    def __init__(self, gradients: AutogradGradients, parameters: FlatParameters, config: PPOConfig) -> None:
        self._gradients, self._parameters = gradients, parameters
        self._max_grad_norm = config.max_grad_norm
        self._device = parameters.vector.device
        self._learning_rate, self._clip, self._num_skipped = torch.zeros(3, device=self._device).unbind()
        self._optimizer = Adam(parameters, config.adam_eps)
        self._names: list[str] = []
        self._stats: list[Tensor] = []

    def begin(self, learning_rate: float, clip: float) -> None:
        self._learning_rate.fill_(learning_rate)
        self._clip.fill_(clip)
        self._num_skipped.zero_()

    def prepare(self, rows: Rows, state: Tensor | None = None) -> None:
        self._gradients.prepare(rows, state)

    def shuffle(self, generator: torch.Generator) -> None:
        self._gradients.shuffle(generator)
        self._stats = []

    def step(self, first: int, last: int, wants_stats: bool) -> None:
        self._stats.append(self._descend(*self._gradients.evaluate(first, last)))

    def _descend(self, rows: Rows, params: Tensor, value: Tensor) -> Tensor:
        """[F] the figures of a step, made with what the policy says of its rows."""
        loss, stats = self._gradients.backward(rows, params, value, self._clip)
        norm = self._parameters.clip_grad(self._max_grad_norm)
        is_lost = ~(loss.isfinite() & norm.isfinite())
        self._optimizer.step(self._learning_rate, is_lost.float())
        self._num_skipped += is_lost
        stats["grad_norm"] = norm
        self._names = list(stats)
        return torch.stack([x.detach().float() for x in stats.values()])

    def figures(self) -> dict[str, float]:
        return dict(zip(self._names, torch.stack(self._stats).mean(0).tolist(), strict=True))

    def finish(self, meanwhile: Meanwhile | None = None) -> int:
        if meanwhile is not None:
            done = torch.Event(self._device)
            done.record()
            while not done.query():
                meanwhile(WAIT_S)
        return int(self._num_skipped)

    def save_state(self) -> dict[str, Any]:
        return self._optimizer.save_state()

    def load_state(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state(state)


class GraphedSteps(DeviceSteps):
    """The same, of which the device is told once: all kernels of a step are recorded as a graph, and replayed.

    A graph reads and writes the same memory every time. So the rows of each update go to where those of the first one
    were, and each step gathers its own by an index that lies in a fixed place. What the graph makes is held against
    the same step made directly before it is trusted.

    Source: docs.pytorch.org, "CUDA semantics", "Whole-network capture".
    """

    def __init__(
        self, gradients: AutogradGradients, parameters: FlatParameters, config: PPOConfig, graph: Graph
    ) -> None:
        super().__init__(gradients, parameters, config)
        self._graph = graph
        self._rows: Rows | None = None
        self._order: Tensor
        self._index = torch.zeros(config.minibatch_size, dtype=torch.int64, device=self._device)
        self._recorded: Tensor | None = None  # where each replay leaves its figures
        self._num_direct = 0

    def prepare(self, rows: Rows, state: Tensor | None = None) -> None:
        if self._rows is None:
            self._rows = rows.clone()
        else:
            self._rows.copy_(rows)

    def shuffle(self, generator: torch.Generator) -> None:
        assert self._rows is not None
        self._order = sent(torch.randperm(len(self._rows), generator=generator), self._device)
        self._stats = []

    def step(self, first: int, last: int, wants_stats: bool) -> None:
        self._index.copy_(self._order[first:last])
        if self._recorded is not None:
            self._graph.replay()
            figures = self._recorded.clone()
        elif self._num_direct < STEPS_BEFORE_RECORDING:
            figures = self._graph.warm(self._step)
            self._num_direct += 1
        else:
            figures = self._record()
        self._stats.append(figures)

    def _step(self) -> Tensor:
        """On the rows of the index; nothing in here may look at what it computes."""
        assert self._rows is not None
        rows = self._rows.take(self._index)
        return self._descend(rows, *self._gradients.forward(rows))

    def _record(self) -> Tensor:
        """A step made directly, then once more by the graph that is recorded of it: they must agree."""
        changed = [self._parameters.vector, *self._optimizer.tensors(), self._num_skipped]
        before = [x.clone() for x in changed]
        figures = self._step().clone()
        gradient = self._unclipped(figures)
        if not bool(gradient.isfinite().all()):
            return figures  # nothing to compare: the next step will do
        for x, earlier in zip(changed, before, strict=True):
            x.copy_(earlier)
        try:
            recorded = self._graph.record(self._step)
        except RuntimeError as error:
            raise ConfigError(
                f"ppo.cuda_graphs: a step cannot be recorded: {error}; use ppo.cuda_graphs=false"
            ) from error
        self._graph.replay()
        difference = float((self._unclipped(recorded) - gradient).norm() / gradient.norm().clamp_min(1e-12))
        if not difference <= MOST_DIFFERENCE:
            raise ConfigError(
                f"ppo.cuda_graphs: the gradient of the recorded step differs from the same step's made directly, by "
                f"{difference:.2g} of its norm; use ppo.cuda_graphs=false"
            )
        self._recorded = recorded
        return figures

    def _unclipped(self, figures: Tensor) -> Tensor:
        """The gradient as it was before it was clipped, after a step with these figures."""
        norm, gradient = figures[self._names.index("grad_norm")], self._parameters.grad
        unclipped: Tensor = gradient * (norm / gradient.norm().clamp_min(1e-12))
        return unclipped
