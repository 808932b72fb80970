"""Atari games of the Arcade Learning Environment: many copies in ALE's own vector form, or single environments."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from millrace.envs.protocol import EnvRow, FinalObservation, SeedOf
from millrace.envs.spaces import slot_spec
from millrace.errors import ConfigError, EnvError
from millrace.types import Array, SlotSpec

PREFIX = "ALE/"
FIRE = "FIRE"


def is_atari(env_id: str) -> bool:
    """Whether an id is one of ALE's, such as `ALE/Pong-v5`."""
    return env_id.startswith(PREFIX)


@dataclass(frozen=True)
class AtariOptions:
    """What `env.kwargs` may say of an Atari game. Preprocessing is Gymnasium's, after Machado et al. 2018.

    Attributes:
        frameskip: frames that an action is held for; the two last ones are joined by their maximum.
        repeat_action_probability: chance that a frame takes the action before instead (sticky actions).
        full_action_space: all 18 actions, not only those that the game knows.
        max_num_frames_per_episode: a game is truncated after so many frames.
        noop_max: a game begins with 1 to so many frames without action, drawn by its seed; 0 = none.
        screen_size: side of the square picture, in pixels.
        grayscale: else RGB.
        fire_reset: press the fire button once at the beginning, where the game has one.
        episodic_life: to the learner an episode ends with each life, while the game goes on; vector form only.
        num_threads: of one worker, stepping its copies; vector form only.
    """

    frameskip: int = 4
    repeat_action_probability: float = 0.25
    full_action_space: bool = False
    max_num_frames_per_episode: int = 108_000
    noop_max: int = 30
    screen_size: int = 84
    grayscale: bool = True
    fire_reset: bool = False
    episodic_life: bool = False
    num_threads: int = 1

    @staticmethod
    def of(kwargs: Mapping[str, Any], max_episode_steps: int = 0) -> AtariOptions:
        """The defaults overruled by `env.kwargs`, and the limit by `env.max_episode_steps` where that is not 0."""
        names = [field.name for field in dataclasses.fields(AtariOptions)]
        unknown = sorted(set(kwargs) - set(names))
        if unknown:
            raise ConfigError(f"env.kwargs: Atari games take no {', '.join(unknown)}; they take {', '.join(names)}")
        options = AtariOptions(**kwargs)
        if options.frameskip < 1:
            raise ConfigError(f"env.kwargs: frameskip={options.frameskip} must be 1 or more")
        if max_episode_steps:
            limit = max_episode_steps * options.frameskip
            return dataclasses.replace(options, max_num_frames_per_episode=limit)
        return options

    @property
    def space(self) -> gym.spaces.Box:
        """What the policy sees: [H, W], or [H, W, 3]."""
        shape = (self.screen_size, self.screen_size, *(() if self.grayscale else (3,)))
        return gym.spaces.Box(0, 255, shape, np.uint8)


def make_atari(env_id: str, options: AtariOptions, render_mode: str | None = None) -> Any:
    """A single environment with Gymnasium's preprocessing.

    Raises:
        ConfigError: options that only the vector form has.
    """
    if options.episodic_life:
        raise ConfigError(
            "episodic_life needs the game's vector form: env.vectorization=auto and no wrappers; to play a whole game, "
            "give episodic_life=false"
        )
    env = gym.make(
        env_id,
        render_mode=render_mode,
        frameskip=1,
        repeat_action_probability=options.repeat_action_probability,
        full_action_space=options.full_action_space,
        max_num_frames_per_episode=options.max_num_frames_per_episode,
    )
    env = gym.wrappers.AtariPreprocessing(
        env,
        noop_max=options.noop_max,
        frame_skip=options.frameskip,
        screen_size=options.screen_size,
        grayscale_obs=options.grayscale,
    )
    return FireAtReset(env) if options.fire_reset else env


