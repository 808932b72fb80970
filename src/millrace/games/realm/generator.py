"""Generates Realm maps: corridors carved along a random tree on a coarse lattice.

A draft is a winding way from start to end, branches that end blindly, and a loop or two, carved out of a
grid of 2 x 2-cell blocks. A draft is then measured, and thrown away unless it has the structure asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from millrace.games.realm.kernels import UNREACHABLE, distance_fields, flood
from millrace.games.realm.maps import RealmMap
from millrace.games.realm.rules import BUFF_ID, CELL_UNITS, END_ID, FIRST_PLACE_ID, START_ID, RealmRules

Node = tuple[int, int]
Edge = tuple[Node, Node]
Grid = npt.NDArray[np.uint8]

BLOCK_CELLS = 2

FROZEN_DRAWS = {"mini": 23, "full": 4}
"""Which draw became the frozen map of a size, picked by eye."""


@dataclass(frozen=True)
class MapStructure:
    """What a generated map of one size looks like. Ranges are inclusive."""

    blocks: int
    """Blocks of 2 x 2 cells along each side."""
    lattice: int
    """Nodes of the coarse lattice along each side."""
    first_block: int
    """Block coordinate of the first node."""
    pitch_blocks: int
    """Blocks between neighbouring nodes."""
    jitter_blocks: int
    """A node is moved by up to this many blocks along each axis."""
    widths_blocks: tuple[int, ...]
    """Corridor widths, drawn alike; repeat one to make it frequent."""
    nodes: tuple[int, int]
    """Nodes that the corridors visit."""
    path_edges: tuple[int, int]
    """Edges between start and end on the tree."""
    leaves: tuple[int, int]
    """Blind ends of the tree, start and end included."""
    loops: tuple[int, int]
    """Edges beyond the tree."""
    walkable_share: tuple[float, float]
    """Share of walkable cells."""
    start_end_cells: tuple[int, int]
    """Grid distance from start to end."""
    longest_cells: int
    """No cell is further than this from any point."""
    places_at_dead_ends: int
    """At least this many treasure places lie at a dead end."""
    buff_off_centre_cells: int
    """The buff is at most this far from the centre along each axis."""

    FULL: ClassVar[MapStructure]
    MINI: ClassVar[MapStructure]

    @classmethod
    def of_size(cls, rules: RealmRules) -> MapStructure:
        """The structure for the rules' size."""
        return cls.FULL if rules.name == "full" else cls.MINI


MapStructure.FULL = MapStructure(
    blocks=64,
    lattice=7,
    first_block=5,
    pitch_blocks=9,
    jitter_blocks=1,
    widths_blocks=(3, 4, 4, 4, 4, 5, 5, 5, 5, 6, 7),
    nodes=(24, 28),
    path_edges=(9, 11),
    leaves=(12, 16),
    loops=(1, 2),
    walkable_share=(0.22, 0.30),
    start_end_cells=(150, 220),
    longest_cells=255,
    places_at_dead_ends=8,
    buff_off_centre_cells=20,
)
MapStructure.MINI = MapStructure(
    blocks=16,
    lattice=5,
    first_block=2,
    pitch_blocks=3,
    jitter_blocks=0,
    widths_blocks=(2,),
    nodes=(20, 23),
    path_edges=(14, 18),
    leaves=(5, 9),
    loops=(1, 1),
    walkable_share=(0.40, 0.56),
    start_end_cells=(76, 110),
    longest_cells=127,
    places_at_dead_ends=3,
    buff_off_centre_cells=6,
)


@dataclass(frozen=True)
class MapFigures:
    """A map's structure, measured on its cells alone."""

    components: int
    """4-connected walkable regions."""
    walkable_share: float
    """Walkable cells among all."""
    loops: int
    """Blocked regions that walkable cells enclose."""
    narrowest_cells: int
    """Largest k such that the walkable cells are a union of k x k squares."""
    start_end_cells: int
    """Grid distance from start to end."""
    longest_cells: int
    """Largest grid distance between a point and a cell."""
    places_at_dead_ends: int
    """Treasure places whose surroundings, when blocked, cut nothing else off."""
    buff_off_centre_cells: float
    """Distance of the buff from the centre along the axis where it is larger."""
    discs_free: bool
    """Whether all cells within the trigger radius of every point are walkable."""


