"""Forward and backward of image networks on minibatches of 256, by layout, precision and compilation, alternating.

python -m benchmarks.image_learner [--threads 1,2] [--repeats 9] [--compile]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.harness import machine
from millrace.config import NetConfig, PPOConfig
from millrace.learner.autograd import AutogradGradients
from millrace.learner.flat import Adam, FlatParameters
from millrace.learner.planes import CHANNELS, interleaved
from millrace.learner.rows import Rows
from millrace.nets.actor import ActorMaker
from millrace.nets.policy import Policy
from millrace.types import ActionSpec, ArraySpec, SlotSpec

BATCH = 256
RESULTS = Path(__file__).parent / "results" / "image-learner.json"
STACK = ArraySpec((84, 84), "uint8", scale=1 / 255, stack=4)
MAPS = {"map": ArraySpec((4, 51, 51), "uint8", scale=1 / 255), "vector": ArraySpec((31,), "float32")}
WORKS = {
    "nature": (SlotSpec({"obs": STACK}, ActionSpec((6,))), NetConfig(image="nature")),
    "dict": (SlotSpec(MAPS, ActionSpec((16,))), NetConfig(image="small")),
    "impala": (SlotSpec({"obs": STACK}, ActionSpec((6,))), NetConfig(image="impala")),
}
Work = tuple[SlotSpec, NetConfig]
Table = dict[str, dict[str, dict[str, float]]]


def observations(spec: SlotSpec, num_rows: int) -> dict[str, Tensor]:
    """Noise of the right types."""
    torch.manual_seed(0)
    found = {}
    for key, array in spec.observation.items():
        shape = (num_rows, *array.seen_shape)
        found[key] = torch.randint(0, 256, shape, dtype=torch.uint8) if array.is_image else torch.randn(shape)
    return found


class PlainNetwork(nn.Module):
    """The network as it is usually written: channels first, everything flattened into one dense layer."""

    def __init__(self, spec: SlotSpec, net: NetConfig) -> None:
        super().__init__()
        body = Policy(spec, net).network.body
        self.image_key, self.dense_keys = body.image_keys[0], body.dense_keys
        encoder = body.encoders[self.image_key]
        self.convolutions = encoder.convolutions.to(memory_format=torch.contiguous_format)
        self.scale = spec.observation[self.image_key].scale
        width = (
            encoder.dense[0].weight[0].numel()
            if isinstance(encoder.dense[0], nn.Conv2d)
            else encoder.dense[1].in_features
        )
        num_dense = sum(spec.observation[key].num_inputs for key in self.dense_keys)
        self.beside = nn.Linear(num_dense, 64) if num_dense else None
        self.dense = nn.Linear(width + 64 * bool(num_dense), body.num_features)
        self.heads = nn.Linear(body.num_features, spec.action.num_params + 1)

    def forward(self, observation: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        parts = [self.convolutions(observation[self.image_key].float() * self.scale).flatten(1)]
        if self.beside is not None:
            parts.append(torch.relu(self.beside(torch.cat([observation[key] for key in self.dense_keys], 1))))
        outputs = self.heads(torch.relu(self.dense(torch.cat(parts, 1)))).float()
        return outputs[:, :-1], outputs[:, -1]


def as_minibatch(spec: SlotSpec, forward: Callable[..., tuple[Tensor, Tensor]], module: nn.Module, precision: str):
    """One gradient with the layout, loss and parameters of the learner."""
    parameters = FlatParameters(module.parameters())
    rows = observations(spec, BATCH)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    def step() -> None:
        with autocast:
            params, value = forward(rows)
        parameters.grad.zero_()
        (params.square().mean() + value.square().mean()).backward()

    return step


def learner_step(work: Work, **config: object) -> Callable[[], None]:
    """A gradient of the learner itself, loss included."""
    spec, net = work
    torch.manual_seed(0)
    policy = Policy(spec, net)
    gradients = AutogradGradients(policy, FlatParameters(policy.parameters()), PPOConfig(**config))
    noise = torch.randn(5, BATCH)
    action = torch.zeros(BATCH, 1, dtype=torch.int32)
    gradients.prepare(Rows(observations(spec, BATCH), action, *noise[:4], torch.ones(BATCH)))
    gradients.shuffle(torch.Generator().manual_seed(0))
    return lambda: gradients.compute(0, BATCH, 0.2, wants_stats=False) and None


def candidates(work: Work, compiles: bool) -> dict[str, Callable[[], None]]:
    """Every variant by name: plain torch, then the learner with its settings."""
    spec, net = work
    plain = PlainNetwork(spec, net)
    found = {
        "plain": as_minibatch(spec, plain, plain, "fp32"),
        "learner": learner_step(work),
        "learner bf16": learner_step(work, precision="bf16"),
    }
    if compiles:
        found["plain compiled"] = as_minibatch(spec, torch.compile(plain), plain, "fp32")
        found["learner compiled"] = learner_step(work, compile=True)
        found["learner bf16 compiled"] = learner_step(work, compile=True, precision="bf16")
    return found


def conversions(spec: SlotSpec) -> dict[str, Callable[[], object]]:
    """A minibatch of stacks of frames out of a batch of 1024 as floats, channels last."""
    images = observations(spec, 1024)["obs"]
    floats = images.float()
    index = torch.randperm(1024)[:BATCH]
    last = torch.channels_last
    planes, stacks = images.flatten(0, 1), index[:, None] * CHANNELS + torch.arange(CHANNELS)
    return {
        "interleave bytes, convert (ours)": lambda: interleaved(planes, stacks).float().mul_(1 / 255),
        "interleave bytes, convert to bfloat16 (ours)": lambda: interleaved(planes, stacks).bfloat16().mul_(1 / 255),
        "gather bytes, move, convert": lambda: images[index].contiguous(memory_format=last).float().mul_(1 / 255),
        "gather bytes, convert, move": lambda: images[index].float().mul_(1 / 255).contiguous(memory_format=last),
        "gather bytes, convert and move at once": lambda: (
            images[index].to(torch.float32, memory_format=last).mul_(1 / 255)
        ),
        "gather floats converted before, move": lambda: floats[index].mul_(1 / 255).contiguous(memory_format=last),
    }


def optimizers(num_parameters: int) -> dict[str, Callable[[], object]]:
    """A step of ours, and of torch's with all that is around it."""
    parameter = nn.Parameter(torch.randn(num_parameters))
    parameters = FlatParameters([parameter])
    ours = Adam(parameters, 1e-5)
    theirs = torch.optim.Adam([parameter], fused=True)
    return {"adam": lambda: ours.step(1e-3), "torch.optim.Adam, fused": theirs.step}


