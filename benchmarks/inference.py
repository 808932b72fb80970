"""One forward pass of a policy on one thread, alternating: NumPy, torch eager and compiled, ONNX Runtime.

    python -m benchmarks.inference [--repeats 2000] [--no-compile]

Microseconds for one observation and for 64, as an actor is called: NumPy in, parameters and values out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

from benchmarks.harness import machine
from millrace.config import EnvConfig, NetConfig
from millrace.deploy.onnx_export import export_onnx, random_inputs
from millrace.deploy.onnx_policy import OnnxPolicy, input_name
from millrace.deploy.record import PolicyRecord
from millrace.envs.spaces import slot_spec
from millrace.nets.actor import ActorMaker
from millrace.nets.policy import Policy
from millrace.nets.torch_actor import TorchActor

Box = gym.spaces.Box
MAPS = gym.spaces.Dict({"map": Box(0, 255, (4, 51, 51), np.uint8), "vector": Box(-1, 1, (31,))})
WORKS = {
    "MLP 64-64": (Box(-1, 1, (4,)), NetConfig()),
    "CNN + vector": (MAPS, NetConfig()),
    "GRU 64": (Box(-1, 1, (4,)), NetConfig(hidden=(64,), memory="gru", memory_size=64)),
}
SIZES = (1, 64)
RESULTS = Path(__file__).parent / "results" / "inference.json"
Call = Callable[[], object]


def calls(observation: gym.Space, net: NetConfig, num_rows: int, compiles: bool, folder: Path) -> dict[str, Call]:
    """Every way to run one network, by name."""
    spec = slot_spec(observation, gym.spaces.Discrete(4), mask_in_info=False)
    torch.manual_seed(0)
    policy = Policy(spec, net).eval()
    record = PolicyRecord(EnvConfig("CartPole-v1"), spec, observation, gym.spaces.Discrete(4), net)
    about = {"format_version": 2, "millrace_version": "0", "env_steps": 0}
    export_onnx(folder / "policy.onnx", record, policy, about)
    inputs = random_inputs(policy, num_rows, np.random.default_rng(0))
    rows = {key: inputs[input_name(key)] for key in spec.observation}
    state = np.zeros((num_rows, policy.state_size), np.float32) if policy.state_size else None

    def call(actor: object) -> Call:
        actor.load(policy.flat_weights())
        return lambda: actor.forward(rows, state)

    found = {"torch": call(TorchActor(spec, net, False))}
    if compiles:
        compiled = TorchActor(spec, net, False)
        compiled.policy.network.forward = torch.compile(compiled.policy.network.forward)
        found["torch compiled"] = call(compiled)
    found["ONNX Runtime"] = call(OnnxPolicy(folder / "policy.onnx").make_actor(spec))
    maker = ActorMaker(spec, net)
    if not maker.needs_torch:
        found["NumPy"] = call(maker.make())
    return found


def microseconds(steps: dict[str, Call], repeats: int) -> dict[str, dict[str, float]]:
    """Median and 99th percentile of each, taking turns in blocks of ten."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(20):
            step()
    for _ in range(repeats // 10):
        for name, step in steps.items():
            for _ in range(10):
                begin = time.perf_counter()
                step()
                taken[name].append((time.perf_counter() - begin) * 1e6)
    return {
        name: {"median_us": statistics.median(times), "p99_us": statistics.quantiles(times, n=100)[98]}
        for name, times in taken.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table: dict[str, dict[str, dict[str, float]]] = {}
    print("| network | rows | runs in | median, us | p99, us | x torch |\n" + "| --- " * 6 + "|")
    for title, (observation, net) in WORKS.items():
        for num_rows in SIZES:
            with tempfile.TemporaryDirectory() as folder:
                steps = calls(observation, net, num_rows, not arguments.no_compile, Path(folder))
                repeats = max(100, arguments.repeats // num_rows) if title == "CNN + vector" else arguments.repeats
                figures = table[f"{title}, {num_rows} rows"] = microseconds(steps, repeats)
            eager = figures["torch"]["median_us"]
            for name, found in figures.items():
                cells = f"{found['median_us']:.1f} | {found['p99_us']:.1f} | {eager / found['median_us']:.1f}"
                print(f"| {title} | {num_rows} | {name} | {cells} |", flush=True)
    RESULTS.write_text(json.dumps({"machine": machine(), "figures": table}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
