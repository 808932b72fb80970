"""Gradients of a 64-64 actor-critic by hand and by autograd, alternating: microseconds of CPU per row and epoch.

OPENBLAS_NUM_THREADS=1 python -m benchmarks.gradients
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import torch

from benchmarks.harness import machine
from millrace.config import NetConfig, PPOConfig
from millrace.learner.flat import Adam, FlatParameters
from millrace.learner.gradients import Gradients, make_gradients
from millrace.learner.rows import Rows
from millrace.nets.policy import Policy
from millrace.types import ActionSpec, ArraySpec, SlotSpec

NUM_ROWS, REPEATS = 8192, 11
SPEC = SlotSpec({"obs": ArraySpec((4,), "float32")}, ActionSpec((2,)))
RESULTS = Path(__file__).parent / "results" / "gradients.json"


def make_rows() -> Rows:
    """Rows that look like CartPole's."""
    torch.manual_seed(0)
    normal = torch.randn(4, NUM_ROWS)
    action = torch.randint(0, 2, (NUM_ROWS, 1), dtype=torch.int32)
    log_prob = torch.full((NUM_ROWS,), -0.69)
    return Rows({"obs": torch.randn(NUM_ROWS, 4)}, action, log_prob, *normal[:3], torch.ones(NUM_ROWS))


def make(threads: int) -> tuple[Gradients, Adam, FlatParameters]:
    """By hand for one thread, by autograd for more; both are then run with one."""
    torch.manual_seed(0)
    policy = Policy(SPEC, NetConfig())
    parameters = FlatParameters(policy.parameters())
    config = PPOConfig(threads=threads)
    return make_gradients(policy, parameters, config), Adam(parameters, config.adam_eps), parameters


def epoch_us(parts: tuple[Gradients, Adam, FlatParameters], minibatch_size: int) -> float:
    """CPU microseconds per row of one epoch, optimiser included."""
    gradients, adam, parameters = parts
    begin = time.process_time()
    gradients.shuffle(torch.Generator().manual_seed(0))
    for first in range(0, NUM_ROWS, minibatch_size):
        gradients.compute(first, first + minibatch_size, 0.2, wants_stats=False)
        parameters.clip_grad(0.5)
        adam.step(1e-4)
    return (time.process_time() - begin) / NUM_ROWS * 1e6


def main() -> None:
    torch.set_num_threads(1)
    rows, table = make_rows(), []
    contenders = {"by hand": make(1), "autograd": make(2)}
    for parts in contenders.values():
        parts[0].prepare(rows)
    print("| minibatch | " + " | ".join(contenders) + " | ratio |\n" + "| --- " * 4 + "|")
    for size in (64, 256, 1024, 2048, 4096):
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(REPEATS):
            for name, parts in contenders.items():
                times[name].append(epoch_us(parts, size))
        medians = {name: statistics.median(values[1:]) for name, values in times.items()}
        ratio = medians["autograd"] / medians["by hand"]
        table.append({"minibatch_size": size, **medians, "ratio": ratio})
        print(f"| {size} | " + " | ".join(f"{us:.2f}" for us in medians.values()) + f" | {ratio:.1f} |", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine(), "unit": "us per row and epoch", "rows": table}, indent=1))


if __name__ == "__main__":
    main()
