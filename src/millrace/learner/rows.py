"""What gradient steps need of a batch, one row per (step, slot)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StackedFrames:
    """[N, K, ...] of which every frame is kept once, and gathered when it is needed.

    Attributes:
        frames: [F, ...] all frames.
        index: [N, K] int64 into them, oldest first.
    """

    frames: Tensor
    index: Tensor

    def __getitem__(self, rows: Tensor | slice) -> StackedFrames:
        return StackedFrames(self.frames, self.index[rows])

    def clone(self) -> StackedFrames:
        return StackedFrames(self.frames.clone(), self.index.clone())

    def copy_(self, other: StackedFrames) -> None:
        """Overwrite these with others of the same shapes."""
        self.frames.copy_(other.frames)
        self.index.copy_(other.index)

    def gathered(self) -> Tensor:
        """The stacks themselves."""
        if self.frames.dim() == 3:
            from millrace.learner.planes import can_interleave, interleaved

            if can_interleave(self.frames, self.index.shape[1]):
                return interleaved(self.frames, self.index)
        return self.frames[self.index]


@dataclass
class Rows:
    """[N, ...] each, time-major: N = T x B.

    Attributes:
        observation: raw, by key, as the policy sees it.
        log_prob: of the action under the policy that the objective is clipped around: the acting one, or the one at
            the start of the update.
        value: at collection, or of the policy at the start of the update.
        weight: 1 for experience, 0 for rows that count for nothing.
        begins: where an episode begins; for networks with recurrence only.
        reward: as advantages saw it: scaled, clipped, intrinsic reward added.
        log_importance: log of the probability of the action at the start of the update over that at collection; None
            where nobody asked.
        td_error: temporal-difference error.
    """

    observation: dict[str, Tensor | StackedFrames]
    action: Tensor
    log_prob: Tensor
    advantage: Tensor
    target: Tensor
    value: Tensor
    weight: Tensor
    action_mask: Tensor | None = None
    begins: Tensor | None = None
    reward: Tensor | None = None
    log_importance: Tensor | None = None
    td_error: Tensor | None = None

    def take(self, index: Tensor) -> Rows:
        """The rows of an index, gathered."""
        fields = {name: x[index] for name, x in vars(self).items() if isinstance(x, Tensor)}
        return Rows(observation={key: _taken(x, index) for key, x in self.observation.items()}, **fields)

    def slice(self, first: int, last: int) -> Rows:
        """Views of the rows first..last-1."""
        fields = {name: x[first:last] for name, x in vars(self).items() if isinstance(x, Tensor)}
        return Rows(observation={key: x[first:last] for key, x in self.observation.items()}, **fields)

    def clone(self) -> Rows:
        """The same in memory of its own."""
        fields = {name: x.clone() for name, x in vars(self).items() if isinstance(x, Tensor)}
        return Rows(observation={key: x.clone() for key, x in self.observation.items()}, **fields)

    def copy_(self, other: Rows) -> None:
        """Overwrite these rows with others of the same shapes."""
        for key, x in self.observation.items():
            x.copy_(other.observation[key])  # type: ignore[arg-type]
        for name, x in vars(self).items():
            if isinstance(x, Tensor):
                x.copy_(getattr(other, name))

    def seen(self) -> dict[str, Tensor]:
        """The observations as the policy takes them."""
        return seen(self.observation)

    def __len__(self) -> int:
        return len(self.weight)


def _taken(x: Tensor | StackedFrames, index: Tensor) -> Tensor | StackedFrames:
    if isinstance(x, Tensor) and x.dim() == 4:
        from millrace.learner.planes import can_interleave, interleaved

        if can_interleave(x, x.shape[1]):
            return interleaved(x.flatten(0, 1), index[:, None] * x.shape[1] + torch.arange(x.shape[1]))
    return x[index]


def seen(observation: dict[str, Tensor | StackedFrames]) -> dict[str, Tensor]:
    """Stacks gathered, everything else as it is."""
    return {key: x.gathered() if isinstance(x, StackedFrames) else x for key, x in observation.items()}
