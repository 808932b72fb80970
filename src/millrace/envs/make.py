"""From a name or a callable to a `SlotEnv`."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym

from millrace.config import EnvConfig
from millrace.envs.atari import AtariOptions, AtariSlots, is_atari, make_atari
from millrace.envs.envpool import is_envpool, make_envpool
from millrace.envs.game_slots import GameSlots
from millrace.envs.gym_slots import GymSlots
from millrace.envs.protocol import SeedOf, SlotEnv, episode_seed
from millrace.envs.registration import GAME_SIZES, register_envs
from millrace.envs.spaces import with_stack
from millrace.envs.vector_slots import VectorSlots
from millrace.errors import ConfigError, EnvError, MissingExtraError

ATARI_STACK = 4  # Mnih et al. 2015
EXTRAS = {
    "ale_py": "atari",
    "cv2": "atari",
    "stable_retro": "retro",
    "mujoco": "mujoco",
    "Box2D": "box2d",
    "pygame": "render",
}


@dataclass(frozen=True)
class EnvMaker:
    """How to make the environment: picklable, so that workers make their own.

    Attributes:
        config: id, arguments and wrappers.
        factory: a user's callable that overrules the id; it returns a `gymnasium.Env` or `VectorEnv`.
    """

    config: EnvConfig
    factory: Callable[..., Any] | None = None

    def make(self, num_slots: int, seed: int) -> SlotEnv:
        """`num_slots` copies that step together.

        Raises:
            ConfigError: no such environment. EnvError: it cannot be made or has unsupported spaces.
        """
        if self._native() and self.config.id not in GAME_SIZES and not (self._is_atari or self._is_envpool):
            vector_env = self._make_native_vector(num_slots)
            if vector_env is not None:
                return self._stacked(VectorSlots(vector_env, seed, self.config.on_bad_value))
        return self.make_seeded(num_slots, lambda slot, episode: episode_seed(seed, slot, episode))

    def make_seeded(self, num_slots: int, seed_of: SeedOf) -> SlotEnv:
        """Copies whose every episode has the seed that `seed_of` says; a user's own vector environment cannot."""
        return self._stacked(self._make_seeded(num_slots, seed_of))

    def _stacked(self, env: SlotEnv) -> SlotEnv:
        """The environment, described with as many frames as the policy is to see."""
        if self.frame_stack > 1:
            env.spec = with_stack(env.spec, self.frame_stack)
        return env

    @property
    def frame_stack(self) -> int:
        """Frames that the policy sees of an observation."""
        return self.config.frame_stack or (ATARI_STACK if self._is_atari else 1)

    def _make_seeded(self, num_slots: int, seed_of: SeedOf) -> SlotEnv:
        if self._native() and self.config.id in GAME_SIZES:
            return self._make_game(num_slots, seed_of)
        if self._is_envpool:
            made = self._make_envpool(self.config.kwargs, num_slots, seed_of(0, 0))
            return VectorSlots(made, None, self.config.on_bad_value)
        if self._native() and self._is_atari:
            spec = find_spec(self.config.id)
            return AtariSlots(spec, self._atari_options(self.config.kwargs), num_slots, seed_of)
        first = self.make_single()
        if isinstance(first, gym.vector.VectorEnv):
            if first.num_envs != num_slots:
                first.close()
                first = self._construct(self.config.kwargs | {"num_envs": num_slots})
            return VectorSlots(first, seed_of(0, 0), self.config.on_bad_value)
        spare = [first]  # the first one served to look at; do not make it twice
        return GymSlots(
            lambda: spare.pop() if spare else self.make_single(), num_slots, seed_of, self.config.on_bad_value
        )

    def with_kwargs(self, **kwargs: Any) -> EnvMaker:
        """The same environment with some constructor arguments overruled."""
        return replace(self, config=replace(self.config, kwargs={**self.config.kwargs, **kwargs}))

    def make_single(self, render_mode: str | None = None) -> Any:
        """One environment, wrapped as configured."""
        kwargs = dict(self.config.kwargs) | ({"render_mode": render_mode} if render_mode else {})
        with self._explaining():
            env = self._construct(kwargs)
        if isinstance(env, gym.vector.VectorEnv):
            return env
        if not isinstance(env, gym.Env):
            raise EnvError(f"{self.name} made a {type(env).__name__}, not a gymnasium.Env or VectorEnv")
        for path in self.config.wrappers:
            env = load_object(path, "env.wrappers")(env)
        if self.config.max_episode_steps and not self._is_registered:
            env = gym.wrappers.TimeLimit(env, self.config.max_episode_steps)
        return env

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """What goes wrong while an environment is made, as an error of ours."""
        try:
            yield
        except (ImportError, gym.error.DependencyNotInstalled) as error:
            missing = getattr(error, "name", None) or getattr(error.__cause__, "name", None) or ""
            extra = EXTRAS.get(missing.split(".")[0])
            if extra:
                raise MissingExtraError(missing, extra, f"the environment {self.config.id}") from error
            raise EnvError(f"cannot make {self.name}: {error}") from error
        except (TypeError, ValueError) as error:  # mostly an argument that it does not take
            arguments = ", ".join(f"{key}={value!r}" for key, value in self.config.kwargs.items()) or "no arguments"
            raise EnvError(f"cannot make {self.name} with {arguments}: {type(error).__name__}: {error}") from error

    @property
    def name(self) -> str:
        """What to call it in messages and directory names."""
        return getattr(self.factory, "__name__", "env") if self.factory else self.config.id

    @property
    def _is_registered(self) -> bool:
        return self.factory is None and ":" not in self.config.id

    @property
    def _is_atari(self) -> bool:
        return self._is_registered and is_atari(self.config.id)

    @property
    def _is_envpool(self) -> bool:
        return self._is_registered and is_envpool(self.config.id)

    def _make_envpool(self, kwargs: Mapping[str, Any], num_slots: int, seed: int) -> Any:
        if self.config.wrappers:
            raise ConfigError(f"env.wrappers wrap single environments, and {self.config.id} steps a batch of them")
        return make_envpool(self.config.id, kwargs, num_slots, seed, self.config.max_episode_steps)

    def _atari_options(self, kwargs: dict[str, Any]) -> AtariOptions:
        return AtariOptions.of(kwargs, self.config.max_episode_steps)

    def _native(self) -> bool:
        plain = self._is_registered and not self.config.wrappers
        if self.config.vectorization == "native" and not plain:
            raise ConfigError("env.vectorization=native needs a registered id and no wrappers; use auto or single")
        return plain and self.config.vectorization != "single"

    def _construct(self, kwargs: dict[str, Any]) -> Any:
        if self.factory is not None:
            return self.factory(**kwargs)
        if ":" in self.config.id:
            return load_object(self.config.id, "env.id")(**kwargs)
        if self._is_envpool:
            return self._make_envpool(kwargs, 1, 0)
        find_spec(self.config.id)
        if self._is_atari:
            render_mode = kwargs.pop("render_mode", None)
            return make_atari(self.config.id, self._atari_options(kwargs), render_mode)
        limit = self.config.max_episode_steps
        return gym.make(self.config.id, **kwargs, **({"max_episode_steps": limit} if limit else {}))

    def _make_native_vector(self, num_slots: int) -> Any:
        """The game's own vector form, or None where it has none that takes these settings."""
        spec = find_spec(self.config.id)
        kwargs = dict(self.config.kwargs)
        if spec.vector_entry_point is None:
            if self.config.vectorization == "native":
                raise ConfigError(f"{self.config.id} has no vector form of its own; use env.vectorization=auto")
            return None
        entry = spec.vector_entry_point
        constructor = load_object(entry, "vector_entry_point") if isinstance(entry, str) else entry
        accepts_limit = "max_episode_steps" in inspect.signature(constructor).parameters
        limit = self.config.max_episode_steps or spec.max_episode_steps
        if self.config.max_episode_steps and not accepts_limit:
            return None
        if accepts_limit and limit:
            kwargs["max_episode_steps"] = limit
        with self._explaining():
            return gym.make_vec(self.config.id, num_slots, vectorization_mode="vector_entry_point", **kwargs)

    def _make_game(self, num_slots: int, seed_of: SeedOf) -> SlotEnv:
        from millrace.games.realm import make_game

        find_spec(self.config.id)
        kwargs = dict(self.config.kwargs)
        if self.config.max_episode_steps:
            kwargs["max_step"] = self.config.max_episode_steps
        with self._explaining():
            single = gym.make(self.config.id, disable_env_checker=True, **self.config.kwargs)
            spaces = single.observation_space, single.action_space
            single.close()
            game = make_game(GAME_SIZES[self.config.id], num_slots, **kwargs)
        return GameSlots(game, spaces, seed_of, self.config.on_bad_value)


