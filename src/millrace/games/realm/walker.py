"""The scripted yardstick: walk to the nearest treasure by grid distance, again and again, then to the end."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from millrace.compiled import kernel
from millrace.games.realm.game import RealmGame
from millrace.games.realm.kernels import (
    RUNNING,
    UNREACHABLE,
    Array,
    Maps,
    Numbers,
    Slots,
    nearest_distance,
    walk,
    wide,
)
from millrace.games.realm.rules import CELL_UNITS, END_ID, NUM_DIRECTIONS


def walker_actions(game: RealmGame) -> npt.NDArray[np.int64]:
    """The walker's action in every slot, [B]. It never flashes, seeks no buff and knows nothing of time."""
    action = np.zeros(game.num_slots, dtype=np.int64)
    walk_all(game.numbers, game.maps, game.slots, action)
    return action


@kernel
def walk_all(numbers: Numbers, maps: Maps, slots: Slots, action: Array) -> None:
    """Write the walker's action for each running slot into `action[B]`."""
    for b in range(action.shape[0]):
        if slots.status[b] == RUNNING:
            action[b] = walk_one(numbers, maps, slots, b)


@kernel
def goal_distance(maps: Maps, m: int, x: int, z: int, treasures: int) -> int:
    """Grid distance to the nearest of the treasures, or to the end when there are none."""
    goals = treasures if treasures else 1 << END_ID
    return nearest_distance(maps.distance[m, z // CELL_UNITS, x // CELL_UNITS], goals)


@kernel
def walk_one(numbers: Numbers, maps: Maps, slots: Slots, b: int) -> int:
    """The direction whose step ends nearest to the goal, without stepping on the end while treasures lie."""
    m = wide(slots.map_index[b])
    treasures = wide(slots.treasures[b])
    units = numbers.buff_walk_units if slots.buff_left[b] > 0 else numbers.walk_units
    best_direction, best_cost = 0, 4 * UNREACHABLE
    for direction in range(NUM_DIRECTIONS):
        x, z = slots.position[b, 0], slots.position[b, 1]
        x, z, touched = walk(numbers, maps.walkable[m], maps.points[m], x, z, direction, units)
        if treasures != 0 and (touched >> END_ID) & 1:
            continue
        row = z // CELL_UNITS + numbers.view_radius
        column = x // CELL_UNITS + numbers.view_radius
        # Visits count for half a cell each, which breaks a dance between two cells equally near.
        cost = 2 * goal_distance(maps, m, x, z, treasures) + wide(slots.memory[b, row, column])
        if cost < best_cost:
            best_direction, best_cost = direction, cost
    return best_direction
