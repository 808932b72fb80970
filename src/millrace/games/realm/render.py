"""Top-down pictures of Realm, north (largest z) up. Pillow is imported on use.

Yellow discs are treasures, grey rings with a tick those taken; the blue line is the way walked, thin red a flash; the
square is what the map observation covers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from millrace.games.realm.kernels import FINISHED, TIMED_OUT
from millrace.games.realm.rules import BUFF_ID, CELL_UNITS, END_ID, FIRST_PLACE_ID, MEMORY_CAP, START_ID

if TYPE_CHECKING:
    from millrace.games.realm.game import RealmGame

WALL = (44, 48, 60)
GROUND = (233, 228, 214)
VISITED = (196, 208, 226)
TRAIL = (72, 108, 188)
HERO = (222, 66, 54)
GOLD = (240, 180, 32)
TAKEN = (140, 136, 126)
END = (46, 150, 92)
BUFF = (60, 178, 208)
INK = (30, 33, 42)
BAR = (248, 246, 240)

HEAT = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], dtype=np.float64)
"""Colours from the lowest to the highest value, evenly spaced."""

CellValues = Callable[[npt.NDArray[np.int64]], npt.ArrayLike]
"""Positions [N, 2] in world units, the middles of all walkable cells, to their values [N]."""

BAR_HEIGHT = 24
FADE_STEPS = 300
"""The way's colour has faded as far as it does after this many steps."""
OVERSAMPLING = 2
"""The picture is drawn this much larger and shrunk, which smooths edges."""


def render_slot(
    game: RealmGame, slot: int, scale: int | None = None, values: CellValues | None = None
) -> npt.NDArray[np.uint8]:
    """Picture [H, W, 3] of one slot with `scale` pixels to a cell (by default 384 or 512 in all).

    With `values` the ground is coloured by them, from the lowest (violet) to the highest (yellow).
    """
    from PIL import Image, ImageDraw

    scale = scale if scale is not None else (12 if game.rules.width_cells <= 32 else 4)
    side = game.rules.width_cells * scale
    ground = _ground(game, slot) if values is None else _heat(game, slot, values)
    large = Image.fromarray(ground).resize((side * OVERSAMPLING,) * 2, Image.Resampling.NEAREST)
    canvas = _Canvas(ImageDraw.Draw(large), side * OVERSAMPLING / game.rules.world_units, game.rules.world_units)
    _draw_view(canvas, game, slot)
    _draw_trail(canvas, game, slot)
    _draw_points(canvas, game, slot)
    x, z = game.slots.position[slot]
    canvas.disc(x, z, 620, HERO, (255, 255, 255))
    picture = Image.new("RGB", (side, side + BAR_HEIGHT), BAR)
    picture.paste(large.resize((side, side), Image.Resampling.BOX))
    ImageDraw.Draw(picture).text((6, side + 6), status_line(game, slot), fill=INK)
    return np.asarray(picture)


def status_line(game: RealmGame, slot: int) -> str:
    """The text below the picture."""
    slots, figures = game.slots, game.episode_figures(slot)
    wait, buff = int(slots.flash_wait[slot]), int(slots.buff_left[slot])
    parts = [
        f"step {int(slots.steps[slot])}/{int(slots.max_step[slot])}",
        f"treasures {int(figures['treasures'])}/{int(slots.placed[slot]).bit_count()}",
        f"flash {'ready' if wait == 0 else f'in {wait}'}",
    ]
    if buff:
        parts.append(f"buff {buff}")
    if slots.status[slot] == FINISHED:
        parts.append(f"score {figures['score']:.1f}")
    if slots.status[slot] == TIMED_OUT:
        parts.append("time is up: score 0")
    return "   ".join(parts)


class _Canvas:
    """Draws in world units on an image whose y axis points down."""

    def __init__(self, draw: Any, pixels_per_unit: float, world_units: int) -> None:
        self._draw, self._scale, self._world = draw, pixels_per_unit, world_units
        self._pen = max(1, round(120 * pixels_per_unit))

    def pixel(self, x: float, z: float) -> tuple[float, float]:
        return float(x) * self._scale, (self._world - float(z)) * self._scale

    def disc(self, x: float, z: float, radius: float, fill: Any, outline: Any = None) -> None:
        column, row = self.pixel(x, z)
        reach = radius * self._scale
        box = (column - reach, row - reach, column + reach, row + reach)
        self._draw.ellipse(box, fill=fill, outline=outline, width=self._pen)

    def polygon(self, corners: list[tuple[float, float]], fill: Any, outline: Any) -> None:
        self._draw.polygon([self.pixel(x, z) for x, z in corners], fill=fill, outline=outline, width=self._pen)

    def line(self, x0: float, z0: float, x1: float, z1: float, fill: Any, units: float) -> None:
        width = max(1, round(units * self._scale))
        self._draw.line([self.pixel(x0, z0), self.pixel(x1, z1)], fill=fill, width=width)