@lru_cache(maxsize=256)
def generate_map(rules: RealmRules, map_seed: int, index: int = 0) -> RealmMap:
    """The index-th random map of a seed, never a frozen one. Different (seed, index) are drawn independently.

    Kept, because policy, walker and oracle are compared on the same maps one after another: do not write into it.
    """
    return draw_map(rules, np.random.default_rng([1, map_seed, index]))


def draw_map_to_freeze(rules: RealmRules) -> RealmMap:
    """The map that was drawn once and is kept as the size's frozen map."""
    return draw_map(rules, np.random.default_rng([2, FROZEN_DRAWS[rules.name]]))


def draw_map(rules: RealmRules, rng: np.random.Generator) -> RealmMap:
    """Draw drafts until one has the structure of the rules' size."""
    structure = MapStructure.of_size(rules)
    for _ in range(10_000):
        draft = _draft(structure, rules, rng)
        if draft is not None and _fits(draft, structure, rules):
            return draft
    raise RuntimeError(f"no Realm map of size {rules.name} has the structure {structure}")


def _draft(structure: MapStructure, rules: RealmRules, rng: np.random.Generator) -> RealmMap | None:
    start, end = _opposite_corners(structure, rng)
    path = _winding_path(start, end, structure, rng)
    if path is None:
        return None
    tree = _branch_out(path, structure, rng)
    loops = _loop_edges(tree, int(rng.integers(structure.loops[0], structure.loops[1] + 1)), structure, rng)
    leaves = [node for node in _nodes(tree) if _degree(node, tree) == 1 and node not in (start, end)]
    chosen = _choose_points(tree + loops, leaves, (start, end), structure, rules, rng)
    num_leaves = len(leaves) + 2
    if chosen is None or not structure.leaves[0] <= num_leaves <= structure.leaves[1]:
        return None
    where = {node: _node_block(node, structure, rng) for node in _nodes(tree)}
    walkable = _carve(tree + loops, where, structure, rng)
    points = np.array([where[node] for node in chosen], dtype=np.int64) * BLOCK_CELLS * CELL_UNITS
    return RealmMap(walkable, points)


def _opposite_corners(structure: MapStructure, rng: np.random.Generator) -> Edge:
    """Two nodes in opposite corners of the lattice, each at most one step off its corner."""
    last = structure.lattice - 1
    off = [(0, 0), (0, 1), (1, 0)]
    start, end = off[rng.integers(3)], off[rng.integers(3)]
    end = (last - end[0], last - end[1])
    if rng.random() < 0.5:
        start, end = (last - start[0], start[1]), (last - end[0], end[1])
    return (start, end) if rng.random() < 0.5 else (end, start)


def _neighbours(node: Node, structure: MapStructure) -> list[Node]:
    column, row = node
    around = [(column + 1, row), (column, row + 1), (column - 1, row), (column, row - 1)]
    return [(i, j) for i, j in around if 0 <= i < structure.lattice and 0 <= j < structure.lattice]


def _winding_path(start: Node, end: Node, structure: MapStructure, rng: np.random.Generator) -> list[Node] | None:
    """A path without crossings whose number of edges lies in the structure's range; None if one search fails."""
    edges = int(rng.integers(structure.path_edges[0], structure.path_edges[1] + 1))
    path = [start]
    while len(path) <= edges:
        left = edges - len(path)
        options = [
            node
            for node in _neighbours(path[-1], structure)
            if node not in path and abs(node[0] - end[0]) + abs(node[1] - end[1]) <= left and (node != end or left == 0)
        ]
        if not options:
            return None
        path.append(options[rng.integers(len(options))])
    return path


def _branch_out(path: list[Node], structure: MapStructure, rng: np.random.Generator) -> list[Edge]:
    """Tree around the path: nodes are attached until there are enough, mostly to inner ones, which makes blind ends."""
    tree: list[Edge] = list(pairwise(path))
    wanted = int(rng.integers(structure.nodes[0], structure.nodes[1] + 1))
    while len(_nodes(tree)) < wanted:
        taken = _nodes(tree)
        grow_leaf = rng.random() < 0.35
        ways = [
            (old, new)
            for old in taken
            if old not in (path[0], path[-1]) and (_degree(old, tree) == 1) == grow_leaf
            for new in _neighbours(old, structure)
            if new not in taken
        ]
        if not ways and not grow_leaf:
            break
        if ways:
            tree.append(ways[rng.integers(len(ways))])
    return tree


