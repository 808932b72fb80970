"""A warm start: a player plays, and the policy learns to do the same, before PPO begins."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from millrace.buffer.batch import Batch, Item
from millrace.collect.collector import Collector, Player
from millrace.config import Config
from millrace.deploy.recorded_games import read_games
from millrace.envs.make import EnvMaker
from millrace.envs.protocol import SlotEnv, episode_seed
from millrace.nets.actor import ActorMaker
from millrace.players import RecordedPlayer, checked, make_player
from millrace.types import EpisodeRecord, RolloutLayout

if TYPE_CHECKING:
    from millrace.nets.policy import Policy

NOTE_EVERY_S = 5.0


@dataclass
class Imitation:
    """What came of it.

    Attributes:
        agreement: of policy and player over the last rollout, before the policy learned from it; nan where actions
            have no categories.
        log_prob: mean of the player's actions under the policy, likewise.
        episodes: that the player finished.
        reward_statistics: that the policy's values are in units of; None where rewards are not normalised.
        skipped_steps: gradient steps left out because loss or gradient was not finite.
    """

    wall_s: float = 0.0
    env_steps: int = 0
    agreement: float = float("nan")
    log_prob: float = float("nan")
    episodes: list[EpisodeRecord] = dataclasses.field(default_factory=list)
    reward_statistics: dict[str, Any] | None = None
    skipped_steps: int = 0

    @property
    def mean_return(self) -> float:
        """Of the player's episodes; nan where none finished."""
        return float(np.mean([episode.episode_return for episode in self.episodes] or [np.nan]))

    def describe(self) -> str:
        """How it stands, as half a sentence."""
        returns = f"the player's return is {self.mean_return:.4g} over {len(self.episodes):,} episodes"
        agreement = f"the policy agrees with {self.agreement:.1%} of its actions, "
        skipped = f"; {self.skipped_steps} steps skipped, which were not finite" if self.skipped_steps else ""
        return (
            f"{returns if self.episodes else 'the player finished no episode'}; "
            f"{'' if np.isnan(self.agreement) else agreement}mean log-probability {self.log_prob:.3g}{skipped}"
        )


def imitate(
    policy: Policy,
    actor_maker: ActorMaker,
    maker: EnvMaker,
    config: Config,
    options: Mapping[str, Any],
    note: Callable[[str], None],
) -> Imitation:
    """Teach the policy what `config.imitate.player` does, on rollouts of the shape that PPO will learn from.

    Everything happens in this process. The player's episodes are none of the run's own, whose seeds are others.

    Args:
        config: resolved.
        options: of the environment.
        note: is told how it goes, every few seconds.

    Raises:
        ConfigError: no such player. EnvError: it did what the environment does not allow.
    """
    begin_s = last_note_s = time.perf_counter()
    school, done = School(policy, actor_maker, maker, config, options), Imitation()
    try:
        while done.env_steps < config.imitate.env_steps:
            school.lesson(done)
            if time.perf_counter() - last_note_s > NOTE_EVERY_S:
                last_note_s = time.perf_counter()
                note(f"imitating {config.imitate.player}: {done.env_steps:,} steps so far; {done.describe()}")
    finally:
        school.env.close()
    scaler = school.cloner.reward_scaler
    done.reward_statistics = None if scaler is None else scaler.save_state()
    done.wall_s = time.perf_counter() - begin_s
    return done


class School:
    """The player's environment, a collector in which it acts, and the cloner that learns from what was collected."""

    def __init__(
        self, policy: Policy, actor_maker: ActorMaker, maker: EnvMaker, config: Config, options: Mapping[str, Any]
    ) -> None:
        from millrace.learner.cloning import Cloner

        self._policy, self._settings = policy, config.imitate
        num_slots = config.collect.workers * config.collect.envs_per_worker
        seed = episode_seed(config.seed, config.collect.workers, 0)  # of a worker that there is not
        self.env, player, self._check = make_players(config.imitate.player, maker, num_slots, seed, options)
        layout = RolloutLayout(
            self.env.spec, config.collect.rollout_steps, num_slots, self.env.same_step_reset, policy.state_size
        )
        self._rollout, self._actor = layout.allocate(), actor_maker.make()
        self._collector = Collector(self.env, self._actor, layout, np.random.default_rng(seed), player)
        self.cloner = Cloner(policy, config.ppo, config.imitate, config.seed)

    def lesson(self, done: Imitation) -> None:
        """One rollout of the player's, learned from and added to what was done."""
        self._actor.load(self._policy.flat_weights())
        rollout = self._rollout
        episodes = self._collector.collect(rollout, 0, np.zeros(1, np.int64)).episodes
        for record in episodes:
            self._check(record)
        batch = Batch(rollout, [Item(0, 0, 0, episodes)], rollout.num_slots, 0, int(rollout.valid.sum()))
        remaining = 1 - done.env_steps / self._settings.env_steps
        stats = self.cloner.update(batch, self._settings.learning_rate * remaining)
        done.env_steps += batch.env_steps
        done.episodes += episodes
        done.log_prob, done.agreement = stats["log_prob"], stats["agreement"]
        done.skipped_steps = self.cloner.skipped_steps


def make_players(
    name: str, maker: EnvMaker, num_slots: int, seed: int, options: Mapping[str, Any]
) -> tuple[SlotEnv, Player, Callable[[EpisodeRecord], None]]:
    """The environment, who plays in it, and what to hold finished episodes to."""
    if not name.endswith(".jsonl"):
        env = maker.make(num_slots, seed)
        if options:
            env.set_options(options)
        return env, make_player(name, env, seed), lambda record: None
    recorded = RecordedPlayer(read_games(name), num_slots, name)
    strict = dataclasses.replace(maker, config=dataclasses.replace(maker.config, on_bad_value="refuse"))
    env = strict.make_seeded(num_slots, lambda slot, episode: recorded.game(slot, episode).seed)
    if options or recorded.options:
        env.set_options({**options, **recorded.options})
    return env, checked(recorded, name), recorded.check
