"""Fixed places for rollouts: indices travel, arrays stay."""

from __future__ import annotations

import os

import numpy as np

from millrace.system import SharedBlock
from millrace.types import Array, Rollout, RolloutLayout

POISON = os.environ.get("MILLRACE_POISON") == "1"  # tests: reading a released place shows at once


class Slab:
    """`num_rollouts` rollouts of one layout in one block of memory."""

    def __init__(self, layout: RolloutLayout, num_rollouts: int, block: SharedBlock) -> None:
        self.layout, self._block = layout, block
        self.rollouts: list[Rollout] = [
            layout.view(block.memory, index * layout.nbytes) for index in range(num_rollouts)
        ]
        self._free = list(range(num_rollouts))

    def stacked(self) -> dict[str, Array]:
        """Every field by its flat name over all places at once, [rows, P, B, ...]: views of the same memory."""
        views = {}
        for name, array in self.rollouts[0].fields():
            shape, strides = (len(self.rollouts), *array.shape), (self.layout.nbytes, *array.strides)
            views[name] = np.moveaxis(np.lib.stride_tricks.as_strided(array, shape, strides), 1, 0)
        return views

    @staticmethod
    def nbytes(layout: RolloutLayout, num_rollouts: int) -> int:
        return layout.nbytes * num_rollouts

    @property
    def memory(self) -> memoryview:
        """All of it."""
        return memoryview(self._block.memory)

    def lay(self, index: int, memory: memoryview) -> None:
        """Put a rollout that came from elsewhere, as it lies in memory, into a place."""
        offset = index * self.layout.nbytes
        self._block.memory[offset : offset + self.layout.nbytes] = memory

    @property
    def num_free(self) -> int:
        return len(self._free)

    def acquire(self) -> int:
        """The index of a free place, now taken."""
        return self._free.pop(0)

    def release(self, index: int) -> None:
        """Give a place back."""
        assert index not in self._free, f"rollout place {index} released twice"
        if POISON:
            for _, array in self.rollouts[index].fields():
                array[...] = np.nan if array.dtype.kind == "f" else 1
        self._free.append(index)


class LooseSlab(Slab):
    """Places for rollouts that come with memory of their own, which is let go when their place is released."""

    def __init__(self, layout: RolloutLayout, num_rollouts: int) -> None:
        self.layout = layout
        self._blank = layout.allocate()
        self.rollouts = [self._blank] * num_rollouts
        self._free = list(range(num_rollouts))

    def lay(self, index: int, memory: memoryview) -> None:
        self.rollouts[index] = self.layout.view(memory)

    def release(self, index: int) -> None:
        assert index not in self._free, f"rollout place {index} released twice"
        self.rollouts[index] = self._blank
        self._free.append(index)