def _loop_edges(tree: list[Edge], number: int, structure: MapStructure, rng: np.random.Generator) -> list[Edge]:
    """Up to `number` edges between neighbouring inner nodes that the tree leaves apart."""
    inner = [node for node in _nodes(tree) if _degree(node, tree) > 1]
    ways = [
        (a, b)
        for a in inner
        for b in _neighbours(a, structure)
        if a < b and b in inner and (a, b) not in tree and (b, a) not in tree
    ]
    order = rng.permutation(len(ways))[:number]
    return [ways[i] for i in order]


def _nodes(edges: list[Edge]) -> list[Node]:
    return sorted({node for edge in edges for node in edge})


def _degree(node: Node, edges: list[Edge]) -> int:
    return sum(node in edge for edge in edges)


def _choose_points(
    edges: list[Edge],
    leaves: list[Node],
    ends: Edge,
    structure: MapStructure,
    rules: RealmRules,
    rng: np.random.Generator,
) -> list[Node] | None:
    """Nodes by point id: the buff near the centre, places at blind ends first; None if there are too few."""
    inner = [node for node in _nodes(edges) if node not in leaves and node not in ends]
    if not inner:
        return None
    centre = (structure.lattice - 1) // 2
    buff = min(inner, key=lambda node: (node[0] - centre) ** 2 + (node[1] - centre) ** 2)
    inner.remove(buff)
    places = [leaves[i] for i in rng.permutation(len(leaves))] + [inner[i] for i in rng.permutation(len(inner))]
    if len(places) < rules.num_places:
        return None
    places = places[: rules.num_places]
    chosen = {BUFF_ID: buff, START_ID: ends[0], END_ID: ends[1]}
    order = rng.permutation(rules.num_places)
    chosen.update({FIRST_PLACE_ID + i: places[order[i]] for i in range(rules.num_places)})
    return [chosen[point_id] for point_id in range(rules.num_points)]


def _node_block(node: Node, structure: MapStructure, rng: np.random.Generator) -> Node:
    """Corner between blocks where the node lies, so that a trigger disc needs just two blocks to each side."""
    jitter = rng.integers(-structure.jitter_blocks, structure.jitter_blocks + 1, size=2)
    column, row = (structure.first_block + structure.pitch_blocks * np.array(node) + jitter).tolist()
    return column, row


def _carve(edges: list[Edge], where: dict[Node, Node], structure: MapStructure, rng: np.random.Generator) -> Grid:
    """Walkable cells [H, H]: each edge a corridor along its longer axis, then along the other."""
    blocks = np.zeros((structure.blocks, structure.blocks), dtype=np.uint8)
    for a, b in edges:
        width = structure.widths_blocks[rng.integers(len(structure.widths_blocks))]
        (ax, az), (bx, bz) = where[a], where[b]
        corner = (bx, az) if abs(bx - ax) >= abs(bz - az) else (ax, bz)
        for (px, pz), (qx, qz) in (((ax, az), corner), (corner, (bx, bz))):
            low_x, low_z = min(px, qx) - width // 2, min(pz, qz) - width // 2
            blocks[max(low_z, 0) : low_z + abs(qz - pz) + width, max(low_x, 0) : low_x + abs(qx - px) + width] = 1
    return np.kron(blocks, np.ones((BLOCK_CELLS, BLOCK_CELLS), dtype=np.uint8))


def _fits(draft: RealmMap, structure: MapStructure, rules: RealmRules) -> bool:
    share = float(draft.walkable.mean())
    if not structure.walkable_share[0] <= share <= structure.walkable_share[1]:
        return False
    # Most drafts fail here: their loop is a short cut.
    start_end_cells = _start_end_cells(draft)
    if not structure.start_end_cells[0] <= start_end_cells <= structure.start_end_cells[1]:
        return False
    figures = measure_map(draft, rules)
    return (
        figures.components == 1
        and structure.loops[0] <= figures.loops <= structure.loops[1]
        and figures.longest_cells <= structure.longest_cells
        and figures.places_at_dead_ends >= structure.places_at_dead_ends
        and figures.buff_off_centre_cells <= structure.buff_off_centre_cells
        and figures.discs_free
    )


