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
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from millrace.compiled import kernel
from millrace.games.realm.game import RealmGame, make_game
from millrace.games.realm.kernels import (
    RUNNING,
    SIGN_X,
    SIGN_Z,
    Array,
    Maps,
    Numbers,
    Slots,
    can_pass,
    count_points,
    flash_landing,
    is_open,
    touched_points,
    walk,
    wide,
)
from millrace.games.realm.play import PlayedGames, Policy, play_games, random_policy
from millrace.games.realm.rules import BUFF_ID, CELL_UNITS, END_ID, FIRST_PLACE_ID, NUM_DIRECTIONS
from millrace.games.realm.walker import walker_actions

NODE_UNITS = 250
"""Distances are computed between the centres of squares of this side."""

FLASH_USED, FLASH_READY = 0, 1
FAR = 1e9
LOOK_AHEAD_STEPS = 3
SURE_SLACK_STEPS = 1.0
"""A way that is sure to work is taken unless hope promises more than this; else a hero might hope for ever."""
SPARE_SHARE = 1.1
"""A plan must fit the time left with this to spare, because playing may take a little longer than the distances say."""


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
    """Policy of the oracle for one game."""

    def __init__(
        self, game: RealmGame, tables: Tables, seek_buff: bool = True, spare_share: float = SPARE_SHARE
    ) -> None:
        """`tables` are `build_tables(game)`."""
        self._tables = tables
        self._seek_buff, self._spare_share = seek_buff, spare_share
        self._plans = Plans(*(np.full(game.num_slots, -1, dtype=np.int64) for _ in Plans._fields))

    def __call__(self, game: RealmGame) -> npt.NDArray[np.int64]:
        """Actions [B]."""
        self._plans.situation[game.slots.steps == 0] = -1  # an episode's first step asks for a plan of its own
        action = np.zeros(game.num_slots, dtype=np.int64)
        choice = (self._seek_buff, self._spare_share)
        act_all(game.numbers, game.maps, game.slots, self._tables, self._plans, *choice, action)
        return action


def oracle_games(size: str, seeds: Sequence[int], **options: Any) -> PlayedGames:
    """The oracle's episodes from `seeds`, each the best of four tries.

    With the buff, without it, cutting it as fine as the distances say, and the walker's: a plan that fails in
    play costs nothing, and the yardstick is never below the walker.
    """
    game = make_game(size, len(seeds), **options)
    tables = build_tables(game)
    tries: list[Policy] = [
        Oracle(game, tables),
        Oracle(game, tables, seek_buff=False),
        Oracle(game, tables, spare_share=1.0),
        walker_actions,
    ]
    played = [play_games(game, seeds, policy) for policy in tries]
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
        kept_map_tables(game.numbers, walkable.tobytes(), walkable.shape[0], points.tobytes())
        for walkable, points in zip(game.maps.walkable, game.maps.points, strict=True)
    ]
    if len(built) == 1:
        return Tables(*(table[None] for table in built[0]))
    return Tables(np.stack([field for field, _ in built]), np.stack([leg for _, leg in built]))


