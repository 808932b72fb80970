"""What there is to know about an environment before training on it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from millrace.collect.collector import EnvRows
from millrace.config import Config
from millrace.deploy.episodes import random_choice
from millrace.envs.atari import AtariSlots
from millrace.envs.game_slots import GameSlots
from millrace.envs.make import EnvMaker
from millrace.envs.protocol import EnvRow, SlotEnv
from millrace.envs.vector_slots import VectorSlots
from millrace.errors import EnvError
from millrace.nets.inputs import dense_keys, image_keys
from millrace.resolve import Probe, probe_env, resolve
from millrace.types import Array, RolloutLayout, SlotSpec

COPIES = 4
COMPARED_STEPS = 400
RATE_S = 0.5


@dataclass(frozen=True)
class Inspection:
    """Findings.

    Attributes:
        deterministic, restorable: empty, or what was wrong.
        episode_returns: of random play.
        config: with every auto value filled in.
    """

    name: str
    form: str
    observation_space: str
    action_space: str
    probe: Probe
    deterministic: str
    restorable: str
    steps_per_second: float
    batch_steps_per_second: float
    episode_returns: list[float]
    episode_lengths: list[int]
    figures: list[str]
    bad_values: int
    config: Config


def inspect_env(config: Config) -> Inspection:
    """Make copies, play at random, compare.

    Raises:
        EnvError: the environment breaks its contract.
    """
    maker = EnvMaker(config.env)
    probe = probe_env(maker)
    resolved = resolve(config, probe)
    observation_space, action_space = map(str, probe.spaces)
    first = _RandomPlay(maker.make(COPIES, seed=1))
    second = _RandomPlay(maker.make(COPIES, seed=1))
    try:
        deterministic = _compare(first, second, COMPARED_STEPS)
        restorable = _restore(first, second)
    finally:
        first.env.close()
        second.env.close()
    rate, _ = _measure(maker, 1)
    copies = resolved.collect.envs_per_worker
    batch_rate, played = _measure(maker, copies)
    return Inspection(
        name=maker.name,
        form=_form(first.env),
        observation_space=observation_space,
        action_space=action_space,
        probe=probe,
        deterministic=deterministic,
        restorable=restorable,
        steps_per_second=rate,
        batch_steps_per_second=batch_rate,
        episode_returns=played.returns,
        episode_lengths=played.lengths,
        figures=sorted(played.figures),
        bad_values=played.env.bad_values,
        config=resolved,
    )


class _RandomPlay:
    """Uniformly random legal actions in every slot."""

    def __init__(self, env: SlotEnv) -> None:
        self.env = env
        layout = RolloutLayout(env.spec, 1, env.num_slots, env.same_step_reset)
        self._rows = EnvRows(layout.allocate(), layout).rows
        self.row = self._rows[0]
        self._choose = random_choice(env.spec, seed=0)
        self.returns: list[float] = []
        self.lengths: list[int] = []
        self.figures: set[str] = set()
        self._return, self._steps = np.zeros(env.num_slots), np.zeros(env.num_slots, np.int64)
        env.reset(self.row)

    def actions(self) -> Array:
        """[B, A] legal ones."""
        mask = self.row.action_mask
        if mask is not None and not mask.any(-1).all():
            slot = int(np.flatnonzero(~mask.any(-1))[0])
            seed = int(self.env.episode_seeds()[slot])
            raise EnvError(f"slot {slot}, episode seed {seed}: the action mask allows no action")
        return self._choose(self.row.observation, mask, np.zeros(self.env.num_slots, bool))

    def step(self, actions: Array) -> None:
        self.row = self._rows[1]
        self.env.step(actions, self.row)
        self._return += self.row.reward
        self._steps += self.row.valid
        for slot, _, numbers in self.env.pop_figures():
            self.returns.append(float(self._return[slot]))
            self.lengths.append(int(self._steps[slot]))
            self.figures |= numbers.keys()
            self._return[slot], self._steps[slot] = 0.0, 0


def _compare(first: _RandomPlay, second: _RandomPlay, steps: int) -> str:
    """Step both with the same actions; empty, or where they parted."""
    for step in range(steps):
        difference = _difference(first.row, second.row)
        if difference:
            return f"{difference} after {step} steps"
        actions = first.actions()
        first.step(actions.copy())
        second.step(actions)
    return ""


def _difference(first: EnvRow, second: EnvRow) -> str:
    names = ("reward", "terminated", "truncated", *(["action_mask"] if first.action_mask is not None else []))
    pairs = {name: (array, second.observation[name]) for name, array in first.observation.items()}
    pairs |= {name: (getattr(first, name), getattr(second, name)) for name in names}
    for name, (one, other) in pairs.items():
        if not np.array_equal(one, other, equal_nan=one.dtype.kind == "f"):
            return f"{name} differs"
    return ""


def _restore(first: _RandomPlay, second: _RandomPlay) -> str:
    """Save one, play on, put the other into the saved state, and see that it does the same; empty, or what is wrong."""
    state = first.env.save_state()
    if state is None:
        return "its state cannot be saved"
    for name, array in first.row.observation.items():
        second.row.observation[name][...] = array
    if first.row.action_mask is not None and second.row.action_mask is not None:
        second.row.action_mask[...] = first.row.action_mask
    try:
        second.env.load_state(state, second.row)
    except Exception as error:
        return str(error)
    second.row.reward[:], second.row.terminated[:] = first.row.reward, first.row.terminated
    second.row.truncated[:] = first.row.truncated
    return _compare(first, second, COMPARED_STEPS // 4)


def _measure(maker: EnvMaker, copies: int) -> tuple[float, _RandomPlay]:
    """Environment transitions a second under random play, sampling of actions left out."""
    play = _RandomPlay(maker.make(copies, seed=2))
    stepping_s, transitions, begin_s = 0.0, 0, time.perf_counter()
    while time.perf_counter() - begin_s < RATE_S:
        actions = play.actions()
        stepping = time.perf_counter()
        play.step(actions)
        stepping_s += time.perf_counter() - stepping
        transitions += int(play.row.valid.sum())
    play.env.close()
    return transitions / max(stepping_s, 1e-9), play


def _form(env: SlotEnv) -> str:
    if isinstance(env, GameSlots):
        return "built-in game, all copies in one call"
    if isinstance(env, AtariSlots):
        return "ALE's vector form, every game with a seed of its own"
    if isinstance(env, VectorSlots):
        when = "at once" if env.same_step_reset else "in the next step"
        return f"its own vector form, which resets finished copies {when}"
    return "single environments, one after another"


def describe_network(spec: SlotSpec, config: Config) -> str:
    """The default network in words."""
    images, dense = image_keys(spec, config.net), dense_keys(spec, config.net)
    inputs = sum(spec.observation[key].num_inputs for key in dense)
    if images:
        beside = f", {inputs} numbers beside" if inputs else ""
        return f"convolutions on {', '.join(images)}{beside}, one trunk for actor and critic, inference in torch"
    widths = "-".join(map(str, config.net.hidden))
    bodies = "one trunk" if config.net.shared else "actor and critic apart"
    return f"{widths} {config.net.activation} on {inputs} numbers, {bodies}, inference in NumPy"


def describe_layout(spec: SlotSpec) -> list[str]:
    """Each observation array in words."""
    return [_describe_array(name, array) for name, array in spec.observation.items()]


def _describe_array(name: str, array: Any) -> str:
    text = f"{name}: {array.dtype}{list(array.shape)}"
    if array.num_classes:
        text += f", {array.num_classes} categories"
    return text + (f", scaled by {array.scale:.4g}" if array.scale != 1.0 else "")
