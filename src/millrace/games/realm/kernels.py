"""The rules of Realm, compiled. One file, because every other part plays through these functions.

Positions are integer world units (x, z), directions count 45 degrees counter-clockwise from +x, grids are
indexed [z cell, x cell]. A set of points is an integer with bit `id` set.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from millrace.compiled import inlined, kernel
from millrace.games.realm.rules import (
    BUFF_ID,
    CELL_UNITS,
    END_ID,
    FIRST_PLACE_ID,
    MEMORY_CAP,
    NUM_DIRECTIONS,
    START_ID,
)

Array = npt.NDArray[Any]

SIGN_X = np.array([1, 1, 0, -1, -1, -1, 0, 1], dtype=np.int64)
SIGN_Z = np.array([0, 1, 1, 1, 0, -1, -1, -1], dtype=np.int64)

NOT_BEGUN, RUNNING, FINISHED, TIMED_OUT = 0, 1, 2, 3
UNREACHABLE = 32767

FAULT_STREAM = 1 << 32
"""Where an episode's stream of random numbers is used for faults, far behind what its reset draws."""
MISSES_KEPT_EPISODES = 100
"""Dynamic treasures: a slot's counts of missed treasures begin anew after this many episodes, as in the original."""
LEAST_WORTH = 0.5
"""Dynamic treasures: no treasure is worth less than this share of its reward."""


class Numbers(NamedTuple):
    """Rules, and what else holds for every episode of a game; units as in `RealmRules`."""

    trigger_units: int
    num_places: int
    view_radius: int
    walk_units: int
    buff_walk_units: int
    flash_units: int
    sub_moves: int
    walk_wall_units: int
    buff_walk_wall_units: int
    flash_wall_units: int
    flash_cooldown: int
    buff_steps: int
    buff_respawn: int
    distance_scale: float
    treasure_score: float
    step_score: float
    flash_lands_near: bool
    flip_map: bool


class Weights(NamedTuple):
    """Reward terms, `RealmReward.scale` already multiplied in. Their order is that of `Slots.weights`."""

    treasure: float
    end: float
    missed_treasure: float
    missed_buff: float
    approach_treasure: float
    approach_end: float
    approach_any_treasure: float
    approach_end_always: float
    buff: float
    wall: float
    blocked_flash: float
    repeat: float
    step: float
    flash_factor: float
    repeat_above: float
    dynamic_treasure: float


class EpisodeOptions(NamedTuple):
    """Options that an episode takes over when it begins, and keeps."""

    count_distribution: Array
    """Cumulative probability of 0, 1, .. treasures, float64 [num_places + 1]."""
    random_start: float
    max_step: int
    score_info_fault: float
    weights: Array
    """float64, in the order of `Weights`."""


class Maps(NamedTuple):
    """M maps of H x H cells with K points each."""

    walkable: Array
    """uint8 [M, H, H], 1 walkable."""
    padded: Array
    """As observed: MEMORY_CAP where walkable, r = `view_radius` blocked cells around, uint8 [M, H + 2r, H + 2r]."""
    points: Array
    """Positions of the points, int64 [M, K, 2]."""
    distance: Array
    """4-connected cells from each cell to each point, int16 [M, H, H, K]; UNREACHABLE where there is no way."""