@lru_cache(maxsize=8)
def kept_map_tables(numbers: Numbers, walkable: bytes, size: int, points: bytes) -> tuple[Array, Array]:
    """`map_tables` of a map given by its bytes; the last few are kept: 0.2 s and 8 MB each on the full size."""
    tables: tuple[Array, Array] = map_tables(
        numbers,
        np.frombuffer(walkable, dtype=np.uint8).reshape(size, size).copy(),
        np.frombuffer(points, dtype=np.int64).reshape(-1, 2).copy(),
    )
    return tables


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
                worst = 0.0
                for corner in range(4):
                    x = column * NODE_UNITS + (corner % 2) * (NODE_UNITS - 1)
                    z = row * NODE_UNITS + (corner // 2) * (NODE_UNITS - 1)
                    landed_x, landed_z = flash_landing(numbers, walkable, x, z, direction)
                    worst = max(worst, used[landed_z // NODE_UNITS, landed_x // NODE_UNITS])
                field[row, column] = min(field[row, column], worst + numbers.walk_units)


@kernel
def relax(walkable: Array, closed: Array, field: Array) -> None:
    """Lower the field [N, N] until every node is as near as its neighbours allow; no way leads through `closed`."""
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
            if closed[row, column]:
                break
            near_row, near_column = row + SIGN_Z[direction], column + SIGN_X[direction]
            x, z = node_centre(column), node_centre(row)
            dx, dz = SIGN_X[direction] * NODE_UNITS, SIGN_Z[direction] * NODE_UNITS
            if not can_pass(walkable, x, z, dx, dz):
                continue
            cost = field[row, column] + (NODE_UNITS if direction % 2 == 0 else NODE_UNITS * 1.4142136)
            if cost < field[near_row, near_column] - 0.5:
                field[near_row, near_column] = cost
                if not queued[near_row, near_column]:
                    queued[near_row, near_column] = 1
                    queue[(head + waiting) % (size * size)] = near_row * size + near_column
                    waiting += 1


@kernel
def near_end(numbers: Numbers, points: Array, size: int) -> Array:
    """Nodes [N, N] that the end's disc reaches into: closed while there is something else to do first."""
    closed = np.zeros((size, size), dtype=np.uint8)
    for row in range(size):
        for column in range(size):
            x, z = node_centre(column), node_centre(row)
            reach = numbers.trigger_units + NODE_UNITS * 3 // 4
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
            closed.fill(0)
        seed_disc(numbers, walkable, points, target, field[FLASH_USED, target])
        relax(walkable, closed, field[FLASH_USED, target])
        field[FLASH_READY, target] = field[FLASH_USED, target]
        seed_flashes(numbers, walkable, field[FLASH_USED, target], field[FLASH_READY, target])
        relax(walkable, closed, field[FLASH_READY, target])
        for k in range(num_points):
            row, column = points[k, 1] // NODE_UNITS, points[k, 0] // NODE_UNITS
            for layer in range(2):
                leg[layer, k, target] = field[layer, target, row, column]
    return field, leg


@kernel
def costs_to_go(numbers: Numbers, leg: Array, items: Array) -> Array:
    """Least walking units from each item, via a set of the others, to the end.

    Returns float32 [2^n, n, 2] by (set, item, flash); `items[n]` are point ids. Bellman-Held-Karp over subsets,
    where the flash may be spent on one leg. Taking the buff shortens what is left by the steps saved while it lasts.
    """
    count = items.shape[0]
    cost = np.empty((1 << count, count, 2), dtype=np.float32)
    saved_share = 1.0 - numbers.walk_units / numbers.buff_walk_units
    buff_reach = float(numbers.buff_steps * numbers.buff_walk_units)
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
    units = float(leg[FLASH_USED, item] + rest[flash])
    if flash == FLASH_READY:
        units = min(units, float(leg[FLASH_READY, item] + rest[FLASH_USED]))
    return units


@kernel
def first_leg(here: Array, items: Array, cost: Array, visit: int, flash: int) -> tuple[int, int, float]:
    """First target of the shortest way by a set of items, whether to flash on that leg, and the way's units."""
    target, layer, units = END_ID, flash, here[flash, END_ID]
    for i in range(items.shape[0]):
        if not (visit >> i) & 1:
            continue
        rest = cost[visit ^ (1 << i), i]
        through = via(here, items[i], rest, flash)
        if target == END_ID or through < units:
            keeps = here[FLASH_USED, items[i]] + rest[flash]
            target, layer, units = items[i], FLASH_READY if through < keeps else FLASH_USED, through
    return target, layer, units


@kernel
def choose_plan(
    numbers: Numbers, leg: Array, here: Array, items: Array, flash: int, steps_left: int, spare_share: float
) -> tuple[int, int]:
    """First target and layer of the plan of highest score that fits the time; `here[2, K]` are units from the hero."""
    cost = costs_to_go(numbers, leg, items)
    best_value, best_target, best_layer = -FAR, END_ID, flash
    for visit in range(1 << items.shape[0]):
        score = 0.0
        for i in range(items.shape[0]):
            if (visit >> i) & 1 and items[i] >= FIRST_PLACE_ID:
                score += numbers.treasure_score
        target, layer, units = first_leg(here, items, cost, visit, flash)
        steps = units / numbers.walk_units
        fits = steps * spare_share <= steps_left or visit == 0
        if units < FAR / 2 and fits and score - numbers.step_score * steps > best_value:
            best_value, best_target, best_layer = score - numbers.step_score * steps, target, layer
    return best_target, best_layer


@kernel
def make_plan(
    numbers: Numbers,
    maps: Maps,
    slots: Slots,
    tables: Tables,
    plans: Plans,
    seek_buff: bool,
    spare_share: float,
    b: int,
) -> None:
    """Plan anew in slot b if its situation has changed."""
    flash = FLASH_READY if slots.flash_wait[b] == 0 else FLASH_USED
    buff = 1 if slots.buff_wait[b] == 0 and seek_buff else 0
    wanted = wide(slots.treasures[b]) | (buff << BUFF_ID)
    situation = wanted << 1 | flash
    if plans.situation[b] == situation:
        return
    m = wide(slots.map_index[b])
    here = tables.field[m, :, :, slots.position[b, 1] // NODE_UNITS, slots.position[b, 0] // NODE_UNITS]
    items = np.empty(count_points(wanted), dtype=np.int64)
    count = 0
    for k in range(maps.points.shape[1]):
        if (wanted >> k) & 1 and here[FLASH_READY, k] < FAR / 2:
            items[count] = k
            count += 1
    left = wide(slots.max_step[b]) - wide(slots.steps[b])
    plans.target[b], plans.layer[b] = choose_plan(numbers, tables.leg[m], here, items[:count], flash, left, spare_share)
    plans.situation[b] = situation


@kernel
def best_flash(
    numbers: Numbers, walkable: Array, points: Array, field: Array, target: int, x: int, z: int
) -> tuple[int, float]:
    """Direction, and steps to the target, of the best flash here followed by the field [N, N] of walking."""
    best_direction, best_steps = 0, FAR
    for direction in range(NUM_DIRECTIONS):
        landed_x, landed_z = flash_landing(numbers, walkable, x, z, direction)
        touched = touched_points(points, numbers.trigger_units, landed_x, landed_z)
        if target != END_ID and (touched >> END_ID) & 1:
            continue
        steps = 1.0 + field[landed_z // NODE_UNITS, landed_x // NODE_UNITS] / numbers.walk_units
        if steps < best_steps:
            best_direction, best_steps = direction, steps
    return best_direction, best_steps


@kernel
def expand(
    numbers: Numbers, walkable: Array, points: Array, target: int, units: int, now: Array, following: Array
) -> tuple[int, int]:
    """All places one walking step from `now[n, 3]` (x, z, first action; -1 at the root) into `following`.

    Returns how many there are, and the first action of one that touched the target, or -1. Places that touch
    the end on the way to something else are left out, as are those that touched the target.
    """
    count, arrived = 0, -1
    for i in range(now.shape[0]):
        for direction in range(NUM_DIRECTIONS):
            x, z, touched = walk(numbers, walkable, points, now[i, 0], now[i, 1], direction, units)
            first = direction if now[i, 2] < 0 else now[i, 2]
            if (touched >> target) & 1:
                arrived = first
            elif not (touched >> END_ID) & 1:
                following[count, 0], following[count, 1], following[count, 2] = x, z, first
                count += 1
    return count, arrived


@kernel
def flash_from(
    numbers: Numbers, walkable: Array, points: Array, field: Array, target: int, now: Array
) -> tuple[int, float]:
    """First action, and steps to the target from there, of the best flash from any of the places `now[n, 3]`."""
    best_first, best_steps = 0, FAR
    for i in range(now.shape[0]):
        direction, steps = best_flash(numbers, walkable, points, field, target, now[i, 0], now[i, 1])
        if steps < best_steps:
            best_first, best_steps = NUM_DIRECTIONS + direction if now[i, 2] < 0 else now[i, 2], steps
    return best_first, best_steps


@kernel
def look_ahead(
    numbers: Numbers,
    walkable: Array,
    points: Array,
    fields: Array,
    target: int,
    layer: int,
    x: int,
    z: int,
    buff_left: int,
) -> int:
    """First action of the best sequence of a few walking steps, with a flash after them where `layer` allows one.

    Breadth first over all sequences of LOOK_AHEAD_STEPS directions. Sequences that touch the target or flash
    are sure; the others are judged by the field at their end, `fields[2, K, N, N]`, which is a little hopeful.
    """
    width = NUM_DIRECTIONS**LOOK_AHEAD_STEPS
    now, following = np.empty((width, 3), dtype=np.int64), np.empty((width, 3), dtype=np.int64)
    now[0, 0], now[0, 1], now[0, 2] = x, z, -1
    count, best_first, best_steps = 1, 0, FAR
    for step in range(LOOK_AHEAD_STEPS):
        if layer == FLASH_READY:
            first, steps = flash_from(numbers, walkable, points, fields[FLASH_USED, target], target, now[:count])
            if step + steps < best_steps:
                best_first, best_steps = first, step + steps
        units = numbers.buff_walk_units if buff_left > step else numbers.walk_units
        count, arrived = expand(numbers, walkable, points, target, units, now[:count], following)
        if arrived >= 0 and step + 1 < best_steps:
            best_first, best_steps = arrived, step + 1.0
        now, following = following, now
    best_steps -= SURE_SLACK_STEPS
    for i in range(count):
        left = fields[layer, target, now[i, 1] // NODE_UNITS, now[i, 0] // NODE_UNITS]
        steps = LOOK_AHEAD_STEPS + left / numbers.walk_units
        if steps < best_steps:
            best_first, best_steps = now[i, 2], steps
    return best_first


@kernel
def act_one(numbers: Numbers, maps: Maps, slots: Slots, tables: Tables, target: int, layer: int, b: int) -> int:
    """Action of slot b on its way to a target."""
    m = wide(slots.map_index[b])
    x, z = slots.position[b, 0], slots.position[b, 1]
    buff_left = wide(slots.buff_left[b])
    return look_ahead(numbers, maps.walkable[m], maps.points[m], tables.field[m], target, layer, x, z, buff_left)


@kernel
def act_all(
    numbers: Numbers,
    maps: Maps,
    slots: Slots,
    tables: Tables,
    plans: Plans,
    seek_buff: bool,
    spare_share: float,
    action: Array,
) -> None:
    """Write the oracle's action for each running slot into `action[B]`."""
    for b in range(action.shape[0]):
        if slots.status[b] == RUNNING:
            make_plan(numbers, maps, slots, tables, plans, seek_buff, spare_share, b)
            action[b] = act_one(numbers, maps, slots, tables, plans.target[b], plans.layer[b], b)
