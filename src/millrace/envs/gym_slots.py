"""B single Gymnasium environments, stepped one after another in one process."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from millrace.envs import snapshot
from millrace.envs.protocol import EnvRow, FinalObservation, SeedOf, plain_numbers
from millrace.envs.spaces import MASK_KEY, action_converter, leaf_value, leaves, pick, slot_spec
from millrace.errors import EnvError
from millrace.types import Array, SlotSpec


class GymSlots:
    """Adapts `gymnasium.Env` objects to `SlotEnv`; every episode is reset with a seed of its own."""

    same_step_reset = False
    final: FinalObservation | None = None

    def __init__(
        self,
        make_env: Callable[[], gym.Env[Any, Any]],
        num_slots: int,
        seed_of: SeedOf,
        on_bad_value: str = "count",
    ) -> None:
        self.envs = [make_env() for _ in range(num_slots)]
        self.num_slots = num_slots
        self.bad_values = 0
        self._seed_of = seed_of
        self._refuse = on_bad_value == "refuse"
        env = self.envs[0]
        self.spaces = env.observation_space, env.action_space
        self._leaves = [leaf for leaf in leaves(env.observation_space) if leaf[0] != MASK_KEY]
        self._mask_path = next((path for name, path, _ in leaves(env.observation_space) if name == MASK_KEY), None)
        _, info = env.reset(seed=seed_of(0, 0))
        self._mask_in_info = self._mask_path is None and MASK_KEY in info
        self.spec: SlotSpec = slot_spec(env.observation_space, env.action_space, self._mask_in_info)
        self._convert = action_converter(env.action_space)
        self._done = np.zeros(num_slots, bool)
        self._episodes = np.zeros(num_slots, np.int64)
        self._seeds = np.full(num_slots, -1, np.int64)
        self._figures: list[tuple[int, int, dict[str, float]]] = []
        self._keeps_state = snapshot.save(env) is not None
        self._options: dict[str, Any] = {}
        self._episode_options: list[dict[str, Any]] = [{} for _ in range(num_slots)]
        self._actions: list[list[Array]] = [[] for _ in range(num_slots)]
        self.exactness = "state" if self._keeps_state else "replay"

    def set_options(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)

    def reset(self, row: EnvRow) -> None:
        for slot in range(self.num_slots):
            self._reset_slot(slot, row)

    def _reset_slot(self, slot: int, row: EnvRow) -> None:
        seed = self._seed_of(slot, int(self._episodes[slot]))
        self._seeds[slot] = seed
        self._episodes[slot] += 1
        self._actions[slot].clear()
        self._episode_options[slot] = self._options
        observation, info = self._reset_env(slot, seed)
        row.reward[slot], row.valid[slot] = 0.0, False
        row.terminated[slot] = row.truncated[slot] = self._done[slot] = False
        problem = self._write(slot, observation, info, row)
        if problem:
            raise EnvError(f"slot {slot}, reset(seed={seed}): {problem}")

    def _reset_env(self, slot: int, seed: int) -> tuple[Any, dict[str, Any]]:
        """Begin the slot's episode, with options where there are any."""
        options = self._episode_options[slot]
        try:
            observation, info = self.envs[slot].reset(seed=seed, options=options or None)
            return observation, info
        except ValueError as error:
            if not options:
                raise
            raise EnvError(f"slot {slot}, reset(seed={seed}, options={options}): {error}") from error

    def step(self, action: Array, row: EnvRow) -> None:
        for slot, env in enumerate(self.envs):
            if self._done[slot]:
                self._reset_slot(slot, row)
                continue
            if not self._keeps_state:
                self._actions[slot].append(action[slot].copy())
            self._step_slot(slot, env, action[slot], row)

    def _step_slot(self, slot: int, env: gym.Env[Any, Any], action: Array, row: EnvRow) -> None:
        observation, reward, terminated, truncated, info = env.step(self._convert(action))
        problem = self._write(slot, observation, info, row)
        if not _is_finite_number(reward):
            problem, reward = problem or f"the reward is {reward!r}, not a finite number", 0.0
        row.reward[slot], row.valid[slot] = reward, True
        row.terminated[slot], row.truncated[slot] = terminated, truncated
        if problem:
            self._count_bad(slot, problem, row)
        self._done[slot] = row.terminated[slot] or row.truncated[slot]
        if self._done[slot]:
            self._figures.append((slot, int(self._seeds[slot]), plain_numbers(info)))

    def _count_bad(self, slot: int, problem: str, row: EnvRow) -> None:
        """The transition counts for nothing and its episode ends, or the run does."""
        if self._refuse:
            raise EnvError(f"slot {slot}, episode seed {self._seeds[slot]}: {problem}")
        self.bad_values += 1
        row.reward[slot], row.valid[slot] = 0.0, False
        row.terminated[slot], row.truncated[slot] = False, True

    def _write(self, slot: int, observation: Any, info: dict[str, Any], row: EnvRow) -> str:
        """Copy one observation and its mask into the row; what is wrong with them, or nothing."""
        problem = ""
        for name, path, space in self._leaves:
            try:
                value = leaf_value(observation, path, space)
                target = row.observation[name]
                if value.shape != target.shape[1:]:
                    raise ValueError(f"has shape {value.shape}, but its space {space} says {target.shape[1:]}")
                if value.dtype == object:
                    raise ValueError("holds None or other objects")
                target[slot] = value
                if target.dtype.kind == "f" and not np.isfinite(target[slot]).all():
                    raise ValueError("is not finite")
            except (TypeError, ValueError, KeyError, IndexError) as error:
                row.observation[name][slot] = 0
                problem = f"the observation {name} {error}"
        return self._write_mask(slot, observation, info, row) or problem

    def _write_mask(self, slot: int, observation: Any, info: dict[str, Any], row: EnvRow) -> str:
        if row.action_mask is None:
            return ""
        mask = info.get(MASK_KEY) if self._mask_in_info else pick(observation, self._mask_path or ())
        if mask is None:
            row.action_mask[slot] = True
            return "the info holds no action_mask, as it did at the first reset"
        row.action_mask[slot] = np.asarray(mask, bool).ravel()
        return ""

    def pop_figures(self) -> list[tuple[int, int, dict[str, float]]]:
        figures, self._figures = self._figures, []
        return figures

    def episode_seeds(self) -> Array:
        return self._seeds

    def save_state(self) -> dict[str, Any] | None:
        slots: list[dict[str, Any]] = []
        for slot, env in enumerate(self.envs):
            if self._keeps_state:
                slots.append({"state": snapshot.save(env)})
            else:
                actions = np.stack(self._actions[slot]) if self._actions[slot] else np.zeros((0, 0))
                slots.append({"actions": actions})
            slots[-1]["options"] = dict(self._episode_options[slot])
        return {
            "slots": slots,
            "done": self._done.copy(),
            "episodes": self._episodes.copy(),
            "seeds": self._seeds.copy(),
            "bad_values": self.bad_values,
        }

    def load_state(self, state: dict[str, Any], row: EnvRow) -> None:
        saved = {key: array.copy() for key, array in row.observation.items()}
        for slot, slot_state in enumerate(state["slots"]):
            self._episode_options[slot] = dict(slot_state["options"])
            if "state" in slot_state:
                self._reset_env(slot, int(state["seeds"][slot]))
                snapshot.load(self.envs[slot], slot_state["state"])
            else:
                self._replay(slot, int(state["seeds"][slot]), slot_state["actions"], row)
                self._check_digest(slot, saved, row)
        self._done = np.array(state["done"], bool)
        self._episodes, self._seeds = np.array(state["episodes"]), np.array(state["seeds"])
        self.bad_values = int(state["bad_values"])

    def _replay(self, slot: int, seed: int, actions: Array, row: EnvRow) -> None:
        observation, info = self._reset_env(slot, seed)
        self._actions[slot] = [action.copy() for action in actions]
        for action in actions:
            observation, _, _, _, info = self.envs[slot].step(self._convert(action))
        self._write(slot, observation, info, row)

    def _check_digest(self, slot: int, saved: dict[str, Array], row: EnvRow) -> None:
        for key, array in saved.items():
            if zlib.crc32(array[slot].tobytes()) != zlib.crc32(row.observation[key][slot].tobytes()):
                raise EnvError(
                    f"slot {slot}: replaying its episode's actions led to another observation ({key}): the environment "
                    "is not a function of seed and actions; give it save_state() and load_state()"
                )

    def render(self, slot: int) -> Array | None:
        frame = self.envs[slot].render()
        return None if frame is None else np.asarray(frame)

    def close(self) -> None:
        for env in self.envs:
            env.close()


def _is_finite_number(reward: Any) -> bool:
    try:
        return bool(np.isfinite(float(reward)))
    except (TypeError, ValueError):
        return False
