"""The yardstick that knows the map: nearly the best score that the rules allow in a given episode.

How: on a grid of quarter cells, the walking distance to each point in the metric of eight directions, in two
layers: flash used up, and one flash still to spend. Dynamic programming over subsets of treasures (and the buff)
chooses what to visit, in which order, and on which leg to flash; it is done anew whenever a treasure or the
buff is taken and whenever the flash is spent or ready again. Every step then looks a few steps ahead through
the real movement rules. The reported score is what playing those actions scored.

Not used, and therefore left on the table: a second flash is planned only once the first has cooled down; legs
are measured between the points themselves, though touching their trigger discs is enough; the buff is valued
by the steps it saves on the rest of the way, and one that lies there again later is planned for only when it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from millrace.games.compiled import kernel
from millrace.games.realm.game import RealmGame, make_game
from millrace.games.realm.kernels import (
    RUNNING,
    Array,
    Maps,
    Numbers,
    Slots,
    axis_units,
    can_pass,
    flash_landing,
    is_open,
    touched_points,
    walk,
)
from millrace.games.realm.play import PlayedGames, play_games, random_policy
from millrace.games.realm.rules import BUFF_ID, CELL_UNITS, END_ID, FIRST_PLACE_ID, NUM_DIRECTIONS
from millrace.games.realm.kernels import SIGN_X, SIGN_Z
from millrace.games.realm.walker import walker_actions

NODE_UNITS = 250
"""Distances are computed between the centres of squares of this side."""

FLASH_USED, FLASH_READY = 0, 1
FAR = np.float32(1e9)
LOOK_AHEAD_STEPS = 3
SPARE_SHARE, SPARE_STEPS = 1.05, 3.0
"""A plan must fit the time left with this to spare, because playing takes a little longer than the distances say."""


class Tables(NamedTuple):
    """Walking units to each point of M maps; N = nodes along a side, K = points."""

    field: Array
    """From each node, with the flash used or ready, float32 [M, 2, K, N, N]; the disc of the point is 0."""
    leg: Array
    """From point to point, float32 [M, 2, K, K]."""


class Plans(NamedTuple):
    """What each slot is about."""

    situation: Array
    """Treasures, buff and flash at the time of planning, int64 [B]; a change calls for a new plan."""
    target: Array
    """Point to go to, int64 [B]."""
    layer: Array
    """FLASH_READY where the flash is to be spent on the way to the target, int64 [B]."""


class Oracle:
    """Policy of the oracle for one game, for one run of `play_games`."""

    def __init__(self, game: RealmGame, seek_buff: bool = True) -> None:
        self._tables = build_tables(game)
        self._seek_buff = seek_buff
        zeros = [np.zeros(game.num_slots, dtype=np.int64) for _ in Plans._fields]
        self._plans = Plans(*zeros)
        self._plans.situation[:] = -1

    def __call__(self, game: RealmGame) -> npt.NDArray[np.int64]:
        """Actions [B]."""
        action = np.zeros(game.num_slots, dtype=np.int64)
        act_all(game.numbers, game.maps, game.slots, self._tables, self._plans, self._seek_buff, action)
        return action


def oracle_games(size: str, seeds: Sequence[int], **options: Any) -> PlayedGames:
    """The oracle's episodes from `seeds`: the best of planning with the buff, without it, and the walker."""
    game = make_game(size, len(seeds), **options)
    played = [
        play_games(game, seeds, Oracle(game)),
        play_games(game, seeds, Oracle(game, seek_buff=False)),
        play_games(game, seeds, walker_actions),
    ]
    best = np.argmax([games.of("score") for games in played], axis=0)
    return PlayedGames(
        [played[which].figures[slot] for slot, which in enumerate(best)],
        [played[which].actions[slot] for slot, which in enumerate(best)],
    )


def oracle_scores(size: str, seeds: Sequence[int], **options: Any) -> npt.NDArray[np.float64]:
    """Scores [n] of the oracle in the episodes from `seeds`."""
    return oracle_games(size, seeds, **options).of("score")


def oracle_actions(size: str, seed: int, **options: Any) -> npt.NDArray[np.int64]:
    """The oracle's actions [T] in the episode from one seed; stepping a game through them scores what it scored."""
    return oracle_games(size, [seed], **options).actions[0]


def walker_scores(size: str, seeds: Sequence[int], **options: Any) -> npt.NDArray[np.float64]:
    """Scores [n] of the walker in the episodes from `seeds`."""
    return play_games(make_game(size, len(seeds), **options), seeds, walker_actions).of("score")


