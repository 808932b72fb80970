"""Environments small enough to know everything about. Workers import this file too."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space


class Clock(gym.Env):
    """Observes (episode tag, steps so far, last action); the reward is the steps so far + action / 2.

    Each episode draws its tag and its length, 1..`longest`, from its seed; odd lengths end truncated, even ones
    terminated, so that ends of both kinds meet every row of a rollout, also twice running.
    """

    def __init__(self, longest: int = 5, constant_length: bool = False) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = spaces.Discrete(3)
        self.longest, self.constant_length = longest, constant_length
        self.tag, self.length, self.ticks, self.last_action = 0, 1, 0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.tag = int(self.np_random.integers(1, 1_000_000))
        self.length = self.longest if self.constant_length else int(self.np_random.integers(1, self.longest + 1))
        self.ticks, self.last_action = 0, 0
        return self._observe(), {}

    def step(self, action):
        assert 0 <= action < 3
        assert self.ticks < self.length, "stepped after its end"
        self.ticks += 1
        self.last_action = int(action)
        done = self.ticks == self.length
        terminated = done and self.length % 2 == 0
        info = (
            {"ticks": self.ticks, "is_long": self.length > 3, "name": "clock", "broken": float("nan")} if done else {}
        )
        return self._observe(), self.ticks + 0.5 * int(action), terminated, done and not terminated, info

    def _observe(self):
        return np.array([self.tag, self.ticks, self.last_action], np.float32)


class OpaqueClock(Clock):
    """A clock whose attributes are not all plain data, like a physics engine's: its episodes must be replayed."""

    def __init__(self, longest: int = 5, constant_length: bool = False) -> None:
        super().__init__(longest, constant_length)
        self.engine = object()


class ForgetfulClock(OpaqueClock):
    """Not a function of seed and actions: replaying leads elsewhere."""

    def _observe(self):
        return np.array([self.tag, self.ticks, int.from_bytes(os.urandom(2), "little")], np.float32)


class Masked(gym.Env):
    """Forbids a random subset of actions at each step and refuses to play one of them; `where` the mask is given."""

    def __init__(self, where: str = "observation", num_actions: int = 5, all_false_at: int = 0) -> None:
        self.where, self.num_actions, self.all_false_at = where, num_actions, all_false_at
        self.action_space = spaces.Discrete(num_actions)
        vector = spaces.Box(-1.0, 1.0, (2,), np.float32)
        mask = spaces.MultiBinary(num_actions)
        self.observation_space = (
            spaces.Dict({"vector": vector, "action_mask": mask}) if where == "observation" else vector
        )
        self.ticks, self.length = 0, 1
        self.mask = np.ones(num_actions, np.int8)

    def _give(self):
        self.mask = (self.np_random.random(self.num_actions) < 0.4).astype(np.int8)
        self.mask[self.np_random.integers(self.num_actions)] = 1
        if self.all_false_at and self.ticks == self.all_false_at:
            self.mask[:] = 0
        vector = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        if self.where == "observation":
            return {"vector": vector, "action_mask": self.mask.copy()}, {}
        return vector, {"action_mask": self.mask.copy()}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.ticks, self.length = 0, int(self.np_random.integers(1, 8))
        return self._give()

    def step(self, action):
        assert self.mask[action], f"played the forbidden action {action} of {self.mask}"
        self.ticks += 1
        observation, info = self._give()
        return observation, float(action == np.argmax(self.mask)), self.ticks == self.length, False, info


class Everything(gym.Env):
    """Every kind of space at once, nested; it checks what it is given against its own action space."""

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            {
                "image": spaces.Box(0, 255, (4, 4, 3), np.uint8),
                "pair": spaces.Tuple((spaces.Box(-1, 1, (2,), np.float64), spaces.Discrete(4, start=3))),
                "digits": spaces.MultiDiscrete([3, 5]),
                "bits": spaces.MultiBinary(3),
                "number": spaces.Box(-5, 5, (), np.float32),
            }
        )
        self.action_space = spaces.Dict(
            {
                "turn": spaces.Discrete(3, start=-1),
                "pair": spaces.Tuple((spaces.MultiDiscrete([2, 4]), spaces.Box(-1.0, 1.0, (2,), np.float32))),
                "keys": spaces.MultiBinary(2),
            }
        )
        self.ticks = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.ticks = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.ticks += 1
        return self.observation_space.sample(), 1.0, self.ticks == 6, False, {}


