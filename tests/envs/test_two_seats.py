"""A game for two is more slots: one column a seat, its own turns in it, its reward held back until its next turn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from helpers import new_row, quick_train
from millrace.buffer.batch import Batch, Item
from millrace.config import NetConfig, PPOConfig
from millrace.envs.vector_slots import VectorSlots
from millrace.learner.ppo import Learner
from millrace.nets.policy import Policy
from millrace.ops.gae import generalized_advantages, temporal_differences
from millrace.types import ActionSpec, ArraySpec, Rollout, RolloutLayout, SlotSpec
from toys import PileRounds

GAMMA, LAMBDA = 0.9, 0.8
SPEC = SlotSpec({"obs": ArraySpec((2,), "float32")}, ActionSpec(nvec=(2,)))


def play_in_turns(num_steps: int, seed: int) -> tuple[Rollout, list[list[tuple[float, float]]]]:
    """A pile game played strictly in turns: seats write their own columns, each by its own cursor.

    Whoever takes the last stone gets 10 from the other; each turn's gain is paid to both sides at once and held
    back until the seat's next turn. Besides the rollout, each seat's episodes as plain (value, reward) lists.
    """
    rng = np.random.default_rng(seed)
    layout = RolloutLayout(SPEC, num_steps, 2)
    rollout = layout.allocate()
    cursor, held, has_moved = [0, 0], [0.0, 0.0], [False, False]
    episodes: list[list[Any]] = [[[]], [[]]]
    pile, mover = PileRounds.PILE, 0

    def write_observation(seat: int) -> None:
        rollout.observation["obs"][cursor[seat], seat] = pile / PileRounds.PILE, seat
        rollout.value[cursor[seat], seat] = rng.normal()

    def settle(seat: int, done: bool) -> None:
        """The seat's transition ends here: at its next turn, or with the game."""
        t = cursor[seat] - 1
        rollout.reward[t, seat], rollout.terminated[t, seat], rollout.valid[t, seat] = held[seat], done, True
        episodes[seat][-1].append((float(rollout.value[t, seat]), held[seat]))
        held[seat], has_moved[seat] = 0.0, False

    while min(cursor) < num_steps:
        if max(cursor) >= num_steps and cursor[mover] >= num_steps:
            break
        if has_moved[mover]:
            settle(mover, done=False)
        write_observation(mover)
        action = int(rng.integers(2))
        t = cursor[mover]
        rollout.action[t, mover], rollout.log_prob[t, mover] = action, np.log(0.5)
        cursor[mover], has_moved[mover] = t + 1, True
        gain = min(action + 1, pile)
        pile -= gain
        gain += 10 if pile == 0 else 0
        held[mover] += gain
        held[1 - mover] -= gain
        mover = 1 - mover
        if pile:
            continue
        for seat in (0, 1):
            settle(seat, done=True)
            if cursor[seat] < num_steps:  # the final observation and the reset transition out of it
                write_observation(seat)
                cursor[seat] += 1
            episodes[seat].append([])
        pile, mover = PileRounds.PILE, 0
    for seat in (0, 1):
        write_observation(seat)
    return rollout, episodes


def by_definition(episodes: list[list[tuple[float, float]]]) -> list[float]:
    """Advantages of whole, terminated episodes, one after another."""
    found = []
    for episode in episodes:
        values = [value for value, _ in episode] + [0.0]
        deltas = [reward + GAMMA * values[t + 1] - values[t] for t, (_, reward) in enumerate(episode)]
        for t in range(len(deltas)):
            found.append(sum((GAMMA * LAMBDA) ** k * delta for k, delta in enumerate(deltas[t:])))
    return found


def test_each_seats_column_is_an_ordinary_stream_of_episodes():
    rollout, episodes = play_in_turns(num_steps=40, seed=3)
    tensors = [torch.from_numpy(x).double() for x in (rollout.reward, rollout.value[:-1], rollout.value[1:])]
    terminated = torch.from_numpy(rollout.terminated)
    delta = temporal_differences(*tensors, terminated, GAMMA)
    advantage = generalized_advantages(delta, terminated | ~torch.from_numpy(rollout.valid), GAMMA, LAMBDA).numpy()
    for seat in (0, 1):
        whole = [episode for episode in episodes[seat][:-1] if episode]
        expected = by_definition(whole)
        rows = np.flatnonzero(rollout.valid[:, seat])[: len(expected)]
        assert len(expected) > 15
        np.testing.assert_allclose(advantage[rows, seat], expected, atol=1e-6)


def test_the_terminal_reward_reaches_the_last_row_of_both_seats():
    rollout, _ = play_in_turns(num_steps=40, seed=4)
    ends = [np.flatnonzero(rollout.terminated[:, seat]) for seat in (0, 1)]
    for first, second in zip(*ends, strict=False):
        rewards = rollout.reward[first, 0], rollout.reward[second, 1]
        # The winner's last row holds the 10, the loser's the loss of it.
        assert max(rewards) >= 8
        assert min(rewards) <= -8


def test_a_learner_takes_the_rollout_of_a_turn_based_game_as_it_takes_any_other():
    rollout, _ = play_in_turns(num_steps=32, seed=5)
    torch.manual_seed(0)
    learner = Learner(Policy(SPEC, NetConfig(hidden=(8,))), PPOConfig(minibatch_size=32), 1000, 0)
    before = learner.weights()
    stats = learner.update(Batch(rollout, [Item(0, 0, 0)], 2, 0, int(rollout.valid.sum())), 0)
    assert np.isfinite(list(stats.values())).all()
    assert (learner.weights() != before).any()


def test_in_a_vector_environment_seats_are_neighbouring_slots_and_rewards_sum_to_zero():
    env = VectorSlots(PileRounds(4), seed=0)
    row = new_row(env.spec, 4)
    env.reset(row)
    rng = np.random.default_rng(0)
    ends = 0
    for _ in range(50):
        row = new_row(env.spec, 4)
        env.step(rng.integers(2, size=(4, 1)).astype(np.int32), row)
        np.testing.assert_array_equal(row.observation["obs"][:, 1], [0, 1, 0, 1])
        assert row.reward[0] == -row.reward[1]
        assert row.reward[2] == -row.reward[3]
        np.testing.assert_array_equal(row.terminated[::2], row.terminated[1::2])
        for game in np.flatnonzero(row.terminated[::2]):
            ends += 1
            assert abs(row.reward[2 * game]) >= 8
    assert ends > 5


@pytest.mark.parametrize("backend", ["serial", "processes"])
def test_two_seats_train_through_the_whole_program(run_dir, backend):
    result = quick_train(
        PileRounds, run_dir, {"stop.updates": 3}, backend=backend, workers=1, envs_per_worker=6, rollout_steps=16
    )
    assert result.updates == 3
    assert result.episodes > 6
    assert result.mean_return == pytest.approx(0.0, abs=12.0)