class Slots(NamedTuple):
    """State of B episodes, the options that they began with included."""

    seed: Array
    """What the episode began from, uint64 [B]."""
    max_step: Array
    """Steps until truncation, int32 [B]."""
    score_info_fault: Array
    """Probability that a step's score is lost, float64 [B]."""
    weights: Array
    """Reward terms, float64 [B, W] in the order of `Weights`."""
    worth: Array
    """Factor on the reward of the treasure at each point, float64 [B, K]."""
    misses: Array
    """How often the treasure at each point was left behind of late, int32 [B, K]; only for dynamic treasures."""
    episodes: Array
    """Episodes since those counts were first cleared, int32 [B]."""

    position: Array
    """Hero (x, z), int64 [B, 2]."""
    map_index: Array
    """Which of the maps, int32 [B]."""
    status: Array
    """NOT_BEGUN, RUNNING, FINISHED or TIMED_OUT, int32 [B]."""
    steps: Array
    """Steps taken, int32 [B]."""
    treasures: Array
    """Places that still hold a treasure, as a set of points, int32 [B]."""
    flash_wait: Array
    """Steps until a flash is legal, int32 [B]."""
    buff_left: Array
    """Steps the buff still lasts, int32 [B]."""
    buff_wait: Array
    """Steps until the buff lies at its point again, int32 [B]."""
    placed: Array
    """Places that held a treasure at the start of the episode, as a set of points, int32 [B]."""
    buffs: Array
    """Buffs taken, int32 [B]."""
    flashes: Array
    """Flashes made, blocked ones too, int32 [B]."""
    wall_hits: Array
    """Steps that met a wall, int32 [B]."""
    memory: Array
    """Visits of each cell up to 5, padded as the map is, uint8 [B, H + 2r, H + 2r]."""
    trail: Array
    """Position after each step, from the start on, uint16 [B, most steps + 1, 2]."""


@kernel
def wide(value: Any) -> int:
    """A number as the one integer type of these kernels, so that each compiles once."""
    return np.int64(value)  # type: ignore[return-value]  # compiled, NumPy's integer is the integer