def measure_map(realm_map: RealmMap, rules: RealmRules) -> MapFigures:
    """Measure a map's structure on its cells."""
    walkable, points = realm_map.walkable, realm_map.points
    distance = distance_fields(walkable, points)
    return MapFigures(
        components=len(component_sizes(walkable)),
        walkable_share=float(walkable.mean()),
        loops=len(component_sizes(walkable)) - _euler_number(walkable),
        narrowest_cells=_narrowest(walkable),
        start_end_cells=_start_end_cells(realm_map),
        longest_cells=int(np.where(distance == UNREACHABLE, 0, distance).max()),
        places_at_dead_ends=sum(_at_dead_end(walkable, point, rules) for point in points[FIRST_PLACE_ID:]),
        buff_off_centre_cells=float(np.abs(points[BUFF_ID] / CELL_UNITS - rules.width_cells / 2).max()),
        discs_free=all(_disc_is_free(walkable, point, rules) for point in points),
    )


def _start_end_cells(realm_map: RealmMap) -> int:
    column, row = realm_map.points[START_ID] // CELL_UNITS
    return int(distance_fields(realm_map.walkable, realm_map.points[END_ID : END_ID + 1])[row, column, 0])


def component_sizes(walkable: Grid) -> list[int]:
    """Number of cells of each 4-connected walkable region."""
    left = walkable.copy()
    queue = np.empty(walkable.size, dtype=np.int32)
    field = np.empty(walkable.shape, dtype=np.int16)
    sizes = []
    while left.any():
        row, column = np.unravel_index(int(left.argmax()), left.shape)
        flood(walkable, int(row), int(column), queue, field)
        sizes.append(int((field != UNREACHABLE).sum()))
        left[field != UNREACHABLE] = 0
    return sizes


def _euler_number(walkable: Grid) -> int:
    """Regions less holes: cells less neighbouring pairs plus 2 x 2 squares."""
    open_ = walkable.astype(bool)
    pairs = (open_[1:] & open_[:-1]).sum() + (open_[:, 1:] & open_[:, :-1]).sum()
    squares = (open_[1:, 1:] & open_[1:, :-1] & open_[:-1, 1:] & open_[:-1, :-1]).sum()
    return int(open_.sum() - pairs + squares)


def _narrowest(walkable: Grid) -> int:
    """Largest k for which opening with a k x k square leaves the walkable cells as they are."""
    size = 1
    while size < walkable.shape[0] and np.array_equal(_opened(walkable, size + 1), walkable):
        size += 1
    return size


def _opened(walkable: Grid, side: int) -> Grid:
    """Union of all walkable side x side squares."""
    sums = np.pad(walkable.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    corners = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    opened = np.zeros_like(walkable)
    for row, column in np.argwhere(corners == side * side):
        opened[row : row + side, column : column + side] = 1
    return opened


def _at_dead_end(walkable: Grid, point: npt.NDArray[np.int64], rules: RealmRules) -> bool:
    """Whether blocking the square around a point leaves one region; crumbs of corridor do not count."""
    column, row = point // CELL_UNITS
    reach = MapStructure.of_size(rules).pitch_blocks * BLOCK_CELLS // 2 - 1
    blocked = walkable.copy()
    blocked[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1] = 0
    return sum(size > reach * reach for size in component_sizes(blocked)) == 1


def _disc_is_free(walkable: Grid, point: npt.NDArray[np.int64], rules: RealmRules) -> bool:
    """Whether no blocked cell reaches into the trigger disc of a point."""
    unit, radius, size = CELL_UNITS, rules.trigger_units, walkable.shape[0]
    if point.min() < radius or point.max() > size * unit - radius:
        return False
    rows, columns = np.nonzero(walkable == 0)
    near_x = np.clip(point[0], columns * unit, (columns + 1) * unit)
    near_z = np.clip(point[1], rows * unit, (rows + 1) * unit)
    return bool(((near_x - point[0]) ** 2 + (near_z - point[1]) ** 2 >= radius**2).all())
