"""Small worlds for the tests of Realm: open ground of 32 x 32 cells with walls and points where a test wants them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from millrace.games.realm import RealmGame, RealmOptions, RealmRules
from millrace.games.realm.maps import RealmMap

START = (8000, 8000)
END = (15250, 250)
BUFF = (250, 15250)
PLACES = [(15250, 15250), (15250, 13250), (15250, 11250), (250, 250), (250, 2250), (250, 4250)]

Cell = tuple[int, int]


def arena(
    walls: Iterable[Cell] = (),
    points: dict[int, tuple[int, int]] | None = None,
    num_slots: int = 1,
    numbers: RealmRules = RealmRules.MINI,
    **options: Any,
) -> RealmGame:
    """A begun game on open ground; `walls` are (x cell, z cell), `points` replaces points by id."""
    walkable = np.ones((32, 32), dtype=np.uint8)
    for x, z in walls:
        walkable[z, x] = 0
    where = [BUFF, END, START, *PLACES]
    for point_id, position in (points or {}).items():
        where[point_id] = position
    game = RealmGame(
        numbers,
        num_slots,
        RealmOptions.from_arguments(**options),
        [RealmMap(walkable, np.array(where, dtype=np.int64))],
    )
    game.reset(np.ones(num_slots, dtype=np.bool_), np.arange(num_slots, dtype=np.uint64))
    return game


def put(game: RealmGame, x: int, z: int) -> None:
    """Move the hero of slot 0."""
    game.slots.position[0] = x, z


def where(game: RealmGame) -> tuple[int, int]:
    """Position of the hero of slot 0."""
    x, z = game.slots.position[0]
    return int(x), int(z)


def step(game: RealmGame, action: int) -> tuple[float, bool, bool]:
    """Play one action in slot 0 only; (reward, terminated, truncated)."""
    active = np.zeros(game.num_slots, dtype=np.bool_)
    active[0] = True
    reward = np.zeros(game.num_slots, dtype=np.float32)
    terminated, truncated = np.zeros((2, game.num_slots), dtype=np.bool_)
    game.step(np.full(game.num_slots, action), active, reward, terminated, truncated)
    return float(reward[0]), bool(terminated[0]), bool(truncated[0])


def step_all(game: RealmGame, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Play one action in every running slot."""
    active = game.slots.status == 1
    reward = np.zeros(game.num_slots, dtype=np.float32)
    terminated, truncated = np.zeros((2, game.num_slots), dtype=np.bool_)
    game.step(np.asarray(actions, dtype=np.int64), active, reward, terminated, truncated)
    return reward, terminated, truncated


def observe(game: RealmGame) -> dict[str, np.ndarray]:
    """Every slot's observation, into arrays that were full of nonsense before."""
    observation = {
        key: np.full((game.num_slots, *field.shape), 77, dtype=field.dtype)
        for key, field in game.observation_fields.items()
    }
    game.observe(observation)
    return observation


def rules(**changes: Any) -> RealmRules:
    """The small size with some numbers changed."""
    return replace(RealmRules.MINI, **changes)