def find_spec(env_id: str) -> Any:
    """The registration of a Gymnasium id.

    Raises:
        ConfigError: no such id, with the nearest one.
    """
    if env_id.startswith("millrace/"):
        register_envs()
    if is_atari(env_id):
        try:
            gym.register_envs(importlib.import_module("ale_py"))
        except ModuleNotFoundError:
            raise MissingExtraError("ale_py", "atari", f"the environment {env_id}") from None
    try:
        return gym.spec(env_id)
    except gym.error.Error:
        near = difflib.get_close_matches(env_id, list_ids(), 1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "; `millrace envs` lists them"
        raise ConfigError(f"there is no environment {env_id!r}{hint}") from None


def list_ids() -> list[str]:
    """Every registered id, ours first."""
    register_envs()
    others = sorted(str(env_id) for env_id in gym.registry if not str(env_id).startswith("millrace/"))
    return [*GAME_SIZES, *others]


def load_object(path: str, what: str) -> Any:
    """The object that `module:name` names; the working directory is searched too.

    Raises:
        ConfigError: no such module or name.
    """
    module_name, _, name = path.partition(":")
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise  # the user's module is there, and lacks one of its own imports
        raise ConfigError(f"{what}: there is no module {module_name!r} here or on the Python path") from None
    try:
        return getattr(module, name)
    except AttributeError:
        if module_name == "__main__" or "<" in name:
            raise ConfigError(
                f"{what}={path!r} is a function of a script or inside another one, which its name does not lead to; "
                "use Python and pass it as env=..., or name one that can be imported: --env.id module:function"
            ) from None
        near = difflib.get_close_matches(name, dir(module), 1)
        raise ConfigError(
            f"{what}: {module_name} has no {name!r}" + (f"; did you mean {near[0]}?" if near else "")
        ) from None
