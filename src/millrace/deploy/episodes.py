"""Whole episodes on given seeds, many at a time, whichever processes they are played in."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np

from millrace.collect.collector import EnvRows
from millrace.config import EvalConfig
from millrace.deploy.recorded_games import RecordedGame, Recorder, Start
from millrace.envs.make import EnvMaker
from millrace.envs.protocol import EnvRow, SlotEnv
from millrace.nets.actor import Actor
from millrace.nets.memory import Memory
from millrace.ops.sampling import best_actions, sample_actions
from millrace.types import Array, EpisodeRecord, RolloutLayout, SlotSpec

LANES, MOST_LANES = 64, 256
EPISODES_PER_LANE = 8
"""Beyond 64 lanes there is one more for so many episodes: waiting for the last ones costs little then."""
TILE_LANES = 16

Choose = Callable[[dict[str, Array], Array | None, Array], Array]
"""Observations, action mask and "an episode begins here" [B] of B slots, to actions [B, A]."""


@dataclass(frozen=True)
class Lanes:
    """Which slot plays which episode, settled beforehand so that short episodes are not over-represented.

    Episode i is the (i // num_lanes)-th of lane i % num_lanes. Neighbouring lanes form a tile, for which actions are
    chosen together: the last bits of a network's output depend on the size of the batch, so that it must not depend
    on how many processes share the tiles.

    Attributes:
        tiles: those that are played here.
    """

    episodes: int
    num_lanes: int
    tiles: tuple[range, ...]

    @staticmethod
    def of(episodes: int) -> Lanes:
        """All lanes of so many episodes."""
        num_lanes = min(episodes, MOST_LANES, max(LANES, episodes // EPISODES_PER_LANE))
        return Lanes(episodes, num_lanes, _shares(range(num_lanes), -(-num_lanes // TILE_LANES)))

    def split(self, parts: int) -> list[Lanes]:
        """The tiles dealt to so many processes."""
        return [dataclasses.replace(self, tiles=self.tiles[part::parts]) for part in range(parts)]

    @property
    def numbers(self) -> list[int]:
        """Of the lanes that are played here, one for each slot."""
        return [lane for tile in self.tiles for lane in tile]

    @property
    def num_episodes(self) -> int:
        """How many are played here."""
        return sum(len(range(lane, self.episodes, self.num_lanes)) for lane in self.numbers)


def _shares(lanes: range, parts: int) -> tuple[range, ...]:
    """Neighbouring lanes in parts of nearly the same size."""
    bounds = [len(lanes) * part // parts for part in range(parts + 1)]
    return tuple(lanes[first:last] for first, last in itertools.pairwise(bounds))


@dataclass(frozen=True)
class Played:
    """One episode that is over.

    Attributes:
        index: its place among all that are played.
        game: its actions, where they are kept.
    """

    index: int
    record: EpisodeRecord
    game: RecordedGame | None = None


MakeChoice = Callable[[SlotSpec, Lanes], Choose]


@dataclass(frozen=True)
class Task:
    """Episodes with seeds seed, seed + 1, ...

    Attributes:
        make_choice: who plays.
        keeps_games: whether actions are kept.
        start: a state where the play begins instead; returns and lengths count from there on.
    """

    make_choice: MakeChoice
    maker: EnvMaker
    episodes: int
    seed: int
    keeps_games: bool = False
    start: Start | None = None

    def play(self, lanes: Lanes | None = None) -> Generator[list[Played]]:
        """The episodes of some lanes, or all: after each step those that it ended."""
        lanes = lanes or Lanes.of(self.episodes)
        numbers = lanes.numbers
        single = dataclasses.replace(self.maker, config=dataclasses.replace(self.maker.config, on_bad_value="refuse"))
        env = single.make_seeded(
            len(numbers), lambda slot, episode: self._seed(numbers[slot] + episode * lanes.num_lanes)
        )
        try:
            choose = self.make_choice(env.spec, lanes)
            if self.start is not None:
                if self.start.game.options:
                    env.set_options(self.start.game.options)
                choose = _led(choose, self.start, env)
            yield from _Play(env, choose, lanes, self).run()
        finally:
            env.close()

    def play_all(self) -> list[Played]:
        """Every episode, in the order of their indices."""
        return sorted((one for ended in self.play() for one in ended), key=lambda one: one.index)

    def _seed(self, index: int) -> int:
        return self.seed + index if self.start is None else self.start.game.seed

    @property
    def lead_steps(self) -> int:
        """Steps of each episode that are given."""
        return self.start.steps if self.start else 0


def play_episodes(
    actor: Actor, maker: EnvMaker, episodes: int, seed: int, deterministic: bool = True
) -> list[EpisodeRecord]:
    """Episodes with seeds seed..seed+episodes-1 under an actor, in this process."""
    task = Task(policy_choice(actor, deterministic, seed), maker, episodes, seed)
    return [played.record for played in task.play_all()]


def eval_return(actor: Actor, maker: EnvMaker, settings: EvalConfig) -> float:
    """Mean return on the fixed seeds that are played now and then in training."""
    maker = maker.with_kwargs(**settings.kwargs)
    records = play_episodes(actor, maker, settings.episodes, settings.seed, settings.deterministic)
    return float(np.mean([record.episode_return for record in records]))


def policy_choice(actor: Actor, deterministic: bool, seed: int) -> MakeChoice:
    """How a policy chooses: the most probable action, or a draw. Every tile has a random stream of its own."""

    def make(spec: SlotSpec, lanes: Lanes) -> Choose:
        tiles, first = [], 0
        for tile in lanes.tiles:
            rng = np.random.default_rng([seed % 2**64, tile.start])
            tiles.append((slice(first, first + len(tile)), _tile_choice(actor, spec, len(tile), deterministic, rng)))
            first += len(tile)

        def choose(observation: dict[str, Array], mask: Array | None, begins: Array) -> Array:
            return np.concatenate(
                [
                    choose_tile(
                        {key: array[rows] for key, array in observation.items()},
                        None if mask is None else mask[rows],
                        begins[rows],
                    )
                    for rows, choose_tile in tiles
                ]
            )

        return choose

    return make


def _tile_choice(actor: Actor, spec: SlotSpec, num_slots: int, deterministic: bool, rng: np.random.Generator) -> Choose:
    memory = Memory(spec, actor.state_size, num_slots)

    def choose(observation: dict[str, Array], mask: Array | None, begins: Array) -> Array:
        memory.begin(begins)
        params, _ = actor.forward(memory.see(observation), memory.state)
        return best_actions(spec.action, params, mask) if deterministic else _drawn(spec, params, mask, rng)

    return choose


def random_choice(spec: SlotSpec, seed: int) -> Choose:
    """Uniform over what the mask allows."""
    rng = np.random.default_rng(seed)

    def flat(observation: dict[str, Array], mask: Array | None, begins: Array) -> Array:
        num_rows = len(next(iter(observation.values())))
        return _drawn(spec, np.zeros((num_rows, spec.action.num_params), np.float32), mask, rng)

    return flat


def _drawn(spec: SlotSpec, params: Array, mask: Array | None, rng: np.random.Generator) -> Array:
    action = np.empty((len(params), spec.action.num_columns), spec.action.dtype)
    sample_actions(spec.action, params, mask, rng, action, np.empty(len(params), np.float32))
    return action


def _led(choose: Choose, start: Start, env: SlotEnv) -> Choose:
    """The actions of the recorded game up to the start; the player looks on, so that it remembers them."""
    given = np.array(start.game.actions[: start.steps]).reshape(start.steps, env.spec.action.num_columns)
    steps = np.zeros(env.num_slots, np.int64)

    def lead(observation: dict[str, Array], mask: Array | None, begins: Array) -> Array:
        steps[begins] = 0
        action = choose(observation, mask, begins)
        is_led = steps < start.steps
        action[is_led] = given[steps[is_led]]
        steps[:] += 1
        return action

    return lead


class _Play:
    """Slots that step together until every episode of their lanes is over."""

    def __init__(self, env: SlotEnv, choose: Choose, lanes: Lanes, task: Task) -> None:
        self._env, self._choose, self._lanes, self._task = env, choose, lanes, task
        self._numbers = lanes.numbers
        self._returns, self._led_returns = np.zeros(env.num_slots), np.zeros(env.num_slots)
        self._steps, self._played = np.zeros(env.num_slots, np.int64), np.zeros(env.num_slots, np.int64)
        self._recorder = Recorder() if task.keeps_games else None

    def run(self) -> Iterator[list[Played]]:
        """What each step ended; before the first of them nothing, which tells that it can begin."""
        env = self._env
        layout = RolloutLayout(env.spec, 1, env.num_slots)
        first, row = EnvRows(layout.allocate(), layout).rows
        env.reset(first)
        yield []
        action = self._choose(first.observation, first.action_mask, np.ones(env.num_slots, bool))
        done, left = np.zeros(env.num_slots, bool), self._lanes.num_episodes
        while True:
            env.step(action, row)
            ended = self._take(action, row)
            left -= len(ended)
            yield ended
            if not left:
                return
            done_before, done = done, row.terminated | row.truncated
            action = self._choose(row.observation, row.action_mask, done if env.same_step_reset else done_before)

    def _take(self, action: Array, row: EnvRow) -> list[Played]:
        """Count a step; the episodes that it ended, but for those that only keep a slot busy until the others end."""
        is_led = self._steps < self._task.lead_steps
        self._returns += np.where(is_led, 0.0, row.reward)
        self._led_returns += np.where(is_led, row.reward, 0.0)
        self._steps += row.valid
        if self._recorder is not None:
            self._recorder.step(action, row)
        ended = [self._finish(*figures) for figures in self._env.pop_figures()]
        return [played for played in ended if played.index < self._lanes.episodes]

    def _finish(self, slot: int, seed: int, figures: dict[str, float]) -> Played:
        steps = int(self._steps[slot]) - self._task.lead_steps
        if self._task.start is not None and (steps < 1 or seed != self._task.start.game.seed):
            raise self._task.start.elsewhere(int(self._steps[slot]), seed)
        index = self._numbers[slot] + int(self._played[slot]) * self._lanes.num_lanes
        record = EpisodeRecord(float(self._returns[slot]), steps, seed, figures)
        game = None
        if self._recorder is not None:
            options = self._task.start.game.options if self._task.start else {}
            whole_return = float(self._returns[slot] + self._led_returns[slot])
            game = self._recorder.finish(slot, seed, options, whole_return)
        self._played[slot] += 1
        self._steps[slot], self._returns[slot], self._led_returns[slot] = 0, 0.0, 0.0
        return Played(index, record, game)