def _ground(game: RealmGame, slot: int) -> npt.NDArray[np.uint8]:
    """One pixel a cell [H, H, 3]: walls, ground, and the cells visited, darker the more often."""
    radius, size = game.rules.view_radius_cells, game.rules.width_cells
    walkable = game.maps.walkable[game.slots.map_index[slot]]
    memory = game.slots.memory[slot, radius : radius + size, radius : radius + size]
    visited = np.minimum(memory / MEMORY_CAP + 0.4 * (memory > 0), 1.0)[..., None]
    ground = np.where(walkable[..., None] == 1, (1 - visited) * GROUND + visited * np.array(VISITED), WALL)
    return np.ascontiguousarray(ground[::-1].astype(np.uint8))


def _heat(game: RealmGame, slot: int, values: CellValues) -> npt.NDArray[np.uint8]:
    """One pixel a cell [H, H, 3]: walls, and the values of walkable cells as colours."""
    walkable = game.maps.walkable[game.slots.map_index[slot]]
    rows, columns = np.nonzero(walkable)
    positions = np.stack([columns, rows], axis=1) * CELL_UNITS + CELL_UNITS // 2
    cell_values = np.asarray(values(positions), dtype=np.float64)
    if cell_values.shape != (len(positions),):
        raise ValueError(
            f"values gave shape {cell_values.shape} for {len(positions)} positions; needed is one for each"
        )
    low, high = cell_values.min(), cell_values.max()
    share = (cell_values - low) / (high - low) if high > low else np.zeros(len(positions))
    stops = np.linspace(0.0, 1.0, len(HEAT))
    ground = np.full((*walkable.shape, 3), WALL, dtype=np.uint8)
    ground[rows, columns] = np.stack([np.interp(share, stops, HEAT[:, i]) for i in range(3)], axis=1)
    return np.ascontiguousarray(ground[::-1])


def _draw_view(canvas: _Canvas, game: RealmGame, slot: int) -> None:
    """Outline of what the map observation covers."""
    low = (game.slots.position[slot] // CELL_UNITS - game.rules.view_radius_cells) * CELL_UNITS
    high = low + game.rules.view_cells * CELL_UNITS
    corners = [(low[0], low[1]), (high[0], low[1]), (high[0], high[1]), (low[0], high[1])]
    for (x0, z0), (x1, z1) in zip(corners, corners[1:] + corners[:1], strict=True):
        canvas.line(x0, z0, x1, z1, (128, 134, 152), 110)


def _draw_trail(canvas: _Canvas, game: RealmGame, slot: int) -> None:
    """The whole way, older steps nearer to the ground's colour; a flash is a thin line."""
    steps, trail = int(game.slots.steps[slot]), game.slots.trail[slot].astype(np.int64)
    for step in range(1, steps + 1):
        (x0, z0), (x1, z1) = trail[step - 1], trail[step]
        fresh = max(0.35, 1.0 - (steps - step) / FADE_STEPS)
        colour = tuple(round(fresh * new + (1 - fresh) * old) for new, old in zip(TRAIL, VISITED, strict=True))
        flashed = abs(x1 - x0) + abs(z1 - z0) > 2 * game.rules.buff_walk_units
        canvas.line(x0, z0, x1, z1, HERO if flashed else colour, 100 if flashed else 260)


def _draw_points(canvas: _Canvas, game: RealmGame, slot: int) -> None:
    """Start ring, end flag, buff, treasures left and taken; places without one are small dots."""
    points = game.maps.points[game.slots.map_index[slot]]
    start_x, start_z = points[START_ID]
    canvas.disc(start_x, start_z, 700, None, INK)
    for point_id in range(FIRST_PLACE_ID, game.rules.num_points):
        x, z = points[point_id]
        if int(game.slots.treasures[slot]) >> point_id & 1:
            canvas.disc(x, z, 720, GOLD, (140, 96, 8))
        elif int(game.slots.placed[slot]) >> point_id & 1:
            canvas.disc(x, z, 720, BAR, TAKEN)
            canvas.line(x - 350, z, x - 60, z - 320, END, 170)
            canvas.line(x - 60, z - 320, x + 420, z + 360, END, 170)
        else:
            canvas.disc(x, z, 220, TAKEN)
    if game.slots.buff_wait[slot] == 0:
        x, z = points[BUFF_ID]
        canvas.polygon([(x - 700, z), (x, z + 700), (x + 700, z), (x, z - 700)], BUFF, INK)
    x, z = points[END_ID]
    canvas.disc(x, z, 1000, None, END)
    canvas.line(x - 300, z - 700, x - 300, z + 900, INK, 160)
    canvas.polygon([(x - 300, z + 900), (x + 800, z + 550), (x - 300, z + 150)], END, INK)
