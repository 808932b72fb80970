"""What gradient steps need of a batch, one row per (step, slot)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Rows:
    """[N, ...] each.

    Attributes:
        observation: raw, by key.
        log_prob: of the action under the acting policy.
        value: at collection.
        weight: 1 for experience, 0 for rows that count for nothing.
    """

    observation: dict[str, Tensor]
    action: Tensor
    log_prob: Tensor
    advantage: Tensor
    target: Tensor
    value: Tensor
    weight: Tensor
    action_mask: Tensor | None = None

    def take(self, index: Tensor) -> Rows:
        """The rows of an index, gathered."""
        fields = {name: x[index] for name, x in vars(self).items() if isinstance(x, Tensor)}
        return Rows(observation={key: x[index] for key, x in self.observation.items()}, **fields)

    def slice(self, first: int, last: int) -> Rows:
        """Views of the rows first..last-1."""
        fields = {name: x[first:last] for name, x in vars(self).items() if isinstance(x, Tensor)}
        return Rows(observation={key: x[first:last] for key, x in self.observation.items()}, **fields)

    def __len__(self) -> int:
        return len(self.weight)
