"""How fast training is on a cluster, in closed form, beside what was measured and simulated.

    python -m benchmarks.scaling_model table [--simulate]     the model for 10 to 10,000 actors
    python -m benchmarks.scaling_model measure [--part ...]   its parameters on this machine, and what it then predicts

The model is a handful of pure functions: seconds an update, each of which something cannot go below. The largest of
them decides (`seconds_per_update`). `benchmarks.scaling_simulation` lets the same cluster run event by event.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

ACTORS = (10, 30, 100, 300, 1000, 3000, 10_000)
GBIT = 1e9 / 8
"""Bytes a second of a link of one Gbit/s."""


@dataclass(frozen=True)
class Compression:
    """What it makes of rollouts, at which speed on one core (bytes before compression a second)."""

    ratio: float
    compress_bytes_per_s: float
    decompress_bytes_per_s: float


@dataclass(frozen=True)
class Cluster:
    """A game, the machines it is collected on, and a trainer. Defaults are those of docs/scaling.md."""

    step_s: float
    """One step of one slot: mean of a distribution."""
    step_deviation_s: float
    inference_s: float
    """A forward pass for all slots of an actor."""
    slots: int
    steps: int
    """T, of a rollout."""
    row_bytes: float
    """Of a rollout, per step and slot."""
    weight_bytes: float
    learn_row_s: float
    """What the learner takes for one row, all epochs together."""
    epochs: int = 4
    minibatches: int = 8
    update_s: float = 0.0
    """Whatever an update costs besides, however large it is."""
    actors: int = 10
    actors_per_node: int = 32
    node_bytes_per_s: float = 10 * GBIT
    """Link of a worker node, in each direction."""
    learner_bytes_per_s: float = 10 * GBIT
    """Link of a learner node, in each direction."""
    latency_s: float = 0.0005
    """From an actor to the trainer or back, with nothing in the way."""
    message_s: float = 0.0004
    """What a message costs the trainer's process, whatever is in it: it is told, fetches, calls again."""
    rollout_handling_s: float = 0.00001
    """What each rollout in a message costs there besides: the grant rule."""
    copy_bytes_per_s: float = 4e9
    """At which the trainer copies rollouts into a batch."""
    max_policy_lag: int = 1
    batch_rollouts: int = 0
    """Of an update; 0 = as many as there are actors, as Millrace has it."""
    learners: int = 1
    """Data-parallel, on a node each: they share rows, links and messages, and average gradients every minibatch."""
    compression: Compression | None = None
    relay_rollouts: int = 1
    """Rollouts of a node that its relay puts into one message."""
    weight_fanout: int = 0
    """Nodes to which a node hands the weights on; 0 = the learner sends them to every node itself."""

    @property
    def batch(self) -> int:
        """Rollouts an update."""
        return self.batch_rollouts or self.actors

    @property
    def nodes(self) -> int:
        """Worker nodes."""
        return math.ceil(self.actors / self.actors_per_node)

    @property
    def rows(self) -> int:
        """Of a rollout."""
        return self.steps * self.slots

    @property
    def plain_bytes(self) -> float:
        """Of a rollout."""
        return self.rows * self.row_bytes

    @property
    def rollout_bytes(self) -> float:
        """Of a rollout as it travels."""
        return self.plain_bytes / (self.compression.ratio if self.compression else 1.0)

    @property
    def collect_s(self) -> float:
        """Mean time an actor takes for a rollout, compressing it included."""
        stepping_s = self.steps * (self.slots * self.step_s + self.inference_s)
        return stepping_s + (self.plain_bytes / self.compression.compress_bytes_per_s if self.compression else 0.0)

    @property
    def collect_deviation_s(self) -> float:
        """Standard deviation of that: steps are independent."""
        return math.sqrt(self.rows) * self.step_deviation_s

    @property
    def message_rollouts(self) -> int:
        """Rollouts in a message: a node cannot put more together than its actors have under way."""
        return min(self.relay_rollouts, self.actors_per_node, self.actors)


def learn_s(cluster: Cluster) -> float:
    """An update of the learners: rows shared, and a ring of gradients after every minibatch."""
    alone_s = cluster.batch * cluster.rows * cluster.learn_row_s / cluster.learners + cluster.update_s
    if cluster.learners == 1:
        return alone_s
    share = 2 * (cluster.learners - 1) / cluster.learners
    ring_s = share * cluster.weight_bytes / cluster.learner_bytes_per_s + 2 * (cluster.learners - 1) * cluster.latency_s
    return alone_s + cluster.epochs * cluster.minibatches * ring_s


