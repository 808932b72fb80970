"""One episode step by step, with what the policy thought at each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from millrace.collect.collector import EnvRows
from millrace.deploy.insight import Insight, judge
from millrace.deploy.policy import LoadedPolicy
from millrace.deploy.recorded_games import RecordedGame
from millrace.envs.make import EnvMaker
from millrace.envs.protocol import SlotEnv
from millrace.envs.spaces import action_converter
from millrace.errors import EnvError
from millrace.types import RolloutLayout


@dataclass(frozen=True)
class Step:
    """One transition.

    Attributes:
        step: counted from 0.
        action: as the environment takes it.
        insight: of the observation that was acted on.
        return_so_far: the rewards up to here, this one included.
    """

    step: int
    action: Any
    insight: Insight
    reward: float
    return_so_far: float


def steps_of(policy: LoadedPolicy, maker: EnvMaker, game: RecordedGame, first: int = 0) -> Iterator[Step]:
    """Play a game again, with its own actions, and look at the policy meanwhile.

    Args:
        first: the step from which on the policy played, and returns count.

    Raises:
        EnvError: the environment does not follow from seed and actions.
    """
    env = maker.make_seeded(1, lambda slot, episode: game.seed)
    try:
        if game.options:
            env.set_options(game.options)
        yield from _steps(policy, env, game, first)
    finally:
        env.close()


def _steps(policy: LoadedPolicy, env: SlotEnv, game: RecordedGame, first: int) -> Iterator[Step]:
    layout = RolloutLayout(env.spec, 1, 1)
    row, after = EnvRows(layout.allocate(), layout).rows
    convert, state, return_so_far = action_converter(env.spaces[1]), policy.new_state(), 0.0
    env.reset(row)
    for step, columns in enumerate(game.actions):
        action = np.array(columns, env.spec.action.dtype)
        insight = judge(policy, row.observation, state, action, row.action_mask)
        env.step(action[None], after)
        row = after
        if bool(row.terminated[0] or row.truncated[0]) != (step == len(game.actions) - 1):
            raise EnvError(
                f"the episode of seed {game.seed} went another way when it was played again, from step {step}"
            )
        if step >= first:
            return_so_far += float(row.reward[0])
            yield Step(step, convert(action), insight, float(row.reward[0]), return_so_far)
