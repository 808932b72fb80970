"""What a GPU makes of the learner, of transfers and of whole runs: each setting on and off, alternating.

python -m benchmarks.gpu [learner|transfers|runs|all] [--device cuda] [--repeats 5] [--workers 14]

`--device cpu` runs what a CPU can, which shows that this program works and nothing else.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import millrace
from benchmarks.envs import MapEnv
from benchmarks.harness import machine
from millrace.buffer.batch import Batch, Item
from millrace.buffer.queue import RolloutQueue
from millrace.buffer.slab import Slab
from millrace.config import NetConfig, PPOConfig
from millrace.errors import MillraceError
from millrace.learner.ppo import Learner
from millrace.learner.uploads import Uploads
from millrace.nets.policy import Policy
from millrace.system import SharedBlock
from millrace.types import ActionSpec, ArraySpec, Rollout, RolloutLayout, SlotSpec

RESULTS = Path(__file__).parent / "results" / "gpu.json"
STEPS, SLOTS = 128, 8
STACK = ArraySpec((84, 84), "uint8", scale=1 / 255, stack=4)
MAPS = {"map": ArraySpec((4, 51, 51), "uint8", scale=1 / 255), "vector": ArraySpec((31,), "float32")}
WORKS = {
    "nature": (SlotSpec({"obs": STACK}, ActionSpec((6,))), NetConfig(image="nature")),
    "dict": (SlotSpec(MAPS, ActionSpec((16,)), has_action_mask=True), NetConfig(image="small")),
    "impala": (SlotSpec({"obs": STACK}, ActionSpec((6,))), NetConfig(image="impala")),
    "dense": (SlotSpec({"obs": ArraySpec((8,), "float32")}, ActionSpec((4,))), NetConfig(hidden=(64, 64))),
}
GRAPHS = {"cuda_graphs": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "queued": {},
    "queued, bf16": {"precision": "bf16"},
    "queued, compiled": {"compile": True},
    "graph": GRAPHS,
    "graph, bf16": GRAPHS | {"precision": "bf16"},
    "graph, compiled, bf16": GRAPHS | {"compile": True, "precision": "bf16"},
}
Table = dict[str, dict[str, Any]]


def make_learner(work: str, num_rows: int, device: str, **settings: Any) -> Learner:
    """4 epochs of 4 minibatches, as Pong is trained."""
    spec, net = WORKS[work]
    torch.manual_seed(0)
    policy = Policy(spec, net).to(device)
    config = PPOConfig(minibatch_size=num_rows // 4, epochs=4, threads=2, **settings)
    return Learner(policy, config, total_env_steps=10**9, seed=0)


def fill(rollout: Rollout, rng: np.random.Generator) -> None:
    """Noise that could be experience."""
    for array in rollout.observation.values():
        array[:] = rng.integers(256, size=array.shape) if array.dtype == np.uint8 else rng.normal(size=array.shape)
    rollout.action[:] = rng.integers(4, size=rollout.action.shape)
    rollout.log_prob[:] = -1.5
    rollout.value[:], rollout.reward[:] = (rng.normal(size=x.shape) for x in (rollout.value, rollout.reward))
    rollout.valid[:] = True
    if rollout.action_mask is not None:
        rollout.action_mask[:] = 255
    if rollout.age is not None:
        rollout.age[:] = np.minimum(np.arange(STEPS + 1), 255)[:, None]


def make_batch(work: str, workers: int) -> Batch:
    """What so many workers with 8 slots of 128 steps bring."""
    slots = SLOTS * workers
    rollout = RolloutLayout(WORKS[work][0], STEPS, slots).allocate()
    fill(rollout, np.random.default_rng(0))
    return Batch(rollout, [Item(0, 0, 0)], slots, 0, STEPS * slots)


def learner_rates(work: str, device: str, workers: int, repeats: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows a second of whole updates, taking turns; and how far weights are from those of the first variant."""
    batch = make_batch(work, workers)
    num_rows = batch.env_steps
    learners: dict[str, Learner] = {}
    for name, settings in VARIANTS.items():
        try:
            learners[name] = make_learner(work, num_rows, device, **settings)
            learners[name].update(batch, 0)  # compiles, warms up, records
        except MillraceError as error:
            learners.pop(name, None)
            yield name, {"error": str(error)}
    spans = turns({name: functools.partial(learner.update, batch, 0) for name, learner in learners.items()}, repeats)
    first = next(iter(learners.values())).weights()
    for name, learner in learners.items():
        rates = spread([num_rows / span for span in spans[name]])
        yield name, rates | {"weights_differ_by": float(np.abs(learner.weights() - first).max())}


