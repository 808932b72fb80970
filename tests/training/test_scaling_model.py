"""The closed form and the simulation of benchmarks/ say the same of a cluster, and the simulation loses nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from benchmarks.scaling_model import GAMES, Cluster, Compression, bounds, limit, steps_per_second
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("simpy")
from benchmarks.scaling_simulation import Simulation

PLAIN = Cluster(
    step_s=0.001,
    step_deviation_s=0.0,
    inference_s=0.0001,
    slots=4,
    steps=32,
    row_bytes=100,
    weight_bytes=10_000,
    learn_row_s=1e-7,
    actors=24,
    actors_per_node=8,
)
"""Bound by its actors."""
AT_THE_LIMIT = {
    "actors": PLAIN,
    "learner": replace(PLAIN, learn_row_s=1e-4),
    "messages": replace(PLAIN, message_s=0.02),
    "downlink": replace(PLAIN, row_bytes=1e6),
    "uplink": replace(PLAIN, row_bytes=1e6, node_bytes_per_s=1e7),
    "weights": replace(PLAIN, weight_bytes=1e8),
    "lock-step": replace(PLAIN, max_policy_lag=0),
    "lag": replace(PLAIN, batch_rollouts=4),
}


def simulated(cluster: Cluster, updates: int = 40, on_stale: str = "wait") -> Simulation:
    simulation = Simulation(cluster, on_stale=on_stale)
    simulation.run(updates)
    return simulation


@pytest.mark.parametrize("name", AT_THE_LIMIT)
def test_simulation_and_closed_form_agree_wherever_one_part_is_the_limit(name: str) -> None:
    cluster = AT_THE_LIMIT[name]
    assert limit(cluster) == name
    assert simulated(cluster).steps_per_second() == pytest.approx(steps_per_second(cluster), rel=0.04)


def test_random_step_times_cost_lock_step_what_the_slowest_actor_takes() -> None:
    uneven = replace(PLAIN, step_deviation_s=0.002, max_policy_lag=0, actors=64)
    rate = simulated(uneven).steps_per_second()
    assert rate < 0.95 * simulated(replace(uneven, step_deviation_s=0.0)).steps_per_second()
    assert rate == pytest.approx(steps_per_second(uneven), rel=0.05)


def test_an_update_by_hand() -> None:
    cluster = replace(PLAIN, learn_row_s=1e-5, latency_s=0.0, message_s=0.001, rollout_handling_s=0.0)
    seconds = bounds(cluster)
    assert seconds["actors"] == pytest.approx(32 * (4 * 0.001 + 0.0001))
    copying_s = 128 * 100 / 4e9
    assert seconds["trainer"] == pytest.approx(24 * 128 * 1e-5 + 24 * (0.001 + copying_s))
    assert seconds["downlink"] == pytest.approx(24 * 128 * 100 / 1.25e9)
    assert seconds["weights"] == pytest.approx(3 * 10_000 / 1.25e9)


clusters = st.builds(
    lambda step_s, unevenness, **others: replace(PLAIN, step_s=step_s, step_deviation_s=unevenness * step_s, **others),
    step_s=st.floats(1e-4, 1e-2),
    unevenness=st.sampled_from([0.0, 0.4, 2.0]),
    row_bytes=st.floats(10, 1e5),
    learn_row_s=st.floats(1e-7, 1e-4),
    message_s=st.floats(1e-5, 1e-2),
    actors=st.integers(1, 40),
    max_policy_lag=st.integers(0, 3),
    batch_rollouts=st.sampled_from([0, 1, 7]),
    learners=st.sampled_from([1, 3]),
    relay_rollouts=st.sampled_from([1, 5]),
    weight_fanout=st.sampled_from([0, 2]),
    compression=st.sampled_from([None, Compression(4.0, 1e9, 2e9)]),
)


@settings(deadline=None, max_examples=40)
@given(clusters, st.sampled_from(["wait", "drop"]))
def test_every_rollout_granted_is_learned_from_or_dropped_and_counted_or_still_on_its_way(
    cluster: Cluster, on_stale: str
) -> None:
    simulation = simulated(cluster, updates=12, on_stale=on_stale)
    counts = simulation.counts
    assert counts.granted == counts.learned + counts.dropped + simulation.ready.total() + simulation.under_way
    assert counts.learned == 12 * cluster.batch == counts.lags.total()
    assert max(counts.lags) <= cluster.max_policy_lag
    assert on_stale == "drop" or counts.dropped == 0


@settings(deadline=None, max_examples=40)
@given(clusters.filter(lambda cluster: cluster.batch <= cluster.actors))
def test_the_closed_form_is_near_the_simulation_everywhere(cluster: Cluster) -> None:
    plain = replace(cluster, relay_rollouts=1)
    ratio = steps_per_second(plain) / simulated(plain).steps_per_second()
    assert 0.5 < ratio < 1.8


@pytest.mark.parametrize("name", GAMES)
def test_more_of_what_is_scarce_helps(name: str) -> None:
    game = replace(GAMES[name], actors=100)
    better = replace(game, learners=4, learner_bytes_per_s=1e11, message_s=0.0, actors=200)
    assert steps_per_second(better) > 1.5 * steps_per_second(game)
