"""The seam for losses beside PPO's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from millrace.learner.rows import Rows
from millrace.nets.policy import Policy


class Auxiliary(Protocol):
    """An `nn.Module` that is called with each minibatch, and whose scalar is added to the loss of PPO.

    Its own parameters, if it has any, are trained by the same optimiser, their gradients clipped in one norm with
    the policy's. `Policy.features` is what it shares with actor and critic. `examples/reward_prediction.py` is one.
    """

    def __call__(self, policy: Policy, rows: Rows) -> Tensor:
        """The loss, any coefficient included; means over rows are to be weighted by `rows.weight`.

        Args:
            rows: the minibatch; with recurrence the whole sequences of some slots, time-major.
        """

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...
