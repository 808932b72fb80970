"""Realm as an environment: steps per second on one core, observations included, beside what the memory allows.

    python -m benchmarks.realm_env [--env millrace/Realm-v0] [--repeats 7]

Steps go through `GameSlots`, as a collector takes them, with random legal actions, and each writes into the next row of
a rollout, as in training: so they write to memory that is in no cache. Only CPU time within `step` counts; choosing the
actions does not. The limit is what filling the same rows with a constant reaches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import machine
from millrace.config import EnvConfig
from millrace.envs.make import EnvMaker
from millrace.envs.protocol import EnvRow, SlotEnv

SLOTS = (1, 16, 64, 256)
STEPS_PER_REPEAT = 60_000
ROLLOUT_BYTES = 128e6
RESULTS = Path(__file__).parent / "results" / "realm-env.json"


def rollout_rows(env: SlotEnv, num_steps: int) -> list[EnvRow]:
    """The rows of one rollout, views into one block for each array."""
    slots, spec = env.num_slots, env.spec
    observation = {key: np.ones((num_steps, slots, *one.shape), one.dtype) for key, one in spec.observation.items()}
    mask = np.ones((num_steps, slots, spec.num_mask_bits), bool)
    reward = np.zeros((num_steps, slots), np.float32)
    flags = np.zeros((3, num_steps, slots), bool)
    return [
        EnvRow({key: array[t] for key, array in observation.items()}, mask[t], reward[t], *flags[:, t])
        for t in range(num_steps)
    ]


def bytes_per_slot(row: EnvRow) -> float:
    """Bytes of one slot's observation."""
    return sum(array.nbytes for array in row.observation.values()) / len(row.reward)


def random_legal_actions(rng: np.random.Generator, row: EnvRow) -> np.ndarray:
    """One for each slot, [B, 1]; the mask's legal actions come first."""
    assert row.action_mask is not None
    return rng.integers(0, row.action_mask.sum(axis=1))[:, None]


def steps_per_second(env: SlotEnv, rows: list[EnvRow], rng: np.random.Generator) -> float:
    """Of one repeat."""
    cpu_ns, row = 0, rows[0]
    env.reset(row)
    calls = max(STEPS_PER_REPEAT // env.num_slots, 200)
    for call in range(calls):
        action = random_legal_actions(rng, row)
        row = rows[call % len(rows)]
        started = time.thread_time_ns()
        env.step(action, row)
        cpu_ns += time.thread_time_ns() - started
    return calls * env.num_slots / (cpu_ns * 1e-9)


def fills_per_second(rows: list[EnvRow]) -> float:
    """Slots' observations per second when they are filled with a constant."""
    started = time.thread_time_ns()
    for row in rows:
        for array in row.observation.values():
            array.fill(1)
    return len(rows) * len(rows[0].reward) / ((time.thread_time_ns() - started) * 1e-9)


def measure(env_id: str, num_slots: int, repeats: int) -> dict[str, Any]:
    """Medians over the repeats for one number of slots."""
    env = EnvMaker(EnvConfig(id=env_id)).make(num_slots, seed=0)
    size = bytes_per_slot(rollout_rows(env, 1)[0])
    rows = rollout_rows(env, max(2, min(128, int(ROLLOUT_BYTES / size / num_slots))))
    rng = np.random.default_rng(0)
    steps_per_second(env, rows, rng)
    steps = [steps_per_second(env, rows, rng) for _ in range(repeats)]
    fills = [fills_per_second(rows) for _ in range(repeats)]
    return {
        "slots": num_slots,
        "steps_per_second": statistics.median(steps),
        "range": [min(steps), max(steps)],
        "written_gb_per_second": statistics.median(steps) * size * 1e-9,
        "fills_per_second": statistics.median(fills),
        "fill_gb_per_second": statistics.median(fills) * size * 1e-9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="millrace/Realm-v0")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    rows = [measure(arguments.env, slots, arguments.repeats) for slots in SLOTS]
    if arguments.env == "millrace/Realm-v0":
        RESULTS.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))
    print("| slots | steps/s, one core | written, GB/s | limit: filling the rows, steps/s | share of it |")
    print("| --- " * 5 + "|")
    for row in rows:
        low, high = row["range"]
        share = row["steps_per_second"] / row["fills_per_second"]
        print(
            f"| {row['slots']} | {row['steps_per_second']:,.0f} [{low:,.0f}..{high:,.0f}] "
            f"| {row['written_gb_per_second']:.2f} | {row['fills_per_second']:,.0f} | {share:.2f} |"
        )


if __name__ == "__main__":
    main()
