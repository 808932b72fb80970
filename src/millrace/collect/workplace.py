"""All of a worker but its messages: a collector with the shared memory that it writes to."""

from __future__ import annotations

from typing import Any

import numpy as np

from millrace.buffer.slab import Slab
from millrace.collect.collector import Collected, Collector, collect_in_turn
from millrace.collect.exchange import Exchange
from millrace.collect.setup import LANE_STEPS, Blocks, Lane, WorkerSetup, action_logs, columns_of, progress_words
from millrace.collect.weights import Held, WeightsBoard
from millrace.collect.wire import WireExchange
from millrace.envs.make import EnvMaker
from millrace.errors import EnvError
from millrace.nets.actor import Actor, ActorMaker, Forward

NOTHING = Held(-1, 0)


class PolicyCopy:
    """A policy of one's own, which takes its weights from the board."""

    def __init__(self, setup: WorkerSetup, blocks: Blocks, actor: Actor) -> None:
        self.actor = actor
        self.held = NOTHING
        self._board = WeightsBoard(blocks.weights.memory, setup.weights_size, setup.num_versions)
        self._weights = np.empty(setup.weights_size, np.float32)

    def take(self, version: int | None) -> Held:
        """Load the weights of a version, or the newest, unless they are loaded; which they are."""
        if self.held != (self._board.newest if version is None else (version, self.held.digest)):
            self.held = self._board.read(self._weights, version)
            self.actor.load(self._weights)
        return self.held


class Workplace:
    """Collectors with the shared memory that they write to: the whole of a worker but its messages.

    Args:
        exchange: where inference is central: whoever acts is asked there.
        actor_maker: of the worker's own copy of the policy otherwise.
    """

    def __init__(
        self,
        setup: WorkerSetup,
        blocks: Blocks,
        env_maker: EnvMaker,
        actor_maker: ActorMaker | None,
        exchange: Exchange | WireExchange | None = None,
    ) -> None:
        self._setup, self._env_maker, self._exchange = setup, env_maker, exchange
        self._options: dict[str, Any] = {}  # given to the environments so far
        self._policy = None if actor_maker is None else PolicyCopy(setup, blocks, actor_maker.make())
        self._collectors = self._make_collectors(setup.lanes)
        slab = Slab(setup.layout, setup.num_rollouts, blocks.rollouts)
        # Kept, since collectors know rollouts by identity.
        self._rollouts = [[columns_of(rollout, lane) for lane in setup.lanes] for rollout in slab.rollouts]
        self.progress = progress_words(blocks.progress, setup.num_seats)[setup.seat]
        self._logs = action_logs(blocks.logs, setup.lanes, setup.action_log_steps, setup.seat)
        self._logs_begun = False

    def _make_collectors(self, lanes: tuple[Lane, ...]) -> list[Collector]:
        return [self._make_collector(index, lane) for index, lane in enumerate(lanes)]

    def _make_collector(self, index: int, lane: Lane) -> Collector:
        setup = self._setup
        env = self._env_maker.make(lane.layout.num_slots, lane.stream_seed)
        if env.spec != setup.layout.spec:
            env.close()
            raise EnvError(f"worker {setup.worker}: its environment has other spaces than the first one made")
        if self._options:
            env.set_options(self._options)
        rng = np.random.Generator(np.random.Philox(lane.stream_seed))
        return Collector(env, self._actor(index), lane.layout, rng, temperature=setup.temperature)

    def _actor(self, lane: int) -> Forward:
        if self._policy is not None:
            return self._policy.actor
        assert self._exchange is not None
        return self._exchange.actor(self._setup.worker, lane, self._setup.answer_timeout_s)

    @property
    def exactness(self) -> str:
        """What the environments can save: see `SlotEnv`."""
        return self._collectors[0].env.exactness

    def begin_anew(self, lanes: tuple[Lane, ...]) -> None:
        """Other episodes in place of the present ones, from the lanes' seeds."""
        self.close()
        self._collectors = self._make_collectors(lanes)
        self._logs_begun = False

    def collect(self, place: int, options: dict[str, Any] | None = None, version: int | None = None) -> Collected:
        """One rollout into the given place.

        Args:
            options: of the environment, for episodes that begin from now on; None where they have not changed.
            version: of the weights to act with; None for the newest.
        """
        if options is not None:
            self._options = options
            for collector in self._collectors:
                collector.env.set_options(options)
        held = NOTHING if self._policy is None else self._policy.take(version)
        self._begin_logs()
        rollouts = self._rollouts[place]
        self.progress[2:4] = place, self.progress[0]
        self.progress[1] = 1
        collected = collect_in_turn(
            [
                collector.collecting(rollout, held, self.progress[word : word + 1])
                for collector, rollout, word in zip(self._collectors, rollouts, LANE_STEPS, strict=False)
            ]
        )
        for log, rollout, collector in zip(self._logs, rollouts, self._collectors, strict=False):
            log.append(rollout, collector.env.episode_seeds())
        self.progress[1] = 0
        return collected

    def _begin_logs(self) -> None:
        for collector in self._collectors:
            collector.start()
        if not self._logs_begun:
            for log, collector in zip(self._logs, self._collectors, strict=False):
                log.clear(collector.env.episode_seeds())
            self._logs_begun = True

    def save_state(self) -> dict[str, Any] | None:
        """Everything needed to continue; None where that is not to be had, or nothing has begun."""
        states = [collector.save_state() for collector in self._collectors]
        if any(state is None for state in states):
            return None
        return states[0] if len(states) == 1 else {"lanes": states}

    def load_state(self, state: dict[str, Any], lanes: tuple[Lane, ...]) -> None:
        """Continue from a saved state, whose worker had these lanes.

        Raises:
            EnvError: it cannot be continued here.
        """
        states = state.get("lanes", [state])
        if len(states) != len(lanes):
            raise EnvError(f"its slots were in {len(states)} part(s), and are in {len(lanes)} now")
        if lanes != self._setup.lanes:  # it had been restarted
            self.begin_anew(lanes)
        for collector, part in zip(self._collectors, states, strict=True):
            collector.load_state(part)
        for log, collector, part in zip(self._logs, self._collectors, states, strict=False):
            # Environments that count begun episodes name them from 0; the others have no seeds to tell.
            episodes = np.asarray(part["env"].get("episodes", 1)) - 1
            log.clear(collector.env.episode_seeds(), episodes, cut=True)
        self._logs_begun = True

    def close(self) -> None:
        for collector in self._collectors:
            collector.close()


def with_generation(state: dict[str, Any] | None, generation: int) -> dict[str, Any] | None:
    """A collector's state with what its worker's seed follows from."""
    return None if state is None else {**state, "generation": generation}
