"""One Gymnasium vector environment, in any of its autoreset modes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from millrace.envs import snapshot
from millrace.envs.protocol import EnvRow, FinalObservation, plain_numbers
from millrace.envs.spaces import MASK_KEY, batch_action_converter, leaf_value, leaves, pick, slot_spec
from millrace.errors import EnvError
from millrace.types import Array, SlotSpec


class VectorSlots:
    """Adapts `gymnasium.vector.VectorEnv` to `SlotEnv`.

    Next-step environments fit as they are. Same-step ones, and those that leave resetting to the caller (which
    is then done at once, since the other slots cannot wait), hand out the final observation in `final`.

    Args:
        seed: None where the environment has got it when it was made.
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any], seed: int | None, on_bad_value: str = "count") -> None:
        self.env = env
        self.num_slots = env.num_envs
        self.bad_values = 0
        self.final: FinalObservation | None = None
        mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        self._mode = AutoresetMode(mode) if isinstance(mode, str) else mode
        self.same_step_reset = self._mode != AutoresetMode.NEXT_STEP
        self._seed = seed
        self._refuse = on_bad_value == "refuse"
        space = env.single_observation_space
        self.spaces = space, env.single_action_space
        self._leaves = [leaf for leaf in leaves(space) if leaf[0] != MASK_KEY]
        self._mask_path = next((path for name, path, _ in leaves(space) if name == MASK_KEY), None)
        _, info = env.reset(seed=seed)
        self._mask_in_info = self._mask_path is None and MASK_KEY in info
        self.spec: SlotSpec = slot_spec(space, env.single_action_space, self._mask_in_info)
        self._convert = batch_action_converter(env.single_action_space)
        self._done = np.zeros(self.num_slots, bool)
        self._seeds = np.full(self.num_slots, -1, np.int64)
        self._figures: list[tuple[int, int, dict[str, float]]] = []
        keeps_state = snapshot.save(env) is not None
        self.exactness = "state" if keeps_state else "a vector environment that cannot save its state"

    def set_options(self, options: Mapping[str, Any]) -> None:
        raise EnvError(
            f"options cannot be changed in a vector environment, which resets by itself ({', '.join(options)}); "
            "use env.vectorization=single"
        )

    def reset(self, row: EnvRow) -> None:
        observation, info = self.env.reset(seed=self._seed)
        row.reward[:], row.valid[:], row.terminated[:], row.truncated[:] = 0.0, False, False, False
        self._done[:] = False
        self._write(observation, info, row)

    def step(self, action: Array, row: EnvRow) -> None:
        observation, reward, terminated, truncated, info = self.env.step(self._convert(action))
        row.reward[:], row.terminated[:], row.truncated[:] = reward, terminated, truncated
        np.logical_not(self._done, out=row.valid)
        if self.same_step_reset:
            row.valid[:] = True
        self._write(observation, info, row)
        self._check(row)
        done = np.logical_or(row.terminated, row.truncated)
        self.final = None
        if done.any():
            self._finish(done, observation, info, row)
        self._done = done

    def _finish(self, done: Array, observation: Any, info: dict[str, Any], row: EnvRow) -> None:
        slots = np.flatnonzero(done)
        final_info = info.get("final_info", info)
        for slot in slots:
            self._figures.append((int(slot), int(self._seeds[slot]), _figures_of(final_info, slot)))
        if not self.same_step_reset:
            return
        if self._mode == AutoresetMode.DISABLED:
            self.final = self._take_final(slots, {name: row.observation[name] for name, _, _ in self._leaves})
            observation, info = self.env.reset(options={"reset_mask": done})
            self._write(observation, info, row, slots)
        else:
            # An array of objects, one observation a slot, None where the episode goes on.
            finals = [info["final_obs"][slot] for slot in slots]
            arrays = {
                name: np.stack([leaf_value(final, path, space) for final in finals])
                for name, path, space in self._leaves
            }
            self.final = FinalObservation(slots, arrays)

    @staticmethod
    def _take_final(slots: Array, observation: dict[str, Array]) -> FinalObservation:
        return FinalObservation(slots, {key: array[slots].copy() for key, array in observation.items()})

    def _write(self, observation: Any, info: dict[str, Any], row: EnvRow, slots: Any = ...) -> None:
        """Copy observations and masks of all slots, or of those given: a partial reset tells nothing of the others."""
        for name, path, space in self._leaves:
            try:
                row.observation[name][slots] = leaf_value(observation, path, space)[slots]
            except (TypeError, ValueError) as error:
                raise EnvError(f"the observation {name} does not fit its space {space}: {error}") from None
        if row.action_mask is not None:
            mask = info[MASK_KEY] if self._mask_in_info else pick(observation, self._mask_path or ())
            row.action_mask[slots] = np.asarray(mask).reshape(row.action_mask.shape)[slots]

    def _check(self, row: EnvRow) -> None:
        """One sum per array tells whether anything is not finite; only then is it looked for."""
        suspects = [row.reward, *(array for array in row.observation.values() if array.dtype.kind == "f")]
        with np.errstate(over="ignore", invalid="ignore"):  # infinities of both signs, or large numbers that are fine
            if all(np.isfinite(array.sum()) for array in suspects):
                return
        bad = np.zeros(self.num_slots, bool)
        for array in suspects:
            bad |= ~np.isfinite(array).reshape(self.num_slots, -1).all(-1)
            array[~np.isfinite(array)] = 0
        if self._refuse and bad.any():
            raise EnvError(f"slot {int(np.flatnonzero(bad)[0])}: a reward or observation is not finite")
        # The environment itself goes on, so its flags stay as they are: only these transitions count for nothing.
        self.bad_values += int(bad.sum())
        row.valid[bad] = False

    def pop_figures(self) -> list[tuple[int, int, dict[str, float]]]:
        figures, self._figures = self._figures, []
        return figures

    def episode_seeds(self) -> Array:
        return self._seeds

    def save_state(self) -> dict[str, Any] | None:
        state = snapshot.save(self.env)
        return None if state is None else {"state": state, "done": self._done.copy(), "bad_values": self.bad_values}

    def load_state(self, state: dict[str, Any], row: EnvRow) -> None:
        self.env.reset(seed=self._seed)
        snapshot.load(self.env, state["state"])
        self._done = np.array(state["done"], bool)
        self.bad_values = int(state["bad_values"])

    def render(self, slot: int) -> Array | None:
        frames = self.env.render()
        return None if frames is None else np.asarray(frames[slot])

    def close(self) -> None:
        self.env.close()


def _figures_of(info: dict[str, Any], slot: Any) -> dict[str, float]:
    """The numbers of one slot from a vector info, whose entries are arrays with a `_KEY` array beside them."""
    single = {}
    for key, value in info.items():
        present = info.get(f"_{key}")
        if isinstance(value, np.ndarray) and value.ndim == 1 and present is not None and present[slot]:
            single[key] = value[slot]
    return plain_numbers(single)
