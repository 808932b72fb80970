"""The collector: steps a batch of slots under a policy and fills rollouts.

The same object runs inline, in a worker process, or anywhere else; where it runs is not its business.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

import numpy as np

from millrace.collect.weights import Held
from millrace.envs.protocol import EnvRow, SlotEnv
from millrace.errors import EnvError
from millrace.nets.actor import Forward
from millrace.nets.memory import Memory
from millrace.ops.sampling import sample_actions, tempered
from millrace.types import Array, CollectorTimes, EpisodeRecord, Rollout, RolloutLayout

Player = Callable[[SlotEnv, EnvRow], Array]
"""The environment, and the row that its slots are in now, to actions [B, A].

A slot whose last transition was done is reset by the next step, whatever the action (unless it was at once).
"""


@runtime_checkable
class Remote(Forward, Protocol):
    """A policy that acts elsewhere, whose answers take a while.

    Attributes:
        held: the weights that gave the last answer.
    """

    held: Held

    def ask(self, observation: dict[str, Array], state: Array | None = None) -> None:
        """Send on its way what the next call of `forward` will be about: that then waits for the rest of the time."""


@dataclass(frozen=True)
class Collected:
    """What one rollout gave besides its arrays.

    Attributes:
        version: of the weights that acted, the oldest if there were several.
        digest: of those weights, as their holder read them.
    """

    version: int
    episodes: tuple[EpisodeRecord, ...]
    times: CollectorTimes
    bad_values: int
    digest: int = 0


Collecting = Generator[None, None, Collected]
"""A rollout under way. It stops wherever an answer is awaited, so that somebody else may work meanwhile."""


class Collector:
    """Owns environments, their random stream, and what the policy remembers of them.

    Args:
        actor: the policy; whoever gave it sees to its weights.
        player: acts in the policy's place, which still gives values and carries its memory along.
        temperature: at which actions are drawn; log-probabilities are those of the tempered distribution.
    """

    def __init__(
        self,
        env: SlotEnv,
        actor: Forward,
        layout: RolloutLayout,
        rng: np.random.Generator,
        player: Player | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.env = env
        self._temperature = temperature
        self._player = player
        self._actor, self._remote = actor, actor if isinstance(actor, Remote) else None
        self._layout = layout
        self._rng = rng
        self._memory = Memory(layout.spec, layout.state_size, layout.num_slots)
        self._done = np.zeros(layout.num_slots, bool)  # whether the last transition ended the episode
        one_step = RolloutLayout(layout.spec, 1, layout.num_slots, layout.same_step_reset)
        self._current = EnvRows(one_step.allocate(), one_step).rows[0]
        self._episode_return = np.zeros(env.num_slots)
        self._episode_steps = np.zeros(env.num_slots, np.int64)
        self._rows: dict[int, EnvRows] = {}  # by identity: rollouts live in fixed places
        self._started = False

    def start(self) -> None:
        """Begin the first episodes, unless some are in progress."""
        if not self._started:
            self.env.reset(self._current)
            self._memory.see(self._current.observation)
            self._started = True

    def collect(self, rollout: Rollout, version: int, progress: Array) -> Collected:
        """Fill `rollout` with T steps.

        Args:
            version: of the weights that act; a remote policy tells its own.
            progress: one int64 that counts steps for whoever watches over this collector.
        """
        return collect_in_turn([self.collecting(rollout, Held(version, 0), progress)])

    def collecting(self, rollout: Rollout, held: Held, progress: Array) -> Collecting:
        """The same bit by bit, acted by the weights `held`."""
        self.start()
        rows = self._rows.get(id(rollout)) or self._rows.setdefault(id(rollout), EnvRows(rollout, self._layout))
        times, remote = CollectorTimes(), self._remote
        bad_before = self.env.bad_values
        seen = self._begin(rollout, rows, held.version)
        for t in range(self._layout.num_steps):
            if remote is not None:
                remote.ask(seen, self._memory.state)
                yield
            self._act(rollout, rows, t, seen, times)
            if remote is not None:
                held = remote.held if t == 0 else held
                rollout.policy_version[t] = remote.held.version
            progress[0] += 1
            stepping = perf_counter()
            self.env.step(rollout.action[t], rows.rows[t + 1])
            times.step_s += perf_counter() - stepping
            if self.env.final is not None:
                self._bootstrap(rollout, t)
            seen = self._see(rollout, rows, t)
        # A copy: the next rollout acts on this row again, with its own weights.
        state = None if self._memory.state is None else self._memory.state.copy()
        if remote is not None:
            remote.ask(seen, state)
            yield
        rollout.value[-1] = self._actor.forward(seen, state)[1]
        self._finish(rollout, rows)
        return Collected(held.version, self._episodes(rollout), times, self.env.bad_values - bad_before, held.digest)

    def _begin(self, rollout: Rollout, rows: EnvRows, version: int) -> dict[str, Array]:
        """Carry over what the last rollout ended with; what the policy sees in row 0."""
        memory = self._memory
        _copy_row(self._current, rows.rows[0])
        rollout.policy_version[:] = version
        for key, frames in memory.frames.items():
            earlier = frames.shape[1] - 1
            rollout.observation[key][:earlier] = np.moveaxis(frames[:, :-1], 1, 0)
        if rollout.bootstrap_value is not None:
            rollout.bootstrap_value[:] = np.nan
        if rollout.age is not None:
            rollout.age[0] = memory.age
        if rollout.state is not None:
            rollout.state[0] = memory.state
        return memory.seen(rows.rows[0].observation)

    def _see(self, rollout: Rollout, rows: EnvRows, t: int) -> dict[str, Array]:
        """What the policy sees in row t + 1; slots that were reset on the way there begin a new memory."""
        observation = rows.rows[t + 1].observation
        if rollout.age is None:
            return observation
        done = rollout.terminated[t] | rollout.truncated[t]
        self._memory.begin(done if self._layout.same_step_reset else self._done)
        self._done = done
        seen = self._memory.see(observation)
        rollout.age[t + 1] = self._memory.age
        return seen

    def _act(self, rollout: Rollout, rows: EnvRows, t: int, seen: dict[str, Array], times: CollectorTimes) -> None:
        begin = perf_counter()
        params, rollout.value[t] = self._actor.forward(seen, self._memory.state)
        if self._temperature != 1.0:
            params = tempered(self._layout.spec.action, params, self._temperature)
        mask = rows.rows[t].action_mask
        if mask is not None and not mask.any(-1).all():
            slot = int(np.flatnonzero(~mask.any(-1))[0])
            seed = int(self.env.episode_seeds()[slot])
            raise EnvError(
                f"slot {slot}, episode seed {seed}, step {t} of the rollout: the action mask allows no action"
            )
        if self._player is not None:
            rollout.action[t], rollout.log_prob[t] = self._player(self.env, rows.rows[t]), 0.0
        else:
            sample_actions(self._layout.spec.action, params, mask, self._rng, rollout.action[t], rollout.log_prob[t])
        times.inference_s += perf_counter() - begin

    def _bootstrap(self, rollout: Rollout, t: int) -> None:
        """Slots reset in the same step: value their final observations while they are at hand."""
        final = self.env.final
        assert final is not None
        assert rollout.bootstrap_value is not None
        seen, state = self._memory.peek(final.slots, final.observation)
        rollout.bootstrap_value[t, final.slots] = self._actor.forward(seen, state)[1]

    def _finish(self, rollout: Rollout, rows: EnvRows) -> None:
        if rollout.action_mask is not None and rows.mask is not None:
            rollout.action_mask[:] = np.packbits(rows.mask, axis=-1, bitorder="little")
        _copy_row(rows.rows[-1], self._current)

    def _episodes(self, rollout: Rollout) -> tuple[EpisodeRecord, ...]:
        """Records of the episodes that ended in this rollout, in order; whole columns at once."""
        done = rollout.terminated | rollout.truncated
        # float64, so that an episode of a million steps still adds up.
        returns = np.cumsum(rollout.reward, axis=0, dtype=np.float64) + self._episode_return
        steps = np.cumsum(rollout.valid, axis=0) + self._episode_steps
        records, figures = [], self.env.pop_figures()
        return_before, steps_before = np.zeros(self.env.num_slots), np.zeros(self.env.num_slots, np.int64)
        for (t, slot), (_, seed, numbers) in zip(np.argwhere(done), figures, strict=True):
            records.append(
                EpisodeRecord(
                    float(returns[t, slot] - return_before[slot]),
                    int(steps[t, slot] - steps_before[slot]),
                    seed,
                    numbers,
                )
            )
            return_before[slot], steps_before[slot] = returns[t, slot], steps[t, slot]
        self._episode_return, self._episode_steps = returns[-1] - return_before, steps[-1] - steps_before
        return tuple(records)

    def save_state(self) -> dict[str, Any] | None:
        """Everything needed to continue bit for bit; None where the environment cannot, or nothing has begun."""
        env_state = self.env.save_state() if self._started else None
        if env_state is None:
            return None
        return {
            "env": env_state,
            "rng": self._rng.bit_generator.state,
            "observation": {key: array.copy() for key, array in self._current.observation.items()},
            "action_mask": None if self._current.action_mask is None else self._current.action_mask.copy(),
            "episode_return": self._episode_return.copy(),
            "episode_steps": self._episode_steps.copy(),
            "memory": self._memory.save_state(),
            "done": self._done.copy(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            EnvError: the environment cannot be brought back to it.
        """
        for key, array in state["observation"].items():
            self._current.observation[key][...] = array
        if self._current.action_mask is not None:
            self._current.action_mask[...] = state["action_mask"]
        self.env.load_state(state["env"], self._current)
        self._rng.bit_generator.state = state["rng"]
        self._episode_return = np.array(state["episode_return"], np.float64)
        self._episode_steps = np.array(state["episode_steps"], np.int64)
        self._memory.load_state(state["memory"])
        self._done = np.array(state["done"], bool)
        self._started = True

    def close(self) -> None:
        self.env.close()