def transfer_rates(work: str, device: str, workers: int, repeats: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Seconds from one update's end to the next one's, where the next batch arrives while the device is at work."""
    cycles = {
        name: Cycle(work, device, workers, is_early, overlap)
        for name, is_early, overlap in (
            ("from pageable memory, at the update", False, False),
            ("from page-locked memory, at the update", False, True),
            ("as each rollout arrives", True, True),
        )
        if device != "cpu" or not is_early
    }
    spans = turns({name: cycle.run for name, cycle in cycles.items()}, repeats)
    for name, cycle in cycles.items():
        yield name, spread([cycle.num_rows / span for span in spans[name]])
        cycle.close()


class Cycle:
    """A learner behind a queue, whose rollouts come from nobody: one arrives at each look while the device computes."""

    def __init__(self, work: str, device: str, workers: int, is_early: bool, overlap_transfers: bool) -> None:
        layout = RolloutLayout(WORKS[work][0], STEPS, SLOTS)
        num_places = 2 * workers + 1
        slab = Slab(layout, num_places, SharedBlock(Slab.nbytes(layout, num_places)))
        rng = np.random.default_rng(0)
        for rollout in slab.rollouts:
            fill(rollout, rng)
        self.num_rows, self._workers, self._slab = workers * SLOTS * STEPS, workers, slab
        self._uploads = Uploads(slab, device) if is_early else None
        self._queue = RolloutQueue(slab, workers, 1, self._uploads)
        self._learner = make_learner(work, self.num_rows, device, overlap_transfers=overlap_transfers)
        self._arrive(workers)
        self.run()

    def _arrive(self, count: int) -> None:
        for _ in range(min(count, self._workers - len(self._queue))):
            self._queue.insert(Item(len(self._queue), self._learner.updates, self._slab.acquire()))

    def run(self) -> None:
        """One update; the next batch is there at its end."""
        batch = self._queue.take(self._learner.updates)
        is_on_cpu = next(self._learner.policy.parameters()).device.type == "cpu"
        self._learner.update(batch, 0, None if is_on_cpu else lambda seconds: self._arrive(1))
        self._arrive(self._workers)

    def close(self) -> None:
        if self._uploads is not None:
            self._uploads.close()


def run_rates(device: str, workers: int, repeats: int, seconds: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Agent steps a second of `millrace.train` on maps that cost next to nothing to make."""
    variants = {"as it is": {}, "without overlap": {"ppo.overlap_transfers": False}, "bf16": {"ppo.precision": "bf16"}}
    if device != "cpu":
        variants |= {"graph": {"ppo.cuda_graphs": True}, "local inference": {"collect.inference": "local"}}
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, settings in variants.items():
            found[name].append(steps_per_second(device, workers, seconds, settings))
    for name, rates in found.items():
        yield name, spread(rates)


def steps_per_second(device: str, workers: int, seconds: float, settings: dict[str, Any]) -> float:
    """Of one run."""
    with tempfile.TemporaryDirectory() as run_dir:
        result = millrace.train(
            MapEnv,
            settings={"stop.wall_s": seconds, "ppo.minibatches": 4, **settings},
            device=device,
            workers=workers,
            total_env_steps=10**9,
            run_dir=run_dir,
            quiet=True,
        )
        return result.steps_per_second


def turns(steps: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, taking turns."""
    spans: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            spans[name].append(time.perf_counter() - begin)
    return spans


def spread(rates: list[float]) -> dict[str, float]:
    return {"median": statistics.median(rates), "low": min(rates), "high": max(rates)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", default="all", choices=["learner", "transfers", "runs", "all"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--works", default=",".join(WORKS))
    parser.add_argument("--seconds", type=float, default=30.0, help="of each whole run")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; `millrace doctor` says why")
    device, workers, repeats = arguments.device, arguments.workers, arguments.repeats
    table: Table = {}
    sources: dict[str, Iterator[tuple[str, dict[str, Any]]]] = {}
    for work in arguments.works.split(","):
        if arguments.part in ("learner", "all"):
            sources[f"learner, {work}, rows/s"] = learner_rates(work, device, workers, repeats)
        if arguments.part in ("transfers", "all"):
            sources[f"transfers, {work}, rows/s"] = transfer_rates(work, device, workers, repeats)
    if arguments.part in ("runs", "all"):
        sources["runs, steps/s"] = run_rates(device, workers, min(repeats, 3), arguments.seconds)
    print("| what | setting | median | lowest | highest |\n" + "| --- " * 5 + "|")
    for title, source in sources.items():
        for name, figures in source:
            table.setdefault(title, {})[name] = figures
            numbers = " | ".join(f"{figures[key]:,.0f}" for key in ("median", "low", "high") if key in figures)
            print(f"| {title} | {name} | {numbers or figures['error']} |", flush=True)
    if device != "cpu":
        gpu = torch.cuda.get_device_name()
        RESULTS.write_text(json.dumps({"machine": machine() | {"gpu": gpu}, "figures": table}, indent=1))


if __name__ == "__main__":
    main()