def random_scores(size: str, seeds: Sequence[int], **options: Any) -> npt.NDArray[np.float64]:
    """Scores [n] of uniformly random legal actions in the episodes from `seeds`."""
    return play_games(make_game(size, len(seeds), **options), seeds, random_policy()).of("score")


def build_tables(game: RealmGame) -> Tables:
    """Distances on all maps of a game."""
    built = [
        map_tables(game.numbers, walkable, points)
        for walkable, points in zip(game.maps.walkable, game.maps.points, strict=True)
    ]
    return Tables(np.stack([field for field, _ in built]), np.stack([leg for _, leg in built]))


@kernel
def node_centre(node: int) -> int:
    """World coordinate of the middle of a node."""
    return node * NODE_UNITS + NODE_UNITS // 2


@kernel
def seed_disc(numbers: Numbers, walkable: Array, points: Array, target: int, field: Array) -> None:
    """Set the field [N, N] to 0 in the target's trigger disc and to FAR elsewhere."""
    for row in range(field.shape[0]):
        for column in range(field.shape[1]):
            x, z = node_centre(column), node_centre(row)
            inside = touched_points(points[target : target + 1], numbers.trigger_units, x, z) != 0
            field[row, column] = 0.0 if inside and is_open(walkable, x, z) else FAR


