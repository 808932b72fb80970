"""Networks for Realm's full size: multiplications per step, and time per row.

    python -m benchmarks.realm_networks

The published network is rebuilt from its description: three convolutions (32 of 7/2, 64 of 5/2, 64 of 3/1), 4096 to
512, that with the vector to 512; the whole twice, for actor and critic. Ours is what millrace builds for the same
observation. Counted are the multiplications of weights with inputs, in convolutions and dense layers.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from millrace.config import EnvConfig, NetConfig
from millrace.envs.make import EnvMaker
from millrace.nets.policy import build_network
from millrace.types import SlotSpec

ROWS = 64


class PublishedTrunk(nn.Module):
    """One of the two trunks of the published network."""

    def __init__(self, vector_size: int) -> None:
        super().__init__()
        relu = nn.ReLU()
        convolutions = (nn.Conv2d(4, 32, 7, 2), relu, nn.Conv2d(32, 64, 5, 2), relu, nn.Conv2d(64, 64, 3, 1), relu)
        self.image = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(4096, 512), relu)
        self.both = nn.Sequential(nn.Linear(512 + vector_size, 512), relu)

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        features: Tensor = self.both(torch.cat([self.image(observation["map"]), observation["vector"]], dim=1))
        return features


class PublishedNetwork(nn.Module):
    """Separate actor and critic."""

    def __init__(self, spec: SlotSpec) -> None:
        super().__init__()
        vector_size = spec.observation["vector"].num_inputs
        self.actor, self.critic = PublishedTrunk(vector_size), PublishedTrunk(vector_size)
        self.policy_head, self.value_head = nn.Linear(512, spec.action.num_logits), nn.Linear(512, 1)

    def forward(self, observation: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.policy_head(self.actor(observation)), self.value_head(self.critic(observation)).squeeze(-1)


def multiplications(network: nn.Module, observation: dict[str, Tensor]) -> int:
    """Per row of the observation."""
    counted = 0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal counted
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        counted += output[0].numel() * layer.weight[0].numel()

    hooks = [one.register_forward_hook(count) for one in network.modules() if isinstance(one, nn.Conv2d | nn.Linear)]
    network(observation)
    for hook in hooks:
        hook.remove()
    return counted


def microseconds(network: nn.Module, observation: dict[str, Tensor], learn: bool) -> float:
    """CPU time per row on one thread; acting alone, or forward and backward."""
    times = []
    for _ in range(5):
        started = time.process_time()
        with torch.set_grad_enabled(learn):
            logits, value = network(observation)
            if learn:
                (logits.sum() + value.sum()).backward()
        times.append(time.process_time() - started)
    return sorted(times)[2] / ROWS * 1e6


def main() -> None:
    torch.set_num_threads(1)
    env = EnvMaker(EnvConfig(id="millrace/Realm-v0")).make(1, 0)
    shapes = {key: one.shape for key, one in env.spec.observation.items()}
    observation = {key: torch.rand(ROWS, *shape) for key, shape in shapes.items()}
    networks = {"published": PublishedNetwork(env.spec), "ours": build_network(env.spec, NetConfig())}
    print("| network | multiplications per step | parameters | acting, us a row | learning, us a row |")
    print("| --- " * 5 + "|")
    for name, network in networks.items():
        count, parameters = multiplications(network, observation), sum(one.numel() for one in network.parameters())
        times = " | ".join(f"{microseconds(network, observation, learn):.0f}" for learn in (False, True))
        print(f"| {name} | {count:,} | {parameters:,} | {times} |")


if __name__ == "__main__":
    main()
