"""Drawing leaves in proportion to their values, in time that grows with the logarithm of their number."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from millrace.compiled import kernel
from millrace.types import Array

CHILDREN = 8
"""Of each node: as many float64 as a cache line holds, so that a level costs about one access to memory."""


class SumTree:
    """Values of 0 or more at leaves 0..num_leaves-1, all 0 at first, and sums of them at the nodes above.

    Nodes are recomputed from their children, never moved by differences: nothing drifts, and the tree is a function
    of the values that its leaves have now, bit for bit.
    """

    def __init__(self, num_leaves: int) -> None:
        self.num_leaves = num_leaves
        sizes = _level_sizes(num_leaves)
        self._nodes = np.zeros(sum(sizes))
        self._offsets = np.cumsum([0, *sizes[:-1]])  # of each level in `_nodes`, leaves first, root last

    @property
    def total(self) -> float:
        """Sum of all values."""
        return float(self._nodes[-1])

    def update(self, leaves: Array, values: ArrayLike) -> None:
        """Set leaves [n] int64 to values [n]; of a repeated leaf the last value stays.

        Raises `ValueError`, with the tree as it was, for a leaf outside the tree and for a value that is
        negative or not finite.
        """
        leaves = np.ascontiguousarray(leaves, np.int64)
        values = np.ascontiguousarray(np.broadcast_to(values, leaves.shape), np.float64)
        wrong = _first_wrong(leaves, values, self.num_leaves)
        if wrong >= 0:
            raise ValueError(
                f"leaf {leaves[wrong]} cannot get the value {values[wrong]}: leaves go from 0 to "
                f"{self.num_leaves - 1}, values are finite and not below 0"
            )
        _update(self._nodes, self._offsets, leaves, values)

    def values(self, leaves: Array) -> Array:
        """Values [n] float64 of leaves [n]."""
        values: Array = self._nodes[: self.num_leaves][leaves]
        return values

    def find(self, mass: Array) -> Array:
        """Leaves [n] int64: for each mass [n] in [0, total) the first one up to which the values sum to more.

        A leaf of value 0 is never found. A mass that rounding brought to the total finds the last leaf above 0.
        """
        if self.total == 0.0:
            raise ValueError("every leaf of the sum tree is 0: there is nothing to find")
        return _find(self._nodes, self._offsets, np.ascontiguousarray(mass, np.float64))

    def sample(self, num: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Leaves [num] int64 and the probability [num] float64 of each.

        One comes from each of `num` equal parts of the total, as by Schaul et al. 2016 (arXiv 1511.05952), appendix
        B.2.1: each leaf is expected as often as in independent draws, with less variance, and may come repeatedly.
        """
        mass = (np.arange(num) + rng.random(num)) * (self.total / num)
        leaves = self.find(mass)
        return leaves, self.values(leaves) / self.total


def _level_sizes(num_leaves: int) -> list[int]:
    """Nodes of each level, leaves first, each filled up to whole families but for the root."""
    sizes = [_families(num_leaves) * CHILDREN]
    while (families := sizes[-1] // CHILDREN) > 1:
        sizes.append(_families(families) * CHILDREN)
    return [*sizes, 1]


def _families(num_nodes: int) -> int:
    return -(-num_nodes // CHILDREN)


@kernel
def _first_wrong(leaves: Array, values: Array, num_leaves: int) -> int:
    """Where the first leaf or value stands that a tree cannot hold, or -1."""
    for i in range(len(leaves)):
        if not (0 <= leaves[i] < num_leaves and 0.0 <= values[i] < np.inf):
            return i
    return -1


@kernel
def _update(nodes: Array, offsets: Array, leaves: Array, values: Array) -> None:
    """Write the leaves, then go up level by level; neighbours with one parent have it summed once."""
    changed = leaves.copy()
    num_changed = len(leaves)
    for i in range(num_changed):
        nodes[leaves[i]] = values[i]
    for level in range(1, len(offsets)):
        num_parents = 0
        for i in range(num_changed):
            parent = changed[i] // CHILDREN
            if num_parents > 0 and changed[num_parents - 1] == parent:
                continue
            nodes[offsets[level] + parent] = _sum_of_children(nodes, offsets[level - 1] + parent * CHILDREN)
            changed[num_parents] = parent
            num_parents += 1
        num_changed = num_parents


@kernel
def _sum_of_children(nodes: Array, first_child: int) -> float:
    total = 0.0
    for child in range(first_child, first_child + CHILDREN):
        total += nodes[child]
    return total


@kernel
def _find(nodes: Array, offsets: Array, mass: Array) -> Array:
    """All go down together, level by level: their accesses to memory overlap."""
    found = np.zeros(len(mass), np.int64)
    rest = mass.copy()
    for level in range(len(offsets) - 2, -1, -1):
        for i in range(len(mass)):
            family = offsets[level] + found[i] * CHILDREN
            child, rest[i] = _child_at(nodes, family, rest[i])
            found[i] = found[i] * CHILDREN + child
    return found


@kernel
def _child_at(nodes: Array, family: int, mass: float) -> tuple[int, float]:
    """Which of the children of a node above 0 has the mass in it, and the mass within that child.

    Where rounding leaves mass behind the last child, that is the last one above 0.
    """
    chosen, within = 0, mass
    for child in range(CHILDREN):
        value = nodes[family + child]
        if value > 0.0:
            chosen, within = child, mass
            if mass < value:
                break
            mass -= value
    return chosen, within