def message_cost_s(cluster: Cluster, rollouts: float) -> float:
    """What a message with so many rollouts keeps a learner's process busy, learners sharing the messages."""
    plain_bytes = rollouts * cluster.plain_bytes
    unpacking_s = plain_bytes / cluster.compression.decompress_bytes_per_s if cluster.compression else 0.0
    handling_s = cluster.message_s + rollouts * cluster.rollout_handling_s
    return (handling_s + plain_bytes / cluster.copy_bytes_per_s + unpacking_s) / cluster.learners


def handle_s(cluster: Cluster) -> float:
    """All messages of an update: the process that learns takes them in, one after another."""
    return cluster.batch / cluster.message_rollouts * message_cost_s(cluster, cluster.message_rollouts)


def collecting_s(cluster: Cluster) -> float:
    """The rollouts of an update, if actors never wait; what they hold no grant for waits for the end of learning."""
    each = cluster.batch / cluster.actors
    without_grants = max(0.0, each - cluster.max_policy_lag - 1)
    after_learning_s = learn_s(cluster) + without_grants * cluster.collect_s if without_grants else 0.0
    return max(each * cluster.collect_s, after_learning_s)


def downlink_s(cluster: Cluster) -> float:
    """The rollouts of an update through the learners' links."""
    return cluster.batch * cluster.rollout_bytes / (cluster.learners * cluster.learner_bytes_per_s)


def uplink_s(cluster: Cluster) -> float:
    """The rollouts of an update through the links of the worker nodes, and weights that these hand on."""
    busiest_bytes = cluster.batch / cluster.nodes * cluster.rollout_bytes
    return (busiest_bytes + cluster.weight_fanout * cluster.weight_bytes) / cluster.node_bytes_per_s


def weights_s(cluster: Cluster) -> float:
    """The weights of one version out of the learners' links: once to every node, or to the first of a tree."""
    copies = min(cluster.weight_fanout or cluster.nodes, cluster.nodes)
    return copies * cluster.weight_bytes / (cluster.learners * cluster.learner_bytes_per_s)


def weights_arrive_s(cluster: Cluster) -> float:
    """From publishing until the last node has the weights."""
    first_s = weights_s(cluster) + cluster.latency_s
    if not cluster.weight_fanout:
        return first_s
    depth, reached = 0, cluster.weight_fanout
    while reached < cluster.nodes:
        depth, reached = depth + 1, reached + cluster.weight_fanout ** (depth + 2)
    hop_s = cluster.weight_fanout * cluster.weight_bytes / cluster.node_bytes_per_s + cluster.latency_s
    return first_s + depth * hop_s


def slowest_s(cluster: Cluster) -> float:
    """Mean time of the slowest actor over its share of an update's rollouts, if all begin together (normal, Blom)."""
    each = max(1.0, cluster.batch / cluster.actors)
    return each * cluster.collect_s + math.sqrt(each) * cluster.collect_deviation_s * _expected_maximum(cluster.batch)


def round_s(cluster: Cluster) -> float:
    """From granting an update's rollouts until all of them have been taken in.

    They travel and are taken in while others are still being collected; where all end at once, one after another.
    """
    together = cluster.message_rollouts
    hops_s = cluster.rollout_bytes * (1 / cluster.node_bytes_per_s + 1 / cluster.learner_bytes_per_s)
    last_s = message_cost_s(cluster, together) + together * hops_s
    each = max(1.0, cluster.batch / cluster.actors)
    spread_s = math.sqrt(each) * cluster.collect_deviation_s * _expected_maximum(cluster.batch)
    quickest_s = max(each * cluster.collect_s - spread_s, 0.0)
    queue_s = max(downlink_s(cluster), uplink_s(cluster), handle_s(cluster))
    first_s = weights_arrive_s(cluster) + 2 * cluster.latency_s
    return first_s + max(slowest_s(cluster) + last_s, quickest_s + queue_s)


def _expected_maximum(draws: int) -> float:
    """Of so many standard normal numbers, about."""
    return NormalDist().inv_cdf((draws - 0.375) / (draws + 0.25)) if draws > 1 else 0.0


