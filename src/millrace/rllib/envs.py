"""Millrace's environments offered to RLlib, by one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym

from millrace.config import Config
from millrace.deploy.record import PolicyRecord
from millrace.deploy.rllib_files import RECORD_KEY
from millrace.envs.make import EnvMaker
from millrace.errors import MissingExtraError
from millrace.rllib.seats import Seats

SINGLE_NAME, SEATS_NAME = "millrace", "millrace_seats"
SEAT_PREFIX = "seat_"


def rllib_env(env: str | Callable[..., Any] | Config, *, seats: int = 1, **kwargs: Any) -> dict[str, Any]:
    """Any environment of Millrace's for RLlib: `config.environment(**millrace.rllib_env("millrace/RealmMini-v0"))`.

    RLlib sees what Millrace's network would see: a vector with categories one-hot and bytes scaled, or one image. Where
    there is a mask, observations are dictionaries of `action_mask` and `observations`, as RLlib's
    `ActionMaskingTorchRLModule` wants them. With `seats` the environment is a `MultiAgentEnv` of the agents `seat_0`,
    `seat_1`, ...: the slots of one game.

    Args:
        env: a Gymnasium id, `module:function`, a callable that makes an environment, or a `Config`.
        kwargs: arguments for the environment's constructor.

    Raises:
        MissingExtraError: RLlib is not installed. ConfigError, EnvError: there is no such environment.
    """
    from millrace.training import make_config

    config, maker = make_config(env, {"env.kwargs": kwargs} if kwargs else None)
    return offer(maker, config, seats)


def offer(maker: EnvMaker, config: Config, seats: int) -> dict[str, Any]:
    """The arguments of `AlgorithmConfig.environment`; the environment's description goes into every checkpoint."""
    _register()
    looked_at = Seats(maker, seats)
    looked_at.close()
    record = PolicyRecord(config.env, looked_at.spec, *looked_at.spaces, config.net)
    settings = {RECORD_KEY: record.to_json(), "maker": maker, "seats": seats}
    return {"env": SEATS_NAME if seats > 1 else SINGLE_NAME, "env_config": settings, "disable_env_checking": True}


def require_rllib() -> None:
    """Say so before anything is begun where it is not installed.

    Raises:
        MissingExtraError: it is not, or not whole.
    """
    try:
        import ray.rllib  # noqa: F401
    except ImportError:
        raise MissingExtraError("ray[rllib]", "rllib", "training by RLlib") from None


def _register() -> None:
    require_rllib()
    from ray.tune.registry import register_env

    register_env(SINGLE_NAME, lambda given: SingleEnv(given["maker"]))
    register_env(SEATS_NAME, make_seats_env)


class SingleEnv(gym.Env[Any, Any]):  # type: ignore[misc]  # mypy skips Gymnasium
    """One slot."""

    def __init__(self, maker: EnvMaker) -> None:
        self._seats = Seats(maker, 1)
        self.observation_space, self.action_space = self._seats.observation_space, self._seats.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        return self._seats.reset(seed)[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Play an action; the game's own figures are in the last `info`."""
        observation, reward, terminated, truncated = self._seats.step({0: action})
        is_over = bool(terminated[0] or truncated[0])
        figures: dict[str, Any] = dict(self._seats.figures[0]) if is_over else {}
        return observation[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), figures

    def render(self) -> Any:
        """A picture."""
        return self._seats.render()

    def close(self) -> None:
        self._seats.close()


def make_seats_env(given: dict[str, Any]) -> Any:
    """A `MultiAgentEnv`; the class is made here, since its base is RLlib's."""
    from ray.rllib.env.multi_agent_env import MultiAgentEnv

    class SeatsEnv(MultiAgentEnv):  # type: ignore[misc]  # mypy skips Ray
        """The seats of one game, as agents that move at the same time."""

        def __init__(self) -> None:
            super().__init__()
            self._seats = Seats(given["maker"], given["seats"])
            self._names = [f"{SEAT_PREFIX}{seat}" for seat in range(given["seats"])]
            self.agents = self.possible_agents = self._names
            self.observation_spaces = dict.fromkeys(self._names, self._seats.observation_space)
            self.action_spaces = dict.fromkeys(self._names, self._seats.action_space)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
            """Begin a game."""
            self.agents = list(self._names)
            return dict(zip(self._names, self._seats.reset(seed), strict=True)), {}

        def step(self, action_dict: dict[str, Any]) -> tuple[dict[str, Any], ...]:
            """Play the actions of the seats that are still in the game."""
            playing = {seat: name for seat, name in enumerate(self._names) if not self._seats.is_done[seat]}
            actions = {seat: action_dict[name] for seat, name in playing.items()}
            observation, reward, terminated, truncated = self._seats.step(actions)

            def of(values: Any, kind: Any = lambda value: value) -> dict[str, Any]:
                return {name: kind(values[seat]) for seat, name in playing.items()}

            is_over = bool(self._seats.is_done.all())
            self.agents = [name for seat, name in playing.items() if not self._seats.is_done[seat]]
            was_cut = is_over and not bool(terminated.any())
            ends = {**of(terminated, bool), "__all__": is_over and not was_cut}
            cuts = {**of(truncated, bool), "__all__": was_cut}
            return of(observation), of(reward, float), ends, cuts, {}

        def close(self) -> None:
            self._seats.close()

    return SeatsEnv()
