"""Millrace's environments in the form that RLlib takes: vectors or an image, masks beside them, an agent a seat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from millrace.collect.collector import EnvRows
from millrace.config import NetConfig
from millrace.envs.make import EnvMaker
from millrace.envs.protocol import EnvRow, episode_seed
from millrace.envs.spaces import MASK_KEY
from millrace.nets.actor import prepared
from millrace.nets.inputs import dense_keys, image_keys, is_channels_last
from millrace.nets.memory import Memory
from millrace.types import ActionSpec, Array, ArraySpec, RolloutLayout, SlotSpec

OBSERVATIONS_KEY = "observations"  # beside the mask, as RLlib's module for masks wants it
MAX_SEED = 2**31


class Seats:
    """Some slots of an environment that play one game: `reset` and `step` as RLlib calls them, a row for each seat.

    Attributes:
        spec: of one seat.
        observation_space, action_space: of one seat as RLlib sees them: what Millrace's network would see, and
            actions counted from 0.
    """

    def __init__(self, maker: EnvMaker, num_seats: int, seed: int | None = None) -> None:
        self._seed = int(np.random.default_rng(seed).integers(MAX_SEED))
        self._env = maker.make_seeded(num_seats, lambda slot, episode: episode_seed(self._seed, slot, episode))
        self.spec, self.num_seats, self.spaces = self._env.spec, num_seats, self._env.spaces
        self.observation_space, self.action_space = seat_spaces(self.spec)
        layout = RolloutLayout(self.spec, 1, num_seats, self._env.same_step_reset)
        self._rows: list[EnvRow] = EnvRows(layout.allocate(), layout).rows
        self._memory = Memory(self.spec, 0, num_seats)
        self._is_done = np.zeros(num_seats, bool)
        self._ended_together = False
        self.figures: list[dict[str, float]] = [{} for _ in range(num_seats)]

    def reset(self, seed: int | None) -> list[Any]:
        """Begin a game; the first observation of every seat."""
        row = self._rows[1]
        if seed is not None:
            self._seed = int(seed) % MAX_SEED
        if seed is not None or not self._ended_together:
            self._env.reset(row)
        elif not self._env.same_step_reset:
            nothing = np.zeros((self.num_seats, self.spec.action.num_columns), self.spec.action.dtype)
            self._env.step(nothing, row)
        self._is_done[:] = self._ended_together = False
        self._memory.begin(np.ones(self.num_seats, bool))
        return self._seen(row.observation, row.action_mask)

    def step(self, actions: Mapping[int, Any]) -> tuple[list[Any], Array, Array, Array]:
        """Observations, rewards, terminations and truncations [seats] after an action of each playing seat."""
        row, columns = self._rows[1], np.zeros((self.num_seats, self.spec.action.num_columns), self.spec.action.dtype)
        for seat, action in actions.items():
            columns[seat] = _columns(self.spec.action, action)
        self._env.step(columns, row)
        done = row.terminated | row.truncated
        for slot, _, figures in self._env.pop_figures():
            self.figures[slot] = figures
        self._ended_together = bool(done.all())
        self._is_done |= done
        observation = {key: array.copy() for key, array in row.observation.items()}
        if self._env.final is not None:
            for key, array in self._env.final.observation.items():
                observation[key][self._env.final.slots] = array
        return self._seen(observation, row.action_mask), row.reward.copy(), row.terminated.copy(), row.truncated.copy()

    @property
    def is_done(self) -> Array:
        """[seats] whose game has ended."""
        return self._is_done

    def render(self) -> Array | None:
        """A picture of the first seat."""
        return self._env.render(0)

    def close(self) -> None:
        self._env.close()

    def _seen(self, observation: dict[str, Array], mask: Array | None) -> list[Any]:
        seen = as_inputs(self.spec, self._memory.see(observation))
        if mask is None:
            return list(seen)
        bits = mask.astype(np.float32)
        return [{MASK_KEY: bits[seat], OBSERVATIONS_KEY: seen[seat]} for seat in range(self.num_seats)]


def single_image(spec: SlotSpec) -> str | None:
    """The key of an image that is all there is to see and that Millrace would give to convolutions."""
    keys = image_keys(spec, NetConfig())
    return keys[0] if len(keys) == 1 and not dense_keys(spec, NetConfig()) else None


def as_inputs(spec: SlotSpec, observation: Mapping[str, Array]) -> Array:
    """[B, inputs] as Millrace's dense layers see them; or an image [B, H, W, C] in 0..1, frames among the channels."""
    key = single_image(spec)
    if key is not None:
        return _image(spec.observation[key], observation[key])
    keys = dense_keys(spec, NetConfig(image="flat"))
    return np.concatenate([prepared(spec.observation[key], observation[key]) for key in keys], axis=1)


def _image(spec: ArraySpec, array: Array) -> Array:
    x = array.astype(np.float32) * np.float32(spec.scale)
    if is_channels_last(x.shape[1:]):
        x = np.moveaxis(x, -1, -3)
    return np.ascontiguousarray(np.moveaxis(x.reshape(len(x), -1, *x.shape[-2:]), 1, -1))


def seat_spaces(spec: SlotSpec) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """The observation and the action space of one seat as RLlib sees them."""
    nothing = {key: np.zeros((1, *array.seen_shape), array.dtype) for key, array in spec.observation.items()}
    shape, is_image = as_inputs(spec, nothing).shape[1:], single_image(spec) is not None
    seen = spaces.Box(0.0, 1.0, shape) if is_image else spaces.Box(-np.inf, np.inf, shape)
    if spec.has_action_mask:
        mask = spaces.Box(0.0, 1.0, (spec.num_mask_bits,))
        return spaces.Dict({MASK_KEY: mask, OBSERVATIONS_KEY: seen}), _action_space(spec.action)
    return seen, _action_space(spec.action)


def _action_space(action: ActionSpec) -> gym.Space[Any]:
    categories = spaces.Discrete(action.nvec[0]) if len(action.nvec) == 1 else spaces.MultiDiscrete(action.nvec or (1,))
    numbers = spaces.Box(np.array(action.low, np.float32), np.array(action.high, np.float32))
    if not action.num_box:
        return categories
    return spaces.Tuple((categories, numbers)) if action.nvec else numbers


def _columns(spec: ActionSpec, action: Any) -> Array:
    parts = action if isinstance(action, tuple) else (action,)
    return np.concatenate([np.ravel(part) for part in parts]).astype(spec.dtype)
