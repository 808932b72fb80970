"""Playing whole episodes on given seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from millrace.collect.collector import EnvRows
from millrace.config import EnvConfig
from millrace.deploy.policy import LoadedPolicy, load_policy
from millrace.deploy.recorded_games import Recorder
from millrace.envs.make import EnvMaker
from millrace.envs.protocol import SlotEnv
from millrace.nets.actor import Actor
from millrace.nets.memory import Memory
from millrace.ops.sampling import best_actions, sample_actions
from millrace.types import Array, EpisodeRecord, RolloutLayout, SlotSpec

MAX_SLOTS = 64
Choose = Callable[[dict[str, Array], Array | None, Array], Array]
"""Observations, action mask and "an episode begins here" [B] of B slots, to actions [B, A]."""


@dataclass(frozen=True)
class Evaluation:
    """The episodes that were played, in the order of their seeds."""

    episodes: list[EpisodeRecord]

    @property
    def returns(self) -> Array:
        """[N] undiscounted returns."""
        return np.array([episode.episode_return for episode in self.episodes])

    @property
    def mean_return(self) -> float:
        return float(self.returns.mean())

    def figure(self, name: str) -> Array:
        """[N] of one of the game's own figures."""
        return np.array([episode.figures.get(name, np.nan) for episode in self.episodes])


def evaluate(
    policy: LoadedPolicy | str | Path,
    env: str | Callable[..., Any] | None = None,
    *,
    episodes: int = 100,
    seed: int = 0,
    deterministic: bool = True,
    env_kwargs: dict[str, Any] | None = None,
    record: str | Path | None = None,
) -> Evaluation:
    """Play episodes with seeds seed, seed + 1, ...

    Args:
        policy: loaded, or where to load it from.
        env: id or callable; None for the one that the policy was trained on.
        record: a file to write the games to, from which `imitate.player` plays them again.
    """
    loaded = policy if isinstance(policy, LoadedPolicy) else load_policy(policy)
    maker = maker_for(loaded, env).with_kwargs(**(env_kwargs or {}))
    recorder = Recorder() if record is not None else None
    played = play_episodes(loaded.actor, maker, episodes, seed, deterministic, recorder)
    if recorder is not None and record is not None:
        recorder.write(record)
    return Evaluation(played)


def maker_for(policy: LoadedPolicy, env: str | Callable[..., Any] | None) -> EnvMaker:
    """The environment that the policy was trained on, with its arguments and wrappers, or another one."""
    if env is None:
        return EnvMaker(policy.env)
    if isinstance(env, str):
        return EnvMaker(EnvConfig(env, frame_stack=policy.env.frame_stack))
    return EnvMaker(policy.env, env)


def play_episodes(
    actor: Actor,
    maker: EnvMaker,
    episodes: int,
    seed: int,
    deterministic: bool = True,
    recorder: Recorder | None = None,
) -> list[EpisodeRecord]:
    """Episodes with seeds seed..seed+episodes-1 under an actor, many at a time."""
    slots = min(episodes, MAX_SLOTS)
    return play_with(
        lambda spec: actor_choice(actor, spec, slots, deterministic, seed), maker, episodes, seed, recorder
    )


def actor_choice(actor: Actor, spec: SlotSpec, num_slots: int, deterministic: bool, seed: int) -> Choose:
    """How an actor chooses: the most probable action, or a draw."""
    rng = np.random.default_rng(seed)
    memory = Memory(spec, actor.state_size, num_slots)

    def choose(observation: dict[str, Array], mask: Array | None, begins: Array) -> Array:
        memory.begin(begins)
        params, _ = actor.forward(memory.see(observation), memory.state)
        if deterministic:
            return best_actions(spec.action, params, mask)
        action = np.empty((len(params), spec.action.num_columns), spec.action.dtype)
        sample_actions(spec.action, params, mask, rng, action, np.empty(len(params), np.float32))
        return action

    return choose


def random_choice(spec: SlotSpec, seed: int) -> Choose:
    """Uniform over what the mask allows."""

    def flat(observation: dict[str, Array], mask: Array | None, begins: Array) -> Array:
        num_rows = len(next(iter(observation.values())))
        params = np.zeros((num_rows, spec.action.num_params), np.float32)
        action = np.empty((num_rows, spec.action.num_columns), spec.action.dtype)
        sample_actions(spec.action, params, mask, rng, action, np.empty(num_rows, np.float32))
        return action

    rng = np.random.default_rng(seed)
    return flat


def play_with(
    make_choice: Callable[[SlotSpec], Choose],
    maker: EnvMaker,
    episodes: int,
    seed: int,
    recorder: Recorder | None = None,
) -> list[EpisodeRecord]:
    """Episodes with seeds seed..seed+episodes-1, chosen by anything that chooses.

    Which slot plays which seed is settled beforehand, so that short episodes are not over-represented.
    """
    single = dataclasses.replace(maker, config=dataclasses.replace(maker.config, on_bad_value="refuse"))
    num_slots = min(episodes, MAX_SLOTS)
    env = single.make_seeded(num_slots, lambda slot, episode: seed + slot + episode * num_slots)
    try:
        records = _play(env, make_choice(env.spec), episodes, recorder)
    finally:
        env.close()
    return [records[index] for index in range(episodes)]


def _play(env: SlotEnv, choose: Choose, episodes: int, recorder: Recorder | None) -> dict[int, EpisodeRecord]:
    """Records by index: a slot's k-th episode has the index slot + k * slots."""
    layout = RolloutLayout(env.spec, 1, env.num_slots)
    rows = EnvRows(layout.allocate(), layout).rows
    returns = np.zeros(env.num_slots)
    steps, played = np.zeros(env.num_slots, np.int64), np.zeros(env.num_slots, np.int64)
    records: dict[int, EpisodeRecord] = {}
    env.reset(rows[0])
    row = rows[0]
    begins, done = np.ones(env.num_slots, bool), np.zeros(env.num_slots, bool)
    while len(records) < episodes:
        action = choose(row.observation, row.action_mask, begins)
        env.step(action, rows[1])
        row = rows[1]
        if recorder is not None:
            recorder.step(action, row)
        done_before, done = done, row.terminated | row.truncated
        begins = done if env.same_step_reset else done_before
        returns += row.reward
        steps += row.valid
        for slot, seed, figures in env.pop_figures():
            index = slot + int(played[slot]) * env.num_slots
            record = EpisodeRecord(float(returns[slot]), int(steps[slot]), seed, figures)
            if index < episodes:
                records[index] = record
            if recorder is not None:
                recorder.finish(slot, record, index if index < episodes else None)
            played[slot] += 1
            returns[slot], steps[slot] = 0.0, 0
    return records