@kernel
def seed_flashes(numbers: Numbers, walkable: Array, used: Array, field: Array) -> None:
    """Lower the field [N, N] where a flash and then walking by `used[N, N]` is nearer.

    A flash counts only if it serves from all four corners of the node, so that it serves from any place in it.
    """
    for row in range(field.shape[0]):
        for column in range(field.shape[1]):
            if not is_open(walkable, node_centre(column), node_centre(row)):
                continue
            for direction in range(NUM_DIRECTIONS):
                worst = np.float32(0.0)
                for corner in range(4):
                    x = column * NODE_UNITS + (corner % 2) * (NODE_UNITS - 1)
                    z = row * NODE_UNITS + (corner // 2) * (NODE_UNITS - 1)
                    landed_x, landed_z = flash_landing(numbers, walkable, x, z, direction)
                    worst = max(worst, used[landed_z // NODE_UNITS, landed_x // NODE_UNITS])
                field[row, column] = min(field[row, column], worst + np.float32(numbers.walk_units))


@kernel
def relax(walkable: Array, closed: Array, field: Array) -> None:
    """Lower the field [N, N] until every node is as near as its neighbours allow; nodes in `closed` stay FAR."""
    size = field.shape[0]
    queue = np.empty(size * size, dtype=np.int32)
    queued = np.zeros((size, size), dtype=np.uint8)
    head, waiting = 0, 0
    for node in range(size * size):
        if field[node // size, node % size] < FAR:
            queue[waiting] = node
            queued[node // size, node % size] = 1
            waiting += 1
    while waiting > 0:
        row, column = queue[head] // size, queue[head] % size
        queued[row, column] = 0
        head = (head + 1) % (size * size)
        waiting -= 1
        for direction in range(NUM_DIRECTIONS):
            near_row, near_column = row + SIGN_Z[direction], column + SIGN_X[direction]
            x, z = node_centre(column), node_centre(row)
            dx, dz = SIGN_X[direction] * NODE_UNITS, SIGN_Z[direction] * NODE_UNITS
            if not can_pass(walkable, x, z, dx, dz) or closed[near_row, near_column]:
                continue
            cost = field[row, column] + np.float32(NODE_UNITS if direction % 2 == 0 else NODE_UNITS * 1.4142136)
            if cost < field[near_row, near_column] - np.float32(0.5):
                field[near_row, near_column] = cost
                if not queued[near_row, near_column]:
                    queued[near_row, near_column] = 1
                    queue[(head + waiting) % (size * size)] = near_row * size + near_column
                    waiting += 1


@kernel
def near_end(numbers: Numbers, points: Array, size: int) -> Array:
    """Nodes [N, N] from which a move may touch the end: closed while there is something else to do first."""
    closed = np.zeros((size, size), dtype=np.uint8)
    for row in range(size):
        for column in range(size):
            x, z = node_centre(column), node_centre(row)
            reach = numbers.trigger_units + NODE_UNITS
            closed[row, column] = touched_points(points[END_ID : END_ID + 1], reach, x, z) != 0
    return closed


@kernel
def map_tables(numbers: Numbers, walkable: Array, points: Array) -> tuple[Array, Array]:
    """Fields [2, K, N, N] and legs [2, K, K] of one map."""
    size = walkable.shape[0] * CELL_UNITS // NODE_UNITS
    num_points = points.shape[0]
    field = np.empty((2, num_points, size, size), dtype=np.float32)
    leg = np.empty((2, num_points, num_points), dtype=np.float32)
    for target in range(num_points):
        closed = near_end(numbers, points, size)
        if target == END_ID:
            closed[:, :] = 0
        seed_disc(numbers, walkable, points, target, field[FLASH_USED, target])
        relax(walkable, closed, field[FLASH_USED, target])
        field[FLASH_READY, target] = field[FLASH_USED, target]
        seed_flashes(numbers, walkable, field[FLASH_USED, target], field[FLASH_READY, target])
        relax(walkable, closed, field[FLASH_READY, target])
        for k in range(num_points):
            row, column = points[k, 1] // NODE_UNITS, points[k, 0] // NODE_UNITS
            leg[:, k, target] = field[:, target, row, column]
    return field, leg


@kernel
def costs_to_go(numbers: Numbers, leg: Array, items: Array) -> Array:
    """Least walking units from each item, via a set of the others, to the end: float32 [2^n, n, 2] by (set, item, flash).

    `items[n]` are point ids. Bellman-Held-Karp over subsets, where the flash may be spent on one leg. Taking
    the buff shortens what is left by the steps saved while it lasts.
    """
    count = items.shape[0]
    cost = np.full((1 << count, count, 2), FAR, dtype=np.float32)
    saved_share = np.float32(1.0 - numbers.walk_units / numbers.buff_walk_units)
    buff_reach = np.float32(numbers.buff_steps * numbers.buff_walk_units)
    for visit in range(1 << count):
        for i in range(count):
            if (visit >> i) & 1:
                continue
            for flash in range(2):
                best = leg[flash, items[i], END_ID] if visit == 0 else FAR
                for j in range(count):
                    if (visit >> j) & 1:
                        best = min(best, via(leg[:, items[i]], items[j], cost[visit ^ (1 << j), j], flash))
                if items[i] == BUFF_ID:
                    best -= saved_share * min(best, buff_reach)
                cost[visit, i, flash] = best
    return cost


@kernel
def via(leg: Array, item: int, rest: Array, flash: int) -> float:
    """Units by `leg[2, K]` to an item and on by `rest[2]`, spending a ready flash before or after it."""
    units = leg[FLASH_USED, item] + rest[flash]
    if flash == FLASH_READY:
        units = min(units, leg[FLASH_READY, item] + rest[FLASH_USED])
    return units


@kernel
def choose_plan(numbers: Numbers, leg: Array, here: Array, items: Array, flash: int, steps_left: int) -> tuple[int, int]:
    """First target and layer of the plan of highest score that fits the time; `here[2, K]` are units from the hero."""
    count = items.shape[0]
    cost = costs_to_go(numbers, leg, items)
    best_value, best_units, best_item = -FAR, here[flash, END_ID], -1
    for visit in range(1 << count):
        treasures = 0
        for i in range(count):
            treasures += (visit >> i) & 1 if items[i] >= FIRST_PLACE_ID else 0
        units, first = here[flash, END_ID], -1
        for i in range(count):
            if (visit >> i) & 1:
                through = via(here, items[i], cost[visit ^ (1 << i), i], flash)
                if first < 0 or through < units:
                    units, first = through, i
        steps = units / numbers.walk_units
        value = np.float32(treasures * 100.0 - 0.2 * steps)
        fits = steps * SPARE_SHARE + SPARE_STEPS <= steps_left or visit == 0
        if units < FAR / 2 and fits and value > best_value:
            best_value, best_units, best_item = value, units, first
    if best_item < 0:
        return END_ID, flash
    walked = here[FLASH_USED, items[best_item]]
    set_of_best = 0
    return items[best_item], flash if flash == FLASH_USED or walked >= FAR else flash


@kernel
def act_all(
    numbers: Numbers, maps: Maps, slots: Slots, tables: Tables, plans: Plans, seek_buff: bool, action: Array
) -> None:
    """Write the oracle's action for each running slot into `action[B]`."""
    for b in range(action.shape[0]):
        if slots.status[b] == RUNNING:
            action[b] = 0