def actors(work: Work) -> dict[str, Callable[[], object]]:
    """Inference of a collector for 8 and 64 slots, and as it is usually written."""
    spec, net = work
    policy, plain = Policy(spec, net), PlainNetwork(spec, net)
    actor = ActorMaker(spec, net).make()
    actor.load(policy.flat_weights())
    found: dict[str, Callable[[], object]] = {}
    for size in (8, 64):
        rows = observations(spec, size)
        arrays = {key: x.numpy() for key, x in rows.items()}

        def bare(rows: dict[str, Tensor] = rows) -> object:
            with torch.inference_mode():
                return plain(rows)

        found[f"inference plain {size}"] = bare
        found[f"inference {size}"] = lambda arrays=arrays: actor.forward(arrays)
    return found


def medians_ms(steps: dict[str, Callable[[], object]], repeats: int) -> dict[str, dict[str, float]]:
    """Wall and CPU milliseconds of each, taking turns; the first round warms up."""
    wall: dict[str, list[float]] = {name: [] for name in steps}
    cpu: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(repeats):
        for name, step in steps.items():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            step()
            wall[name].append((time.perf_counter() - begin) * 1e3)
            cpu[name].append((time.process_time() - begin_cpu) * 1e3)
    return {name: {"wall_ms": statistics.median(wall[name]), "cpu_ms": statistics.median(cpu[name])} for name in steps}


def measure(title: str, threads: int, steps: dict[str, Callable[[], object]], repeats: int, table: Table) -> None:
    """Add to the table and print."""
    table[f"{title}, {threads} threads"] = figures = medians_ms(steps, repeats)
    for name, found in figures.items():
        print(f"| {title} | {threads} | {name} | {found['wall_ms']:.3g} | {found['cpu_ms']:.3g} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    table: Table = {}
    print("| work | threads | variant | ms | ms of CPU |\n" + "| --- " * 5 + "|")
    for threads in map(int, arguments.threads.split(",")):
        torch.set_num_threads(threads)
        for title, work in WORKS.items():
            torch.compiler.reset()  # it gives up on a function that it has compiled eight times
            steps = candidates(work, arguments.compile)
            measure(title, threads, steps | (actors(work) if title == "nature" else {}), arguments.repeats, table)
        measure("bytes to floats", threads, conversions(WORKS["nature"][0]), arguments.repeats, table)
        for size in (5_000, 1_700_000):
            measure(f"{size:,} parameters", threads, optimizers(size), arguments.repeats, table)
    RESULTS.write_text(json.dumps({"machine": machine(), "batch": BATCH, "figures": table}, indent=1))


if __name__ == "__main__":
    main()
