"""The cluster of `benchmarks.scaling_model`, event by event (SimPy).

    python -m benchmarks.scaling_simulation curves [--picture docs/images/scaling.png]    10 to 10,000 actors
    python -m benchmarks.scaling_simulation remedies                                      what helps where it breaks

Actors hold up to `max_policy_lag + 1` grants each and collect one after another for a random time. What they made
queues for the link of their node, then for a learner's, then for the trainer's process, which takes messages in one
after another, and between batches learns. It grants by the rule of `millrace.collect.source`. Weights go out once to
every node with each version; an actor begins a rollout when its node has the version of the grant, with the newest
that is there.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import simpy

from benchmarks.scaling_model import (
    ACTORS,
    GAMES,
    GBIT,
    LZ4,
    ZLIB,
    Cluster,
    learn_s,
    limit,
    message_cost_s,
    print_table,
    steps_per_second,
    with_actors,
)
from millrace.experiments.picture import COLOURS, GRID, INK, PAPER

UPDATES = 30
LEAST_UPDATES = 8
ROLLOUTS = 60_000
"""How many a simulation is worth: large clusters make fewer updates."""
SETTLING_SHARE = 1 / 3
VERSIONS_KEPT = 100
WIDTH, HEIGHT = 900, 600
LEFT, RIGHT, TOP, BOTTOM = 120, 40, 50, 80

Process = Generator[simpy.Event, Any, None]


@dataclass
class Link:
    """First come, first served."""

    env: simpy.Environment
    bytes_per_s: float
    free_at: float = 0.0

    def send(self, num_bytes: float, earliest: float = 0.0) -> float:
        """When the last of these bytes is through, if they come to the link now, or at `earliest`."""
        self.free_at = max(self.free_at, self.env.now, earliest) + num_bytes / self.bytes_per_s
        return self.free_at


@dataclass(frozen=True)
class Grant:
    """A rollout to be made.

    Attributes:
        version: of the newest weights when it was granted.
    """

    actor: int
    version: int


@dataclass(frozen=True)
class Rollout:
    """One that was made, with the weights of `version`."""

    grant: Grant
    version: int


@dataclass
class Node:
    """A worker node: its link, when it has which weights, and rollouts that its relay puts together."""

    uplink: Link
    downlink: Link
    """Of the learner that its rollouts go to."""
    weights_at: dict[int, float] = field(default_factory=dict)
    under_way: Counter[int] = field(default_factory=Counter)
    """Rollouts by the version of their grant."""
    relay: list[Rollout] = field(default_factory=list)

    def newest(self, now: float, oldest: int) -> int:
        """The newest weights that have arrived; `oldest` are known to have."""
        for version in reversed(self.weights_at):
            if version <= oldest or self.weights_at[version] <= now:
                return max(version, oldest)
        return oldest

    def is_relay_due(self, most: int) -> bool:
        """Full, or nobody here still works on something as old as what it holds: the trainer may be waiting for it."""
        oldest = min(rollout.grant.version for rollout in self.relay)
        return len(self.relay) >= most or not any(count and v <= oldest for v, count in self.under_way.items())


@dataclass
class Counts:
    """What became of rollouts."""

    messages: int = 0
    granted: int = 0
    learned: int = 0
    dropped: int = 0
    lags: Counter[int] = field(default_factory=Counter)
    """Rollouts learned from, by how many updates old their weights were."""


class Simulation:
    """One training.

    Args:
        on_stale: whether a rollout that would be too old is waited for, or dropped.
    """

    def __init__(self, cluster: Cluster, seed: int = 0, on_stale: Literal["wait", "drop"] = "wait") -> None:
        self.cluster = cluster
        self.env = simpy.Environment()
        self.counts = Counts()
        self.update_ends: list[float] = []
        self.updates = 0
        self.ready: Counter[int] = Counter()
        """Rollouts that the trainer has, by the version of their weights."""
        self._on_stale = on_stale
        self._random = random.Random(seed)
        self._learners = [Link(self.env, cluster.learner_bytes_per_s) for _ in range(cluster.learners)]
        """Downlinks; uplinks carry nothing but weights."""
        self._weight_links = [Link(self.env, cluster.learner_bytes_per_s) for _ in range(cluster.learners)]
        self._nodes = [self._node(index) for index in range(cluster.nodes)]
        self._grants = [simpy.Store(self.env) for _ in range(cluster.actors)]
        self._inbox: simpy.Store = simpy.Store(self.env)
        self._versions_granted: Counter[int] = Counter()
        # Actors by how many grants they hold; the dict keeps their order.
        self._by_load: list[dict[int, None]] = [{} for _ in range(cluster.max_policy_lag + 2)]
        self._by_load[0] = dict.fromkeys(range(cluster.actors))
        self._load = [0] * cluster.actors
        self._shape = (cluster.collect_s / cluster.collect_deviation_s) ** 2 if cluster.collect_deviation_s else 0.0

    def _node(self, index: int) -> Node:
        return Node(Link(self.env, self.cluster.node_bytes_per_s), self._learners[index % len(self._learners)])

    @property
    def under_way(self) -> int:
        """Rollouts granted that the trainer has not taken in."""
        return self._versions_granted.total()

    def run(self, updates: int) -> None:
        """Train for so many updates."""
        for actor in range(self.cluster.actors):
            self.env.process(self._act(actor))
        self.env.run(until=self.env.process(self._train(updates)))

    def steps_per_second(self) -> float:
        """After the first third, which fills the pipes."""
        first = int(len(self.update_ends) * SETTLING_SHARE)
        passed_s = self.update_ends[-1] - self.update_ends[first]
        return (len(self.update_ends) - 1 - first) * self.cluster.batch * self.cluster.rows / passed_s

    def _act(self, actor: int) -> Process:
        node = self._nodes[actor // self.cluster.actors_per_node]
        while True:
            grant: Grant = yield self._grants[actor].get()
            begins_at = max(node.weights_at[grant.version], self.env.now + self.cluster.latency_s)
            yield self.env.timeout(begins_at - self.env.now)
            version = node.newest(self.env.now, grant.version)
            yield self.env.timeout(self._draw_s())
            node.relay.append(Rollout(grant, version))
            node.under_way[grant.version] -= 1
            if node.is_relay_due(self.cluster.relay_rollouts):
                self.env.process(self._send(node, node.relay))
                node.relay = []

    def _draw_s(self) -> float:
        """How long a rollout takes: a gamma distribution with the cluster's mean and deviation."""
        mean_s = self.cluster.collect_s
        return self._random.gammavariate(self._shape, mean_s / self._shape) if self._shape else mean_s

    def _send(self, node: Node, rollouts: list[Rollout]) -> Process:
        num_bytes = len(rollouts) * self.cluster.rollout_bytes
        yield self.env.timeout(node.uplink.send(num_bytes) - self.env.now + self.cluster.latency_s)
        yield self.env.timeout(node.downlink.send(num_bytes) - self.env.now)
        self.counts.messages += 1
        self._inbox.put(rollouts)

    def _train(self, updates: int) -> Process:
        self._publish()
        for _ in range(updates):
            while not self._is_ready():
                self._grant(updates_under_way=0)
                message: list[Rollout] = yield self._inbox.get()
                yield self.env.timeout(message_cost_s(self.cluster, len(message)))
                self._settle(message)
            self._take()
            self._grant(updates_under_way=1)
            yield self.env.timeout(learn_s(self.cluster))
            self.updates += 1
            self._publish()
            self.update_ends.append(self.env.now)

    def _is_ready(self) -> bool:
        if self._on_stale == "drop":
            oldest = self.updates - self.cluster.max_policy_lag
            for version in [version for version in self.ready if version < oldest]:
                self.counts.dropped += self.ready.pop(version)
            return self.ready.total() >= self.cluster.batch
        return self.ready.total() >= self.cluster.batch and not self._must_wait()

    def _must_wait(self) -> bool:
        """The rule of `RolloutSource`: at most `j` batches of what is left may be too old `j` updates from now."""
        size, lag = self.cluster.batch, self.cluster.max_policy_lag
        left = self.ready - self._oldest_batch() + self._versions_granted
        ages = {self.updates - version: count for version, count in left.items()}
        too_old = (sum(count for age, count in ages.items() if age + j >= lag) for j in range(lag + 1))
        return bool(self._versions_granted) and any(count > j * size for j, count in enumerate(too_old))

    def _oldest_batch(self) -> Counter[int]:
        taken: Counter[int] = Counter()
        for version in sorted(self.ready):
            taken[version] = min(self.ready[version], self.cluster.batch - taken.total())
        return taken

    def _take(self) -> None:
        taken = self._oldest_batch()
        self.ready -= taken
        self.counts.learned += taken.total()
        self.counts.lags.update({self.updates - version: count for version, count in taken.items() if count})

    def _grant(self, updates_under_way: int) -> None:
        while updates_under_way + (self.under_way + self.ready.total()) // self.cluster.batch <= self._most_ahead:
            load = next((load for load in range(self._most_ahead + 1) if self._by_load[load]), None)
            if load is None:
                return
            actor = next(iter(self._by_load[load]))
            self._move(actor, load + 1)
            self._versions_granted[self.updates] += 1
            self.counts.granted += 1
            self._nodes[actor // self.cluster.actors_per_node].under_way[self.updates] += 1
            self._grants[actor].put(Grant(actor, self.updates))

    @property
    def _most_ahead(self) -> int:
        return self.cluster.max_policy_lag

    def _settle(self, rollouts: Sequence[Rollout]) -> None:
        for rollout in rollouts:
            actor = rollout.grant.actor
            self._move(actor, self._load[actor] - 1)
            self._versions_granted[rollout.grant.version] -= 1
            self.ready[rollout.version] += 1
        self._versions_granted = +self._versions_granted  # without those that are all in

    def _move(self, actor: int, load: int) -> None:
        del self._by_load[self._load[actor]][actor]
        self._by_load[load][actor] = None
        self._load[actor] = load

    def _publish(self) -> None:
        """Weights leave now; each node knows when it will have them."""
        size, fanout = self.cluster.weight_bytes, self.cluster.weight_fanout
        for index, node in enumerate(self._nodes):
            if fanout and index >= fanout:
                parent = self._nodes[index // fanout - 1]
                arrived = parent.uplink.send(size, parent.weights_at[self.updates])
            else:
                arrived = self._weight_links[index % len(self._weight_links)].send(size)
            node.weights_at[self.updates] = arrived + self.cluster.latency_s
            node.weights_at.pop(self.updates - VERSIONS_KEPT, None)


def simulated_steps_per_second(cluster: Cluster) -> float:
    """Of a training that is as long as seems worth it."""
    simulation = Simulation(cluster)
    simulation.run(max(LEAST_UPDATES, min(UPDATES, ROLLOUTS // cluster.batch)))
    return simulation.steps_per_second()


def remedies() -> dict[str, dict[str, Cluster]]:
    """Clusters at which something has become too small, and what may be done, by a title."""
    slow = replace(GAMES["slow game"], actors=10_000)
    realm, atari = (replace(GAMES[name], actors=1000) for name in ("Realm", "Atari-like"))
    small = replace(slow, batch_rollouts=256, relay_rollouts=8)
    many = replace(atari, actors=10_000, batch_rollouts=128, max_policy_lag=4)
    return {
        "slow game, 10,000 actors": {
            "as it is": slow,
            "rollouts of 256 steps": replace(slow, steps=256),
            "relays, 8 rollouts a message": replace(slow, relay_rollouts=8),
            "relays, 32 rollouts a message": replace(slow, relay_rollouts=32),
            "relays of 32, lag 2": replace(slow, relay_rollouts=32, max_policy_lag=2),
            "relays of 32, 4 learners": replace(slow, relay_rollouts=32, learners=4),
            "4 learners": replace(slow, learners=4),
        },
        "slow game, 10,000 actors, an update of 256 rollouts, relays of 8": {
            f"lag {lag}": replace(small, max_policy_lag=lag) for lag in (1, 4, 16, 64)
        },
        "slow game, 1,000 actors, lock-step": {
            "as it is": replace(slow, actors=1000, max_policy_lag=0),
            "rollouts of 256 steps": replace(slow, actors=1000, max_policy_lag=0, steps=256),
            "lag 1": replace(slow, actors=1000),
        },
        **{
            f"{name}, 1,000 actors": {
                "as it is": game,
                "zlib, level 1": replace(game, compression=ZLIB),
                "lz4": replace(game, compression=LZ4),
                "a link of 100 Gbit/s": replace(game, learner_bytes_per_s=100 * GBIT),
                "a link of 1 Gbit/s": replace(game, learner_bytes_per_s=GBIT),
                "a link of 1 Gbit/s, lz4": replace(game, learner_bytes_per_s=GBIT, compression=LZ4),
                "4 learners": replace(game, learners=4),
                "16 learners": replace(game, learners=16),
            }
            for name, game in (("Realm", realm), ("Atari-like", atari))
        },
        "Atari-like, 10,000 actors, an update of 128 rollouts, lag 4": {
            "weights to each of 313 nodes": many,
            "a tree, 4 nodes each": replace(many, weight_fanout=4),
        },
    }


def print_remedies() -> None:
    """As Markdown."""
    for title, clusters in remedies().items():
        print(f"\n| {title} | simulated, steps/s | model | model / simulated | limit |")
        print("| --- | --- | --- | --- | --- |")
        for name, cluster in clusters.items():
            simulated, predicted = simulated_steps_per_second(cluster), steps_per_second(cluster)
            cells = (f"{simulated:,.0f}", f"{predicted:,.0f}", f"{predicted / simulated:.2f}", limit(cluster))
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


def curves() -> dict[str, Cluster]:
    """What is drawn, and put into the table."""
    return {**GAMES, "slow game, lock-step": replace(GAMES["slow game"], max_policy_lag=0)}


def draw(path: Path) -> None:
    """Model as lines, simulation as dots, both axes logarithmic; Pillow."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    pen = ImageDraw.Draw(picture)
    _draw_frame(pen)
    for (name, game), colour in zip(curves().items(), COLOURS, strict=False):
        fine = [round(10 ** (1 + 3 * i / 60)) for i in range(61)]
        pen.line([_place(n, steps_per_second(with_actors(game, n))) for n in fine], colour, 3, joint="curve")
        for number in ACTORS:
            x, y = _place(number, simulated_steps_per_second(with_actors(game, number)))
            pen.ellipse((x - 6, y - 6, x + 6, y + 6), colour)
        pen.text(
            (WIDTH - RIGHT - 240, HEIGHT - BOTTOM - 120 + 26 * list(curves()).index(name)), name, colour, font_size=20
        )
    picture.save(path, optimize=True)


def _place(actors: float, rate: float) -> tuple[float, float]:
    """Pixels of 10 to 10,000 actors and 100 to 1,000,000 steps a second."""
    across, up = math.log10(actors / 10) / 3, math.log10(rate / 100) / 4
    return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def _draw_frame(pen: Any) -> None:
    for power in range(4):
        x, y = _place(10 ** (power + 1), 100)
        pen.line((x, y, x, TOP), GRID, 2)
        pen.text((x, y + 10), f"{10 ** (power + 1):,}", INK, anchor="ma", font_size=18)
    for power in range(2, 7):
        x, y = _place(10, 10**power)
        pen.line((x, y, WIDTH - RIGHT, y), GRID, 2)
        pen.text((x - 10, y), f"{10**power:,}", INK, anchor="rm", font_size=18)
    pen.text((LEFT, TOP - 12), "steps a second that are learned from", INK, anchor="ls", font_size=20)
    pen.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12), "actors", INK, anchor="ms", font_size=20)


def main() -> None:
    """Curves, with a picture if wanted; or remedies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("curves", "remedies"))
    parser.add_argument("--picture", type=Path, help="draw the curves as PNG")
    arguments = parser.parse_args()
    if arguments.what == "remedies":
        print_remedies()
        return
    print_table(curves(), simulate=True)
    if arguments.picture:
        draw(arguments.picture)


if __name__ == "__main__":
    main()
