"""Top-down pictures of Realm, north (largest z) up. Pillow is imported on use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from millrace.games.realm.kernels import FINISHED, TIMED_OUT, TRAIL_STEPS
from millrace.games.realm.rules import BUFF_ID, CELL_UNITS, END_ID, FIRST_PLACE_ID, MEMORY_CAP, START_ID

if TYPE_CHECKING:
    from millrace.games.realm.game import RealmGame

WALL = (44, 48, 60)
GROUND = (233, 228, 214)
VISITED = (196, 208, 226)
TRAIL = (72, 108, 188)
HERO = (222, 66, 54)
GOLD = (240, 180, 32)
TAKEN = (188, 182, 168)
END = (46, 150, 92)
BUFF = (60, 178, 208)
INK = (30, 33, 42)
BAR = (248, 246, 240)

BAR_HEIGHT = 24
OVERSAMPLING = 2
"""The picture is drawn this much larger and shrunk, which smooths edges."""


def render_slot(game: RealmGame, slot: int, scale: int | None = None) -> npt.NDArray[np.uint8]:
    """Picture [H, W, 3] of one slot with `scale` pixels to a cell (by default about 400 to 640 in all)."""
    from PIL import Image, ImageDraw

    scale = scale if scale is not None else (12 if game.rules.width_cells <= 32 else 5)
    side = game.rules.width_cells * scale
    large = Image.fromarray(_ground(game, slot)).resize((side * OVERSAMPLING,) * 2, Image.Resampling.NEAREST)
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
        f"step {int(slots.steps[slot])}/{game.numbers.max_step}",
        f"treasures {int(figures['treasures'])}/{int(slots.placed[slot])}",
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


def _draw_view(canvas: _Canvas, game: RealmGame, slot: int) -> None:
    """Outline of what the map observation covers."""
    low = (game.slots.position[slot] // CELL_UNITS - game.rules.view_radius_cells) * CELL_UNITS
    high = low + game.rules.view_cells * CELL_UNITS
    corners = [(low[0], low[1]), (high[0], low[1]), (high[0], high[1]), (low[0], high[1])]
    for (x0, z0), (x1, z1) in zip(corners, corners[1:] + corners[:1], strict=True):
        canvas.line(x0, z0, x1, z1, (128, 134, 152), 110)


def _draw_trail(canvas: _Canvas, game: RealmGame, slot: int) -> None:
    """The last steps, fading into the ground; a flash is a thin line."""
    steps, trail = int(game.slots.steps[slot]), game.slots.trail[slot]
    first = max(0, steps - TRAIL_STEPS + 1)
    for step in range(first + 1, steps + 1):
        (x0, z0), (x1, z1) = trail[(step - 1) % TRAIL_STEPS], trail[step % TRAIL_STEPS]
        fresh = 0.25 + 0.75 * (step - first) / (steps - first)
        colour = tuple(round(fresh * new + (1 - fresh) * old) for new, old in zip(TRAIL, VISITED, strict=True))
        flashed = abs(int(x1) - int(x0)) + abs(int(z1) - int(z0)) > 2 * game.rules.buff_walk_units
        canvas.line(x0, z0, x1, z1, HERO if flashed else colour, 100 if flashed else 260)


def _draw_points(canvas: _Canvas, game: RealmGame, slot: int) -> None:
    """Start ring, end flag, buff, treasures; places whose treasure is taken stay as grey dots."""
    points = game.maps.points[game.slots.map_index[slot]]
    start_x, start_z = points[START_ID]
    canvas.disc(start_x, start_z, 700, None, INK)
    for point_id in range(FIRST_PLACE_ID, game.rules.num_points):
        x, z = points[point_id]
        if int(game.slots.treasures[slot]) >> point_id & 1:
            canvas.disc(x, z, 720, GOLD, (140, 96, 8))
        else:
            canvas.disc(x, z, 220, TAKEN)
    if game.slots.buff_wait[slot] == 0:
        x, z = points[BUFF_ID]
        canvas.polygon([(x - 700, z), (x, z + 700), (x + 700, z), (x, z - 700)], BUFF, INK)
    x, z = points[END_ID]
    canvas.disc(x, z, 1000, None, END)
    canvas.line(x - 300, z - 700, x - 300, z + 900, INK, 160)
    canvas.polygon([(x - 300, z + 900), (x + 800, z + 550), (x - 300, z + 150)], END, INK)