def collect_in_turn(streams: Sequence[Collecting]) -> Collected:
    """Carry rollouts forward in turn, each until it waits for an answer; what all of them gave."""
    begin = perf_counter()
    waiting, parts = list(streams), []
    while waiting:
        stream = waiting.pop(0)
        try:
            next(stream)
            waiting.append(stream)
        except StopIteration as end:
            parts.append(end.value)
    collected = _together(parts)
    times = collected.times
    times.other_s = perf_counter() - begin - times.step_s - times.inference_s
    return collected


def _together(parts: Sequence[Collected]) -> Collected:
    """One account of rollouts beside each other."""
    if len(parts) == 1:
        return parts[0]
    oldest = min(parts, key=lambda part: part.version)
    episodes = tuple(episode for part in parts for episode in part.episodes)
    times = CollectorTimes()
    for part in parts:
        times.add(part.times)
    return Collected(oldest.version, episodes, times, sum(part.bad_values for part in parts), oldest.digest)


class EnvRows:
    """The T+1 rows of a rollout as views, made once: slicing at every step would cost more than it moves."""

    def __init__(self, rollout: Rollout, layout: RolloutLayout) -> None:
        slots, bits = layout.num_slots, layout.spec.num_mask_bits
        self.mask = np.ones((layout.num_steps + 1, slots, bits), bool) if bits else None
        scratch = _scratch(slots)
        self.rows = []
        for t in range(layout.num_steps + 1):
            transition = (
                scratch
                if t == 0
                else (rollout.reward[t - 1], rollout.terminated[t - 1], rollout.truncated[t - 1], rollout.valid[t - 1])
            )
            observation = {key: rollout.present(key)[t] for key in rollout.observation}
            self.rows.append(EnvRow(observation, None if self.mask is None else self.mask[t], *transition))


def _scratch(num_slots: int) -> tuple[Array, Array, Array, Array]:
    """Reward and flags of a transition that nobody will read."""
    return np.zeros(num_slots, np.float32), *(np.zeros(num_slots, bool) for _ in range(3))  # type: ignore[return-value]


def _copy_row(source: EnvRow, target: EnvRow) -> None:
    for key, array in source.observation.items():
        np.copyto(target.observation[key], array)
    np.copyto(target.terminated, source.terminated)
    np.copyto(target.truncated, source.truncated)
    if source.action_mask is not None and target.action_mask is not None:
        np.copyto(target.action_mask, source.action_mask)