class Pixels(gym.Env):
    """An image for the convolutions; whatever is done, nothing comes of it."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (36, 36, 3), np.uint8)
        self.action_space = spaces.Discrete(3)
        self.ticks = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.ticks = 0
        return self._observe(), {}

    def step(self, action):
        self.ticks += 1
        return self._observe(), float(action), self.ticks == 5, False, {}

    def _observe(self):
        return self.np_random.integers(0, 256, (36, 36, 3), np.uint8)


class Faulty(Clock):
    """A clock that fails in one of many ways, a given number of times over all workers.

    Attributes:
        tokens: a directory; each failure takes one file out of it, and without files there is no failure.
    """

    def __init__(self, kind: str = "raises", tokens: str = "", at_tick: int = 3, step_s: float = 0.0) -> None:
        super().__init__(longest=6)
        self.kind, self.tokens, self.at_tick, self.step_s = kind, tokens, at_tick, step_s
        # The trainer makes environments too, to look at them; only workers fail.
        if kind == "refuses to start" and multiprocessing.parent_process() is not None and self._take_token():
            raise OSError("the level file is missing")

    def _take_token(self) -> bool:
        for path in sorted(Path(self.tokens).glob("*.token")) if self.tokens else []:
            try:
                path.unlink()
                return True
            except FileNotFoundError:
                continue
        return False

    def step(self, action):
        time.sleep(self.step_s)
        observation, reward, terminated, truncated, info = super().step(action)
        if self.ticks == self.at_tick and self.kind != "refuses to start" and self._take_token():
            observation, reward = FAULTS[self.kind](observation, reward)
        return observation, reward, terminated, truncated, info


def _raises(observation, reward):
    raise ValueError("the dragon has no head")


def _hangs(observation, reward):
    time.sleep(600)


FAULTS = {
    "raises": _raises,
    "exits": lambda observation, reward: os._exit(7),
    "leaves": lambda observation, reward: sys.exit("enough"),
    "kills itself": lambda observation, reward: os.kill(os.getpid(), signal.SIGKILL),
    "hangs": _hangs,
    "segfaults": lambda observation, reward: ctypes.string_at(0),
    "reward is nan": lambda observation, reward: (observation, float("nan")),
    "reward is infinite": lambda observation, reward: (observation, np.float32("inf")),
    "reward is None": lambda observation, reward: (observation, None),
    "observation is nan": lambda observation, reward: (observation * np.nan, reward),
    "observation is None": lambda observation, reward: (None, reward),
    "observation has another shape": lambda observation, reward: (observation[:2], reward),
}


def tokens(directory: Path, count: int) -> str:
    """A directory that lets `Faulty` fail `count` times."""
    directory.mkdir()
    for number in range(count):
        (directory / f"{number:03d}.token").touch()
    return str(directory)


class Treacherous(Clock):
    """Raises on a condition of its own state and actions alone, so that a replay must raise as well."""

    def __init__(self) -> None:
        super().__init__(longest=9)

    def step(self, action):
        if self.tag % 7 == 0 and self.ticks == 4 and action == self.tag % 3:
            raise ZeroDivisionError("a trap")
        return super().step(action)


class Uneven(Clock):
    """Some copies are ten times as slow as others."""

    def __init__(self) -> None:
        super().__init__()
        self.step_s = 0.0

    def reset(self, *, seed=None, options=None):
        result = super().reset(seed=seed)
        self.step_s = 0.004 if os.getpid() % 2 else 0.0004
        return result

    def step(self, action):
        time.sleep(self.step_s)
        return super().step(action)


class OneStep(gym.Env):
    """Episodes of one step. `reward_of` is "observation" or "action": what the reward of +-1 depends on."""

    def __init__(self, reward_of: str = "observation") -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.reward_of = reward_of
        self.sign = 1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.sign = float(self.np_random.choice([-1.0, 1.0]))
        return np.array([self.sign], np.float32), {}

    def step(self, action):
        wanted = self.sign > 0
        reward = self.sign if self.reward_of == "observation" else (1.0 if bool(action) == wanted else -1.0)
        return np.array([self.sign], np.float32), reward, True, False, {}


class ForEver(gym.Env):
    """Reward 1 at every step of a life that only a time limit interrupts."""

    def __init__(self, truncate_every: int = 5) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.truncate_every, self.ticks = truncate_every, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.ticks = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.ticks += 1
        return np.zeros(1, np.float32), 1.0, False, self.ticks == self.truncate_every, {}


class TwoStepCredit(gym.Env):
    """The first action decides the reward, which comes after the second: +1 if it matched the first observation."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.sign, self.ticks, self.is_right = 1.0, 0, False

    def _observe(self):
        # The second observation tells nothing about the first.
        return np.array([self.sign if self.ticks == 0 else 0.0, self.ticks], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.sign, self.ticks = float(self.np_random.choice([-1.0, 1.0])), 0
        return self._observe(), {}

    def step(self, action):
        if self.ticks == 0:
            self.is_right = bool(action) == (self.sign > 0)
        self.ticks += 1
        reward = (1.0 if self.is_right else -1.0) if self.ticks == 2 else 0.0
        return np.clip(self._observe(), -1, 1), reward, self.ticks == 2, False, {}


class PileRounds(gym.vector.VectorEnv):
    """A two-seat game as more slots: slot 2g + s is seat s of game g.

    Each round both seats say how many stones, 1 or 2, they take from their game's pile; seat 0 takes first. A
    seat's reward is held back until its next turn: what it took less what the other took since. Whoever takes
    the last stone wins 10 from the other, and that reward reaches the last rows of both seats.
    """

    PILE = 9

    def __init__(self, num_envs: int = 4) -> None:
        self.num_envs, self.num_games = num_envs, -(-num_envs // 2)  # of an odd number the last seat plays itself
        self.metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}
        self.single_observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.pile = np.full(self.num_games, self.PILE)
        self.is_over = np.zeros(self.num_games, bool)

    def _observe(self):
        seats = np.tile([0.0, 1.0], self.num_games)
        return np.stack([np.repeat(self.pile / self.PILE, 2), seats], axis=1).astype(np.float32)[: self.num_envs]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.pile = np.full(self.num_games, self.PILE)
        self.is_over = np.zeros(self.num_games, bool)
        return self._observe(), {}

    def step(self, actions):
        reward = np.zeros(2 * self.num_games)
        actions = np.append(actions, 0)
        for game in range(self.num_games):
            if self.is_over[game]:
                self.pile[game], self.is_over[game] = self.PILE, False
                continue
            for seat in (0, 1):
                if self.is_over[game]:
                    break
                mine, theirs = 2 * game + seat, 2 * game + 1 - seat
                taken = min(int(actions[mine]) + 1, int(self.pile[game]))
                self.pile[game] -= taken
                self.is_over[game] = self.pile[game] == 0
                gain = taken + 10 * self.is_over[game]
                reward[mine] += gain
                reward[theirs] -= gain
        terminated = np.repeat(self.is_over, 2)[: self.num_envs]
        return self._observe(), reward[: self.num_envs], terminated, np.zeros(self.num_envs, bool), {}


class Recall(gym.Env):
    """Shows a coin once and asks for it after `delay` more steps, without another look: reward 1 for the right side."""

    def __init__(self, delay: int) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.delay, self.ticks, self.coin = delay, 0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.ticks, self.coin = 0, int(self.np_random.integers(2))
        return np.array([2 * self.coin - 1, 0], np.float32), {}

    def step(self, action):
        self.ticks += 1
        is_asked = self.ticks == self.delay
        reward = float(action == self.coin) if self.ticks > self.delay else 0.0
        return np.array([0, is_asked], np.float32), reward, self.ticks > self.delay, False, {}


class Paced(Clock):
    """A clock whose episodes last as long as the option `length` says, also when it changes between two of them."""

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        self.length = (options or {}).get("length", 1)
        if not isinstance(self.length, int) or self.length < 1:
            raise ValueError(f"length={self.length!r} must be a whole number above 0")
        return observation, info


class OpaquePaced(Paced):
    """The same with an attribute that is no plain data."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = object()


class Doors(gym.Env):
    """Rooms in a row with two doors each: one leads on, the other back to the first. Reward 1 for the last room alone.

    Which door it is differs from room to room, so that no habit leads far: chance gets there once in 2^(rooms - 1).
    """

    def __init__(self, rooms: int = 20) -> None:
        self.observation_space = spaces.Discrete(rooms)
        self.action_space = spaces.Discrete(2)
        self.rooms, self.room, self.ticks = rooms, 0, 0
        self.right_door = np.random.default_rng(7).integers(0, 2, rooms)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.room, self.ticks = 0, 0
        return self.room, {}

    def step(self, action):
        self.ticks += 1
        self.room = self.room + 1 if action == self.right_door[self.room] else 0
        arrived = self.room == self.rooms - 1
        return self.room, float(arrived), arrived, self.ticks == 2 * self.rooms and not arrived, {}


def lean(observation, action_mask):
    """A player of CartPole, linear in what it sees: pushes to the side to which the pole falls."""
    return (observation["obs"][:, 2] + observation["obs"][:, 3] > 0).astype(np.int64)


def swing(observation, action_mask):
    """A player of Pendulum: pushes along with the swing."""
    return np.clip(observation["obs"][:, 2:], -1.5, 1.5)


def first_allowed(observation, action_mask):
    """A player of `Masked`: the first action that is allowed."""
    return action_mask.argmax(1)


def always_two(observation, action_mask):
    return np.full(len(observation["obs"]), 2)


def too_many(observation, action_mask):
    return np.zeros((len(observation["obs"]), 5))


class _Remembering:
    """A player of `Recall`: calls the coin that it saw at the beginning, and the same side meanwhile."""

    def __init__(self) -> None:
        self.coins: dict[int, np.ndarray] = {}

    def __call__(self, observation, action_mask):
        shown = observation["obs"][:, 0]
        coins = np.where(shown != 0, shown > 0, self.coins.get(len(shown), np.zeros(len(shown), bool)))
        self.coins[len(shown)] = coins
        return coins.astype(np.int64)


remembering = _Remembering()
