"""Work on a device that is recorded once and replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Graph(Protocol):
    """What `millrace.learner.steps.GraphedSteps` asks of CUDA."""

    def warm(self, step: Callable[[], Tensor]) -> Tensor:
        """Make a step in earnest, in the way that recording wants the steps before it made."""

    def record(self, step: Callable[[], Tensor]) -> Tensor:
        """Record a step without making it; what it returns is written by every replay."""

    def replay(self) -> None:
        """Make the recorded step."""


class CudaGraph:
    """A `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self._graph: torch.cuda.CUDAGraph | None = None

    def warm(self, step: Callable[[], Tensor]) -> Tensor:
        # On a stream of its own: what autograd notes about streams at the first pass is then fit for recording.
        stream, here = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            result = step()
        here.wait_stream(stream)
        return result

    def record(self, step: Callable[[], Tensor]) -> Tensor:
        self._graph = torch.cuda.CUDAGraph()
        # What other threads of the process ask of CUDA meanwhile must not spoil it.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            return step()

    def replay(self) -> None:
        assert self._graph is not None
        self._graph.replay()
