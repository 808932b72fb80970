"""Sum tree of the replay buffer beside a vectorised NumPy binary tree, alternating: microseconds of CPU per call.

OPENBLAS_NUM_THREADS=1 python -m benchmarks.sum_tree
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import machine
from millrace.buffer.sum_tree import SumTree

NUM_LEAVES, DRAW, BULK = 10**6, 128, 32 * 64
CALLS, REPEATS = 100, 31
RESULTS = Path(__file__).parent / "results" / "sum-tree.json"
Tree = Any


class NumpyTree:
    """Two children per node, each level one NumPy expression; nodes 1.. from the root, leaves last."""

    def __init__(self, num_leaves: int) -> None:
        self.num_levels = (num_leaves - 1).bit_length()
        self.first_leaf = 1 << self.num_levels
        self.nodes = np.zeros(2 * self.first_leaf)

    def update(self, leaves: np.ndarray, values: np.ndarray) -> None:
        node = leaves + self.first_leaf
        self.nodes[node] = values
        for _ in range(self.num_levels):
            node = node >> 1
            self.nodes[node] = self.nodes[2 * node] + self.nodes[2 * node + 1]

    def sample(self, num: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        total = self.nodes[1]
        mass = (np.arange(num) + rng.random(num)) * (total / num)
        node = np.ones(num, np.int64)
        for _ in range(self.num_levels):
            node = 2 * node
            left = self.nodes[node]
            is_right = mass >= left
            mass = mass - left * is_right
            node = node + is_right
        return node - self.first_leaf, self.nodes[node] / total


def sample(tree: Tree, rng: np.random.Generator) -> None:
    tree.sample(DRAW, rng)


def sample_and_update(tree: Tree, rng: np.random.Generator) -> None:
    leaves, _ = tree.sample(DRAW, rng)
    tree.update(leaves, rng.random(DRAW))


def update_anywhere(tree: Tree, rng: np.random.Generator) -> None:
    tree.update(rng.integers(0, NUM_LEAVES, DRAW), rng.random(DRAW))


def update_bulk(tree: Tree, rng: np.random.Generator) -> None:
    tree.update(np.arange(BULK) + rng.integers(0, NUM_LEAVES - BULK), rng.random(BULK))


WORKS = {
    f"sample {DRAW}": sample,
    f"sample {DRAW}, then update them": sample_and_update,
    f"update {DRAW} anywhere": update_anywhere,
    f"update {BULK} side by side": update_bulk,
}


def filled(tree: Tree) -> Tree:
    """The tree with the same random values at every leaf, each method called once (Numba compiles then)."""
    rng = np.random.default_rng(0)
    tree.update(np.arange(NUM_LEAVES), rng.random(NUM_LEAVES))
    sample_and_update(tree, rng)
    return tree


def call_us(work: Callable[[Tree, np.random.Generator], None], tree: Tree, seed: int) -> float:
    """CPU microseconds of one call, drawing of random numbers included."""
    rng = np.random.default_rng(seed)
    begin = time.process_time()
    for _ in range(CALLS):
        work(tree, rng)
    return (time.process_time() - begin) / CALLS * 1e6


def main() -> None:
    contenders = {"SumTree": filled(SumTree(NUM_LEAVES)), "NumPy": filled(NumpyTree(NUM_LEAVES))}
    table: list[dict[str, Any]] = []
    print(f"| of {NUM_LEAVES} leaves | " + " | ".join(contenders) + " | ratio |\n" + "| --- " * 4 + "|")
    for name, work in WORKS.items():
        times: dict[str, list[float]] = {contender: [] for contender in contenders}
        for repeat in range(REPEATS):
            for contender, tree in contenders.items():
                times[contender].append(call_us(work, tree, repeat))
        medians = {contender: statistics.median(values) for contender, values in times.items()}
        ratio = medians["NumPy"] / medians["SumTree"]
        table.append({"work": name, **medians, "ratio": ratio})
        print(f"| {name} | " + " | ".join(f"{us:.1f}" for us in medians.values()) + f" | {ratio:.1f} |", flush=True)
    RESULTS.write_text(json.dumps({"machine": machine(), "unit": "us of CPU per call", "rows": table}, indent=1))


if __name__ == "__main__":
    main()