def bounds(cluster: Cluster) -> dict[str, float]:
    """Seconds an update that each part needs. Links and actors work beside the trainer, which does one after another.

    `lag`: a rollout granted after an update is taken at most lag + 1 updates later, so as many updates last at least as
    long as learning once and collecting once. With lag 0 that is lock-step: both in turn.
    """
    return {
        "actors": collecting_s(cluster),
        "trainer": learn_s(cluster) + (handle_s(cluster) if cluster.max_policy_lag else 0.0),
        "downlink": downlink_s(cluster),
        "uplink": uplink_s(cluster),
        "weights": weights_s(cluster),
        "lag": (learn_s(cluster) + round_s(cluster)) / (cluster.max_policy_lag + 1),
    }


def seconds_per_update(cluster: Cluster) -> float:
    """The largest of the bounds."""
    return max(bounds(cluster).values())


def steps_per_second(cluster: Cluster) -> float:
    """What the cluster learns from."""
    return cluster.batch * cluster.rows / seconds_per_update(cluster)


def limit(cluster: Cluster) -> str:
    """What decides, in a word; of the trainer, which half of it."""
    by_seconds = bounds(cluster)
    name = max(by_seconds, key=lambda key: by_seconds[key])
    if name == "trainer":
        return "messages" if handle_s(cluster) > learn_s(cluster) else "learner"
    return "lock-step" if name == "lag" and not cluster.max_policy_lag else name


GAMES: dict[str, Cluster] = {
    "slow game": Cluster(
        step_s=0.030,
        step_deviation_s=0.0115,
        inference_s=0.00002,
        slots=1,
        steps=64,
        row_bytes=60,
        weight_bytes=40e3,
        learn_row_s=4e-6,
    ),
    "Realm": Cluster(
        step_s=1.6e-6,
        step_deviation_s=0.4e-6,
        inference_s=0.0018,
        slots=64,
        steps=32,
        row_bytes=10.9e3,
        weight_bytes=1e6,
        learn_row_s=5e-6,
    ),
    "Atari-like": Cluster(
        step_s=0.0003,
        step_deviation_s=0.0001,
        inference_s=0.0016,
        slots=8,
        steps=128,
        row_bytes=7.3e3,
        weight_bytes=6.7e6,
        learn_row_s=5e-6,
    ),
}
"""Three kinds of game; docs/scaling.md says where their numbers are from."""
LZ4 = Compression(ratio=40.0, compress_bytes_per_s=8e9, decompress_bytes_per_s=8e9)
ZLIB = Compression(ratio=50.0, compress_bytes_per_s=0.8e9, decompress_bytes_per_s=1.9e9)


def with_actors(cluster: Cluster, actors: int) -> Cluster:
    """The same with another number of actors."""
    return replace(cluster, actors=actors)


def print_table(games: dict[str, Cluster], actors: Sequence[int] = ACTORS, simulate: bool = False) -> None:
    """Model, and simulation if wanted, as Markdown."""
    print("| game | actors | model, steps/s | simulated | model / simulated | of all actors' speed | limit |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, game in games.items():
        for number in actors:
            print(_line(name, with_actors(game, number), simulate), flush=True)


def _line(name: str, cluster: Cluster, simulate: bool) -> str:
    predicted = steps_per_second(cluster)
    share = predicted * cluster.collect_s / (cluster.actors * cluster.rows)
    simulated, ratio = "", ""
    if simulate:
        from benchmarks.scaling_simulation import simulated_steps_per_second  # here: the model alone needs no SimPy

        rate = simulated_steps_per_second(cluster)
        simulated, ratio = f"{rate:,.0f}", f"{predicted / rate:.2f}"
    cells = (name, f"{cluster.actors:,}", f"{predicted:,.0f}", simulated, ratio, f"{share:.0%}", limit(cluster))
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """The model's table, or its parameters measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "measure"))
    parser.add_argument("--simulate", action="store_true", help="with the simulation beside it")
    arguments, rest = parser.parse_known_args()
    if arguments.what == "measure":
        from benchmarks import scaling_measure  # here: it needs millrace

        scaling_measure.main(rest)
    else:
        print_table(GAMES, simulate=arguments.simulate)


if __name__ == "__main__":
    main()