class FireAtReset(gym.Wrapper):  # type: ignore[misc]  # mypy does not follow gymnasium
    """Presses the fire button once when a game begins, where the game has one."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        meanings = self.env.unwrapped.get_action_meanings()
        if FIRE in meanings:
            observation, _, _, _, info = self.env.step(meanings.index(FIRE))
        return observation, info


class AtariSlots:
    """Adapts ALE's vector environment to `SlotEnv`; every game has a seed of its own, and rewards are the game's.

    ALE resets finished games in the next step by itself, from a random state that nobody knows. They are therefore
    reset once more with their seed, which makes a game a function of seed and actions, whatever its neighbours do:
    a resume plays it again. This costs 65 ms per game, in which ALE loads the cartridge.
    """

    same_step_reset = False
    final: FinalObservation | None = None
    bad_values = 0
    exactness = "replay"

    def __init__(self, spec: Any, options: AtariOptions, num_slots: int, seed_of: SeedOf) -> None:
        from ale_py.vector_env import AtariVectorEnv

        self._env = AtariVectorEnv(
            game=spec.kwargs["game"],
            num_envs=num_slots,
            num_threads=options.num_threads,
            max_num_frames_per_episode=options.max_num_frames_per_episode,
            repeat_action_probability=options.repeat_action_probability,
            full_action_space=options.full_action_space,
            img_height=options.screen_size,
            img_width=options.screen_size,
            grayscale=options.grayscale,
            stack_num=1,  # the collector stacks frames, and stores each once
            frameskip=options.frameskip,
            noop_max=options.noop_max,
            life_loss_info=options.episodic_life,
            reward_clipping=False,  # the learner clips, so that records show the game's own score
            use_fire_reset=options.fire_reset,
        )
        self.num_slots = num_slots
        self.spaces = options.space, self._env.single_action_space
        self.spec: SlotSpec = slot_spec(*self.spaces, mask_in_info=False)
        self._options, self._seed_of = options, seed_of
        self._done = np.zeros(num_slots, bool)
        self._game_over = np.zeros(num_slots, bool)
        self._games = np.zeros(num_slots, np.int64)
        self._game_seeds = np.full(num_slots, -1, np.int64)
        self._seeds = self._game_seeds.copy()  # of episodes: a later life has none of its own
        self._score = np.zeros(num_slots)
        self._actions: list[list[int]] = [[] for _ in range(num_slots)]
        self._figures: list[tuple[int, int, dict[str, float]]] = []
        self._env.reset(seed=0)  # all of them once, before any alone

    def set_options(self, options: Mapping[str, Any]) -> None:
        raise EnvError(f"Atari games take no options while they run ({', '.join(options)}); give them as env.kwargs")

    def reset(self, row: EnvRow) -> None:
        row.reward[:], row.valid[:], row.terminated[:], row.truncated[:] = 0.0, False, False, False
        self._done[:] = False
        row.observation["obs"][...] = self._begin(np.ones(self.num_slots, bool))

    def _begin(self, slots: Array) -> Array:
        """A new game in the slots of a mask [B]; the observations of all slots."""
        for slot in np.flatnonzero(slots).tolist():
            self._game_seeds[slot] = self._seeds[slot] = self._seed_of(slot, int(self._games[slot]))
            self._actions[slot].clear()
        self._games[slots] += 1
        self._score[slots] = 0.0
        self._game_over[slots] = False
        return self._reset(slots)

    def _reset(self, slots: Array) -> Array:
        observation, _ = self._env.reset(seed=self._game_seeds[slots], options={"reset_mask": slots})
        return self._seen(observation)

    def _seen(self, observation: Array) -> Array:
        return observation[:, 0]  # ALE's stack of one

    def step(self, action: Array, row: EnvRow) -> None:
        begins = self._done
        observation, reward, terminated, truncated, info = self._env.step(action[:, 0])
        self._score += reward
        for actions, column in zip(self._actions, action[:, 0].tolist(), strict=True):
            actions.append(column)
        new_games = begins & self._game_over
        self._game_over = truncated | (terminated & (info["lives"] == 0))
        np.logical_not(begins, out=row.valid)
        row.reward[:] = np.where(begins, 0.0, reward)
        row.terminated[:] = terminated & row.valid
        row.truncated[:] = truncated & row.valid
        # A game may end in the very step after a lost life, which is no experience: the next one begins at once.
        new_games |= begins & self._game_over
        row.observation["obs"][...] = self._begin(new_games) if new_games.any() else self._seen(observation)
        self._done = row.terminated | row.truncated
        for slot in np.flatnonzero(self._done).tolist():
            self._figures.append((slot, int(self._seeds[slot]), self._numbers(slot)))
        self._seeds[self._done & ~self._game_over] = -1

    def _numbers(self, slot: int) -> dict[str, float]:
        """The score of a whole game, where records are of lives."""
        wants_score = self._options.episodic_life and self._game_over[slot]
        return {"game_score": float(self._score[slot])} if wants_score else {}

    def pop_figures(self) -> list[tuple[int, int, dict[str, float]]]:
        figures, self._figures = self._figures, []
        return figures

    def episode_seeds(self) -> Array:
        return self._seeds

    def save_state(self) -> dict[str, Any] | None:
        return {
            "actions": [np.array(actions, np.int32) for actions in self._actions],
            "done": self._done.copy(),
            "game_over": self._game_over.copy(),
            "games": self._games.copy(),
            "game_seeds": self._game_seeds.copy(),
            "seeds": self._seeds.copy(),
            "score": self._score.copy(),
        }

    def load_state(self, state: dict[str, Any], row: EnvRow) -> None:
        self._game_seeds, self._seeds = np.array(state["game_seeds"]), np.array(state["seeds"])
        observation = self._replay([np.array(actions) for actions in state["actions"]])
        differs = (observation != row.observation["obs"]).reshape(self.num_slots, -1).any(-1)
        if differs.any():
            raise EnvError(
                f"slot {int(np.flatnonzero(differs)[0])}: replaying its game's actions led to another picture; was it "
                "played with another version of ale-py?"
            )
        self._done, self._game_over = np.array(state["done"], bool), np.array(state["game_over"], bool)
        self._games, self._score = np.array(state["games"]), np.array(state["score"])

    def _replay(self, played: list[Array]) -> Array:
        """Play every slot's actions since its game began, each starting so late that all end together."""
        self._actions = [list(map(int, actions)) for actions in played]
        num_actions = np.array([len(actions) for actions in played])
        longest = int(num_actions.max())
        observation = np.empty(0)
        for step in range(longest + 1):
            starts = longest - num_actions == step
            if starts.any():
                observation = self._reset(starts)
            if step < longest:
                action = [actions[step - longest] if -len(actions) <= step - longest else 0 for actions in played]
                observation = self._seen(self._env.step(np.array(action))[0])
        return observation

    def render(self, slot: int) -> Array | None:
        """None: ALE's vector form draws nothing; single environments do."""
        return None

    def close(self) -> None:
        self._env.close()