@inlined
def is_open(walkable: Array, x: int, z: int) -> bool:
    """Whether the position lies in a walkable cell [H, H] of the world."""
    world = walkable.shape[0] * CELL_UNITS
    if x < 0 or z < 0 or x >= world or z >= world:
        return False
    return bool(walkable[z // CELL_UNITS, x // CELL_UNITS] != 0)


@inlined
def can_pass(walkable: Array, x: int, z: int, dx: int, dz: int) -> bool:
    """Whether a sub-move, shorter than a cell, ends in the open without cutting between two diagonal blocked cells."""
    if not is_open(walkable, x + dx, z + dz):
        return False
    return bool(is_open(walkable, x + dx, z) or is_open(walkable, x, z + dz))


@inlined
def slide(walkable: Array, x: int, z: int, dx: int, dz: int) -> tuple[int, int]:
    """Position after one sub-move: the full vector, else x only, else z only, else where it was."""
    if can_pass(walkable, x, z, dx, dz):
        return x + dx, z + dz
    if dx != 0 and is_open(walkable, x + dx, z):
        return x + dx, z
    if dz != 0 and is_open(walkable, x, z + dz):
        return x, z + dz
    return x, z


@inlined
def touched_points(points: Array, trigger_units: int, x: int, z: int) -> int:
    """The points [K, 2] within the trigger radius of a position, as a set."""
    touched = 0
    for k in range(points.shape[0]):
        dx = points[k, 0] - x
        dz = points[k, 1] - z
        if dx * dx + dz * dz <= trigger_units * trigger_units:
            touched |= 1 << k
    return touched


@inlined
def axis_units(units: int, direction: int) -> int:
    """Length along each axis of a move of `units` in a direction."""
    if direction % 2 == 0:
        return units
    return round(units * 0.7071067811865476)


@inlined
def walk(
    numbers: Numbers, walkable: Array, points: Array, x: int, z: int, direction: int, units: int
) -> tuple[int, int, int]:
    """Position after a walking step and the points touched on the way, as a set."""
    length = axis_units(units, direction)
    # Most steps are far from every point: one look around spares them one per part.
    in_reach = touched_points(points, numbers.trigger_units + units, x, z) != 0
    touched = 0
    gone = 0
    for part in range(1, numbers.sub_moves + 1):
        # Parts of whole units that add up to the whole length.
        sub_length = length * part // numbers.sub_moves - gone
        gone += sub_length
        dx = SIGN_X[direction] * sub_length
        dz = SIGN_Z[direction] * sub_length
        x, z = slide(walkable, x, z, dx, dz)
        if in_reach:
            touched |= touched_points(points, numbers.trigger_units, x, z)
    return x, z, touched


@kernel
def nearest_open(walkable: Array, x: int, z: int) -> tuple[int, int]:
    """The position in a walkable cell [H, H] nearest to (x, z), which may lie outside the world."""
    size = walkable.shape[0]
    middle_column = min(max(x // CELL_UNITS, 0), size - 1)
    middle_row = min(max(z // CELL_UNITS, 0), size - 1)
    best_x, best_z, best = x, z, -1
    for ring in range(size):
        # Nothing in this ring of cells or beyond is nearer than ring - 1 whole cells.
        if best >= 0 and best <= ((ring - 1) * CELL_UNITS) ** 2:
            break
        for row in range(max(middle_row - ring, 0), min(middle_row + ring, size - 1) + 1):
            on_edge = abs(row - middle_row) == ring
            for column in range(middle_column - ring, middle_column + ring + 1, 1 if on_edge else max(2 * ring, 1)):
                if column < 0 or column >= size or walkable[row, column] == 0:
                    continue
                near_x = min(max(x, column * CELL_UNITS), (column + 1) * CELL_UNITS - 1)
                near_z = min(max(z, row * CELL_UNITS), (row + 1) * CELL_UNITS - 1)
                apart = (near_x - x) * (near_x - x) + (near_z - z) * (near_z - z)
                if best < 0 or apart < best:
                    best_x, best_z, best = near_x, near_z, apart
    return best_x, best_z


@kernel
def flash_landing(numbers: Numbers, walkable: Array, x: int, z: int, direction: int) -> tuple[int, int]:
    """Position after a flash: its target, or where the rules put a hero whose target is blocked."""
    length = axis_units(numbers.flash_units, direction)
    target_x = x + SIGN_X[direction] * length
    target_z = z + SIGN_Z[direction] * length
    if is_open(walkable, target_x, target_z):
        return target_x, target_z
    if numbers.flash_lands_near:
        return nearest_open(walkable, target_x, target_z)
    return x, z


@inlined
def nearest_distance(distance: Array, present: int) -> int:
    """Smallest of the grid distances [K] over a set of points, UNREACHABLE for the empty set."""
    best = UNREACHABLE
    for k in range(distance.shape[0]):
        if (present >> k) & 1:
            best = min(best, wide(distance[k]))
    return best


@kernel
def count_points(present: int) -> int:
    """How many points a set holds."""
    count = 0
    while present:
        present &= present - 1
        count += 1
    return count


@inlined
def met_wall(numbers: Numbers, moved_x: int, moved_z: int, flashed: bool, buffed: bool) -> bool:
    """Whether a step came out shorter than one that meets nothing."""
    least = numbers.buff_walk_wall_units if buffed else numbers.walk_wall_units
    if flashed:
        least = numbers.flash_wall_units
    return moved_x * moved_x + moved_z * moved_z < least * least


@inlined
def remember(numbers: Numbers, slots: Slots, b: int) -> int:
    """Count the visit of the hero's cell; returns its visits before, at most MEMORY_CAP."""
    row = slots.position[b, 1] // CELL_UNITS + numbers.view_radius
    column = slots.position[b, 0] // CELL_UNITS + numbers.view_radius
    visits = wide(slots.memory[b, row, column])
    slots.memory[b, row, column] = min(visits + 1, MEMORY_CAP)
    slots.trail[b, slots.steps[b], 0] = slots.position[b, 0]
    slots.trail[b, slots.steps[b], 1] = slots.position[b, 1]
    return visits


@inlined
def weights_of(slots: Slots, b: int) -> Weights:
    """The reward terms of slot b's episode by name."""
    w = slots.weights
    return Weights(
        w[b, 0], w[b, 1], w[b, 2], w[b, 3], w[b, 4], w[b, 5], w[b, 6], w[b, 7],
        w[b, 8], w[b, 9], w[b, 10], w[b, 11], w[b, 12], w[b, 13], w[b, 14], w[b, 15],
    )  # fmt: skip


@inlined
def gained_cells(before: int, after: int) -> int:
    """By how many cells a grid distance shrank; 0 where there is no way."""
    return 0 if before == UNREACHABLE or after == UNREACHABLE else before - after


@inlined
def most_gained(before: Array, after: Array, treasures: int) -> int:
    """Cells gained on the treasure that the step approached most, from distances [K] before and after it."""
    most = -UNREACHABLE
    for k in range(before.shape[0]):
        if (treasures >> k) & 1:
            most = max(most, gained_cells(wide(before[k]), wide(after[k])))
    return most


@inlined
def approach(weights: Weights, before: Array, after: Array, treasures: int, flashed: bool) -> float:
    """Reward for the cells that a step gained, from grid distances [K] before and after it and the treasures before."""
    goals = treasures if treasures else 1 << END_ID
    weight = weights.approach_treasure if treasures else weights.approach_end
    reward = weight * gained_cells(nearest_distance(before, goals), nearest_distance(after, goals))
    if weights.approach_any_treasure != 0.0 and treasures:
        reward += weights.approach_any_treasure * most_gained(before, after, treasures)
    reward += weights.approach_end_always * gained_cells(wide(before[END_ID]), wide(after[END_ID]))
    return reward * (weights.flash_factor if flashed else 1.0)


@inlined
def wall_and_repeat(weights: Weights, flashed: bool, hit: bool, visits: int) -> float:
    """Reward for meeting a wall, and for ending in a cell that had that many visits."""
    reward = 0.0
    if hit:
        reward += weights.blocked_flash if flashed else weights.wall
    if visits / MEMORY_CAP > weights.repeat_above:
        reward += weights.repeat
    return reward


@inlined
def total_worth(slots: Slots, b: int, treasures: int) -> float:
    """Sum of the worths of a set of treasures: how many they are, unless treasures are dynamic."""
    total = 0.0
    for k in range(slots.worth.shape[1]):
        if (treasures >> k) & 1:
            total += slots.worth[b, k]
    return total


@inlined
def set_worths(slots: Slots, b: int) -> None:
    """How much each treasure of the episode that begins is worth: more where it was missed more often of late."""
    slots.worth[b].fill(1.0)
    strength = weights_of(slots, b).dynamic_treasure
    if strength == 0.0:
        return
    if slots.episodes[b] % MISSES_KEPT_EPISODES == 0:
        slots.misses[b].fill(0)
    slots.episodes[b] += 1
    treasures = wide(slots.placed[b])
    total, count = 0.0, 0
    for k in range(slots.worth.shape[1]):
        if (treasures >> k) & 1:
            total += 1.0 + slots.misses[b, k]
            count += 1
    for k in range(slots.worth.shape[1]):
        if (treasures >> k) & 1:
            worth = max(LEAST_WORTH, (1.0 + slots.misses[b, k]) * count / total)
            slots.worth[b, k] = 1.0 + strength * (worth - 1.0)


@inlined
def count_misses(slots: Slots, b: int) -> None:
    """Remember which treasures the finished episode left behind."""
    for k in range(slots.misses.shape[1]):
        slots.misses[b, k] += (slots.treasures[b] >> k) & 1


@inlined
def count_down(slots: Slots, b: int) -> None:
    """Advance the slot's step counter and run down its timers."""
    slots.steps[b] += 1
    slots.flash_wait[b] = max(0, slots.flash_wait[b] - 1)
    slots.buff_left[b] = max(0, slots.buff_left[b] - 1)
    slots.buff_wait[b] = max(0, slots.buff_wait[b] - 1)


@inlined
def reach_end(weights: Weights, slots: Slots, b: int) -> float:
    """Finish the episode; returns the reward for that and for what was left behind."""
    slots.status[b] = FINISHED
    if weights.dynamic_treasure != 0.0:
        count_misses(slots, b)
    reward = weights.end + weights.missed_treasure * total_worth(slots, b, wide(slots.treasures[b]))
    if slots.buffs[b] == 0:
        reward += weights.missed_buff
    return reward


@inlined
def trigger(numbers: Numbers, weights: Weights, slots: Slots, b: int, touched: int) -> float:
    """Treasures, buff and end for the points touched in this step, counters and time-out; returns their reward."""
    collected = wide(slots.treasures[b]) & touched
    reward = 0.0
    if collected:
        slots.treasures[b] ^= collected
        reward += weights.treasure * total_worth(slots, b, collected)
    takes_buff = slots.buff_wait[b] == 0 and (touched >> BUFF_ID) & 1 == 1
    count_down(slots, b)
    if takes_buff:
        slots.buffs[b] += 1
        slots.buff_left[b] = numbers.buff_steps
        slots.buff_wait[b] = numbers.buff_respawn
        reward += weights.buff
    if (touched >> END_ID) & 1:
        reward += reach_end(weights, slots, b)
    elif slots.steps[b] >= slots.max_step[b]:
        slots.status[b] = TIMED_OUT
    return reward


@inlined
def step_slot(numbers: Numbers, maps: Maps, slots: Slots, b: int, action: int) -> float:
    """Play one action in slot b; returns its reward."""
    m = wide(slots.map_index[b])
    weights = weights_of(slots, b)
    treasures = wide(slots.treasures[b])
    x, z = slots.position[b, 0], slots.position[b, 1]
    direction = action % NUM_DIRECTIONS
    flashed = action >= NUM_DIRECTIONS and slots.flash_wait[b] == 0
    buffed = slots.buff_left[b] > 0
    if flashed:
        new_x, new_z = flash_landing(numbers, maps.walkable[m], x, z, direction)
        touched = touched_points(maps.points[m], numbers.trigger_units, new_x, new_z)
        slots.flashes[b] += 1
        slots.flash_wait[b] = numbers.flash_cooldown
    else:
        units = numbers.buff_walk_units if buffed else numbers.walk_units
        new_x, new_z, touched = walk(numbers, maps.walkable[m], maps.points[m], x, z, direction, units)
    hit = met_wall(numbers, new_x - x, new_z - z, flashed, buffed)
    slots.wall_hits[b] += hit
    slots.position[b, 0], slots.position[b, 1] = new_x, new_z
    reward = weights.step + trigger(numbers, weights, slots, b, touched)
    before = maps.distance[m, z // CELL_UNITS, x // CELL_UNITS]
    after = maps.distance[m, new_z // CELL_UNITS, new_x // CELL_UNITS]
    reward += approach(weights, before, after, treasures, flashed)
    return reward + wall_and_repeat(weights, flashed, hit, remember(numbers, slots, b))


@inlined
def loses_score(slots: Slots, b: int) -> bool:
    """Whether the score of the step just played is lost: a fault made on request."""
    if slots.score_info_fault[b] == 0.0:
        return False
    return bool(draw(slots.seed[b], FAULT_STREAM + slots.steps[b]) < slots.score_info_fault[b])


@kernel
def step_all(
    numbers: Numbers,
    maps: Maps,
    slots: Slots,
    action: Array,
    active: Array,
    reward: Array,
    terminated: Array,
    truncated: Array,
) -> int:
    """Play `action[B]` in the active slots; returns -1, or the first slot that cannot play its action (none moved)."""
    for b in range(action.shape[0]):
        if active[b] and (slots.status[b] != RUNNING or action[b] < 0 or action[b] >= 2 * NUM_DIRECTIONS):
            return b
    for b in range(action.shape[0]):
        reward[b] = 0.0
        terminated[b] = False
        truncated[b] = False
        if active[b]:
            reward[b] = step_slot(numbers, maps, slots, b, action[b])
            if loses_score(slots, b):
                reward[b] = np.nan
            terminated[b] = slots.status[b] == FINISHED
            truncated[b] = slots.status[b] == TIMED_OUT
    return -1


@kernel
def draw(seed: Any, index: int) -> float:
    """The index-th number in [0, 1) of an episode's stream (SplitMix64; Steele, Lea and Flood 2014)."""
    mixed = seed + np.uint64(index + 1) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = mixed ^ (mixed >> np.uint64(31))
    return float(mixed >> np.uint64(11)) * 2.0**-53


@kernel
def draw_treasures(seed: Any, num_places: int, count_distribution: Array) -> int:
    """Draw how many treasures there are, from a cumulative distribution [num_places + 1], and where; a set."""
    luck = draw(seed, 1)
    count = 0
    while count_distribution[count] <= luck:
        count += 1
    chosen = 0
    for place in range(num_places):
        if draw(seed, 2 + place) * (num_places - place) < count:
            chosen |= 1 << (FIRST_PLACE_ID + place)
            count -= 1
    return chosen


@kernel
def draw_start(numbers: Numbers, random_start: float, walkable: Array, points: Array, seed: Any) -> tuple[int, int]:
    """The start point or, with the configured probability, the centre of a random walkable cell away from the end."""
    x, z = points[START_ID, 0], points[START_ID, 1]
    index = 2 + numbers.num_places
    if draw(seed, index) >= random_start:
        return x, z
    for _ in range(10_000):
        column = wide(draw(seed, index + 1) * walkable.shape[1])
        row = wide(draw(seed, index + 2) * walkable.shape[0])
        index += 2
        cell_x = column * CELL_UNITS + CELL_UNITS // 2
        cell_z = row * CELL_UNITS + CELL_UNITS // 2
        near_end = touched_points(points[END_ID : END_ID + 1], 2 * numbers.trigger_units, cell_x, cell_z) != 0
        if walkable[row, column] and not near_end:
            return cell_x, cell_z
    return x, z


@inlined
def take_options(options: EpisodeOptions, slots: Slots, b: int) -> None:
    """The options that slot b's next episode keeps to its end."""
    slots.max_step[b] = options.max_step
    slots.score_info_fault[b] = options.score_info_fault
    slots.weights[b, :] = options.weights


@inlined
def reset_slot(numbers: Numbers, maps: Maps, slots: Slots, options: EpisodeOptions, b: int, seed: Any) -> None:
    """Begin an episode in slot b."""
    m = wide(draw(seed, 0) * maps.walkable.shape[0])
    slots.seed[b] = seed
    slots.map_index[b] = m
    take_options(options, slots, b)
    slots.treasures[b] = draw_treasures(seed, numbers.num_places, options.count_distribution)
    slots.placed[b] = slots.treasures[b]
    set_worths(slots, b)
    x, z = draw_start(numbers, options.random_start, maps.walkable[m], maps.points[m], seed)
    slots.position[b, 0], slots.position[b, 1] = x, z
    slots.status[b] = RUNNING
    slots.steps[b] = 0
    slots.flash_wait[b] = 0
    slots.buff_left[b] = 0
    slots.buff_wait[b] = 0
    slots.buffs[b] = 0
    slots.flashes[b] = 0
    slots.wall_hits[b] = 0
    slots.memory[b].fill(0)
    slots.trail[b].fill(0)
    remember(numbers, slots, b)


@kernel
def reset_slots(
    numbers: Numbers, maps: Maps, slots: Slots, options: EpisodeOptions, selected: Array, seeds: Array
) -> None:
    """Begin an episode from `seeds[B]` in each selected slot."""
    for b in range(selected.shape[0]):
        if selected[b]:
            reset_slot(numbers, maps, slots, options, b, seeds[b])


@kernel
def copy_row(source: Array, target: Array) -> None:
    """Copy one row [S] of a plane; five times as fast as assigning the slice."""
    for i in range(target.shape[0]):
        target[i] = source[i]


@inlined
def observe_map(numbers: Numbers, maps: Maps, slots: Slots, b: int, planes: Array) -> None:
    """Write obstacle, memory, treasure and end planes uint8 [4, 2r+1, 2r+1], centred on the hero.

    Yes is MEMORY_CAP in every plane, so that dividing by it brings each to 0..1. One plane after the other, because
    memory is faster when written in order.
    """
    side = 2 * numbers.view_radius + 1
    m = slots.map_index[b]
    left = slots.position[b, 0] // CELL_UNITS
    bottom = slots.position[b, 1] // CELL_UNITS
    for row in range(side):
        source = bottom + (row if numbers.flip_map else side - 1 - row)
        copy_row(maps.padded[m, source, left : left + side], planes[0, row])
    for row in range(side):
        source = bottom + (row if numbers.flip_map else side - 1 - row)
        copy_row(slots.memory[b, source, left : left + side], planes[1, row])
    planes[2:].fill(0)
    shown = slots.treasures[b] | (1 << END_ID)
    for k in range(maps.points.shape[1]):
        column = maps.points[m, k, 0] // CELL_UNITS - left + numbers.view_radius
        row = maps.points[m, k, 1] // CELL_UNITS - bottom + numbers.view_radius
        if (shown >> k) & 1 and 0 <= column < side and 0 <= row < side:
            planes[3 if k == END_ID else 2, row if numbers.flip_map else side - 1 - row, column] = MEMORY_CAP


@kernel
def scaled_distance(numbers: Numbers, distance: Array, k: int, present: bool) -> float:
    """Grid distance to point k as observed: 0..1, and 1 when the point is absent."""
    return min(1.0, distance[k] / numbers.distance_scale) if present else 1.0


@inlined
def observe_vector(numbers: Numbers, maps: Maps, slots: Slots, b: int, vector: Array) -> None:
    """Write position 2, treasure present P, treasure distance P, buff present and distance, end distance."""
    m = slots.map_index[b]
    x, z = slots.position[b, 0], slots.position[b, 1]
    distance = maps.distance[m, z // CELL_UNITS, x // CELL_UNITS]
    world = float(maps.walkable.shape[1] * CELL_UNITS)
    places = numbers.num_places
    vector[0] = x / world
    vector[1] = z / world
    for place in range(places):
        k = FIRST_PLACE_ID + place
        present = (slots.treasures[b] >> k) & 1 == 1
        vector[2 + place] = 1.0 if present else 0.0
        vector[2 + places + place] = scaled_distance(numbers, distance, k, present)
    buff_present = slots.buff_wait[b] == 0
    vector[2 + 2 * places] = 1.0 if buff_present else 0.0
    vector[3 + 2 * places] = scaled_distance(numbers, distance, BUFF_ID, buff_present)
    vector[4 + 2 * places] = scaled_distance(numbers, distance, END_ID, True)


@kernel
def observe_all(
    numbers: Numbers, maps: Maps, slots: Slots, map_planes: Array, vector: Array, action_mask: Array
) -> None:
    """Write every slot's map [B, 4, S, S], vector [B, V] and action mask [B, 16]."""
    for b in range(map_planes.shape[0]):
        observe_map(numbers, maps, slots, b, map_planes[b])
        observe_vector(numbers, maps, slots, b, vector[b])
        flash_ready = slots.flash_wait[b] == 0
        for action in range(2 * NUM_DIRECTIONS):
            action_mask[b, action] = action < NUM_DIRECTIONS or flash_ready


@kernel
def flood(walkable: Array, row: int, column: int, queue: Array, distance: Array) -> None:
    """4-connected distance in cells from one cell to all, int16 [H, H]; `queue` is scratch int32 [H * H]."""
    size = walkable.shape[0]
    distance.fill(UNREACHABLE)
    distance[row, column] = 0
    queue[0] = row * size + column
    head, tail = 0, 1
    while head < tail:
        row, column = queue[head] // size, queue[head] % size
        head += 1
        for direction in range(0, NUM_DIRECTIONS, 2):
            near_row, near_column = row + SIGN_Z[direction], column + SIGN_X[direction]
            if near_row < 0 or near_column < 0 or near_row >= size or near_column >= size:
                continue
            if walkable[near_row, near_column] and distance[near_row, near_column] == UNREACHABLE:
                distance[near_row, near_column] = distance[row, column] + 1
                queue[tail] = near_row * size + near_column
                tail += 1


@kernel
def distance_fields(walkable: Array, points: Array) -> Array:
    """Distances from each point [K, 2] of one map [H, H] to every cell, int16 [H, H, K]."""
    size = walkable.shape[0]
    fields = np.empty((size, size, points.shape[0]), dtype=np.int16)
    field = np.empty((size, size), dtype=np.int16)
    queue = np.empty(size * size, dtype=np.int32)
    for k in range(points.shape[0]):
        flood(walkable, points[k, 1] // CELL_UNITS, points[k, 0] // CELL_UNITS, queue, field)
        for row in range(size):
            for column in range(size):
                fields[row, column, k] = field[row, column]
    return fields
