"""Realm for Gymnasium: a single environment, and a vector environment of many slots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from millrace.games.realm import RealmGame, make_game

Observation = dict[str, npt.NDArray[Any]]
DIRECTIONS = ("E", "NE", "N", "NW", "W", "SW", "S", "SE")


def observation_space(game: RealmGame) -> spaces.Dict:
    """Space of one slot's observation."""
    fields = game.observation_fields.items()
    return spaces.Dict({key: spaces.Box(one.low, one.high, one.shape, one.dtype.type) for key, one in fields})


def observe(game: RealmGame) -> Observation:
    """A fresh copy of every slot's observation, arrays [B, ...]."""
    observation = {
        key: np.zeros((game.num_slots, *field.shape), dtype=field.dtype)
        for key, field in game.observation_fields.items()
    }
    game.observe(observation)
    return observation


def draw_episode_seed(rng: np.random.Generator) -> int:
    """The seed of the next episode, from the generator that an earlier `reset(seed=...)` seeded."""
    return int(rng.integers(2**63))


class RealmEnv(gymnasium.Env[Observation, np.int64]):  # type: ignore[misc]  # mypy skips Gymnasium
    """One slot of Realm. Options: the size and the fields of `RealmOptions`.

    `reset(seed=s)` begins episode s; without a seed the episode is drawn from `np_random`. The last `info` of an
    episode holds its figures (score, treasures, steps, ...) by name. A step whose score is lost, a fault made on
    request, has the reward NaN and an empty `info`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012, Gymnasium declares it so

    def __init__(self, size: str = "mini", render_mode: str | None = None, **options: Any) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"Realm has no render_mode {render_mode!r}; use 'rgb_array' or None")
        self.render_mode = render_mode
        self.game = make_game(size, 1, **options)
        self.observation_space = observation_space(self.game)
        self.action_space = spaces.Discrete(self.game.num_actions)
        self._all = np.ones(1, dtype=np.bool_)
        self._reward = np.zeros(1, dtype=np.float32)
        self._terminated, self._truncated = np.zeros(1, dtype=np.bool_), np.zeros(1, dtype=np.bool_)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; `options` hold for it and the later ones, as `set_options` has it."""
        super().reset(seed=seed)
        if options:
            self.set_options(options)
        episode_seed = seed if seed is not None else draw_episode_seed(self.np_random)
        self.game.reset(self._all, np.array([episode_seed], dtype=np.uint64))
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Play an action, 0..15."""
        actions = np.array([action], dtype=np.int64)
        self.game.step(actions, self._all, self._reward, self._terminated, self._truncated)
        terminated, truncated = bool(self._terminated[0]), bool(self._truncated[0])
        reward = float(self._reward[0])
        lost = np.isnan(reward)
        info = self.game.episode_figures(0) if (terminated or truncated) and not lost else {}
        return self._observe(), reward, terminated, truncated, dict(info)

    def set_options(self, options: Mapping[str, Any]) -> None:
        """Change options from the next reset on; see `RealmGame.set_options`."""
        self.game.set_options(options)

    def render(self) -> npt.NDArray[np.uint8] | None:
        """The present picture [H, W, 3], or None without a render mode."""
        return self.game.render(0) if self.render_mode else None

    def get_action_meanings(self) -> list[str]:
        """A word for each action, for people."""
        return [f"{how} {direction}" for how in ("walk", "flash") for direction in DIRECTIONS]

    def save_state(self) -> dict[str, Any]:
        """The episode and the generator of unseeded resets, as arrays and plain values."""
        return {"game": self.game.save_state(), "np_random": self.np_random.bit_generator.state}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.game.load_state(state["game"])
        self.np_random.bit_generator.state = state["np_random"]

    def _observe(self) -> Observation:
        return {key: array[0] for key, array in observe(self.game).items()}


class RealmVectorEnv(VectorEnv[Observation, npt.NDArray[np.int64], npt.NDArray[Any]]):  # type: ignore[misc]
    """Many slots of Realm; slot i gives what a `RealmEnv` reset with the i-th seed gives.

    A slot that ended is reset by the next step, whatever its action (Gymnasium's next-step mode).
    """

    metadata = {  # noqa: RUF012, Gymnasium declares it so
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(self, num_envs: int = 1, size: str = "mini", render_mode: str | None = None, **options: Any) -> None:
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.game = make_game(size, num_envs, **options)
        self.single_observation_space = observation_space(self.game)
        self.single_action_space = spaces.Discrete(self.game.num_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._done = np.zeros(num_envs, dtype=np.bool_)
        self._generators = [seeding.np_random()[0] for _ in range(num_envs)]

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode in every slot, from seed + slot when `seed` is one number; `options` as in `set_options`."""
        if options:
            self.set_options(options)
        if seed is None:
            seeds: list[int | None] = [None] * self.num_envs
        else:
            seeds = [seed + slot for slot in range(self.num_envs)] if isinstance(seed, int) else list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} slots of Realm; there must be one for each")
        for slot, slot_seed in enumerate(seeds):
            if slot_seed is not None:
                self._generators[slot] = seeding.np_random(slot_seed)[0]
        self._done[:] = True
        self._begin(seeds)
        return observe(self.game), {}

    def step(
        self, actions: npt.NDArray[np.int64]
    ) -> tuple[Observation, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]]:
        """Play an action in each slot; begin a new episode instead where the last one ended."""
        reward = np.zeros(self.num_envs, dtype=np.float32)
        terminated, truncated = np.zeros((2, self.num_envs), dtype=np.bool_)
        active = ~self._done
        self.game.step(np.ascontiguousarray(actions, dtype=np.int64), active, reward, terminated, truncated)
        if self._done.any():
            self._begin([None] * self.num_envs)
        self._done = terminated | truncated
        infos: dict[str, Any] = {}
        for slot in np.flatnonzero(self._done & ~np.isnan(reward)):
            infos = self._add_info(infos, self.game.episode_figures(int(slot)), int(slot))
        return observe(self.game), reward, terminated, truncated, infos

    def set_options(self, options: Mapping[str, Any]) -> None:
        """Change options for each slot from its next reset on; see `RealmGame.set_options`."""
        self.game.set_options(options)

    def render(self) -> tuple[npt.NDArray[np.uint8], ...] | None:
        """A picture [H, W, 3] of every slot, or None without a render mode."""
        if self.render_mode is None:
            return None
        return tuple(self.game.render(slot) for slot in range(self.num_envs))

    def save_state(self) -> dict[str, Any]:
        """All episodes and the slots' generators, as arrays and plain values."""
        return {
            "game": self.game.save_state(),
            "done": self._done.copy(),
            "generators": [generator.bit_generator.state for generator in self._generators],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.game.load_state(state["game"])
        self._done = np.array(state["done"], dtype=np.bool_)
        for generator, generator_state in zip(self._generators, state["generators"], strict=True):
            generator.bit_generator.state = generator_state

    def _begin(self, seeds: list[int | None]) -> None:
        """Begin an episode in each slot that is done, from its seed or else its generator."""
        drawn = np.zeros(self.num_envs, dtype=np.uint64)
        for slot in np.flatnonzero(self._done):
            seed = seeds[slot]
            drawn[slot] = seed if seed is not None else draw_episode_seed(self._generators[slot])
        self.game.reset(self._done, drawn)
        self._done = np.zeros(self.num_envs, dtype=np.bool_)
