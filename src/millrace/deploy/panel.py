"""What a policy thinks, drawn beside the game: return, value, and how probable each action is. Pillow on use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from millrace.deploy.insight import Insight, Option
from millrace.errors import MissingExtraError
from millrace.types import ActionSpec, Array

WIDTH, LEAST_HEIGHT, MARGIN = 264, 288, 14
OVERSAMPLING = 2
"""The panel is drawn this much larger and shrunk, which smooths edges."""
INK, DIM, PALE, FAINT, PAPER = (30, 33, 42), (112, 115, 125), (178, 181, 189), (226, 228, 233), (248, 249, 251)
BAR, CHOSEN, BAND = (120, 170, 210), (213, 94, 0), (198, 220, 237)
CURVE_TOP, CURVE_HEIGHT, ROWS_TOP = 66, 56, 146
ROW_HEIGHT, LEAST_ROW_HEIGHT = 20, 14
LABEL_WIDTH, NUMBER_WIDTH = 74, 44


@dataclass(frozen=True)
class Shot:
    """A picture of the game at one step.

    Attributes:
        frame: [H, W, 3] uint8.
        insight: None when the game is over.
    """

    frame: Array
    step: int
    return_so_far: float
    insight: Insight | None


class Panel:
    """Draws the shots of one episode.

    Args:
        values: of every step.
        names: of the actions, where there is one column of categories and the game names them.
    """

    def __init__(self, shots: Sequence[Shot], spec: ActionSpec, values: Sequence[float], names: Sequence[str]) -> None:
        self._values, self._spec, self._names = np.array(values), spec, names
        self._scale = max(1, math.ceil(LEAST_HEIGHT / shots[0].frame.shape[0]))
        self._height = shots[0].frame.shape[0] * self._scale
        insights = [shot.insight for shot in shots if shot.insight is not None]
        room = (self._height - ROWS_TOP - MARGIN) // LEAST_ROW_HEIGHT
        self._columns = list(range(spec.num_box))[:room]
        self._shown = _most_probable(insights, room - len(self._columns))
        num_rows = len(self._shown) + len(self._columns) + (self._num_hidden > 0)
        self._row_height = min(ROW_HEIGHT, (self._height - ROWS_TOP - MARGIN) // max(1, num_rows))
        self._reach = _reach(insights, spec)

    @property
    def _num_hidden(self) -> int:
        return self._spec.num_logits + self._spec.num_box - len(self._shown) - len(self._columns)

    def draw(self, shot: Shot) -> Any:
        """The game and the panel beside it."""
        Image = _pillow()  # noqa: N806 - its own name
        frame = Image.fromarray(shot.frame)
        frame = frame.resize((frame.width * self._scale, frame.height * self._scale), Image.Resampling.NEAREST)
        large = Image.new("RGB", (WIDTH * OVERSAMPLING, self._height * OVERSAMPLING), PAPER)
        pen = _Pen(large)
        self._draw_figures(pen, shot)
        self._draw_curve(pen, shot.step)
        if shot.insight is not None:
            self._draw_rows(pen, shot.insight)
        picture = Image.new("RGB", (frame.width + WIDTH, self._height), PAPER)
        picture.paste(frame)
        picture.paste(large.resize((WIDTH, self._height), Image.Resampling.LANCZOS), (frame.width, 0))
        return picture

    def _draw_figures(self, pen: _Pen, shot: Shot) -> None:
        pen.text(MARGIN, 14, "return", DIM)
        pen.text(MARGIN, 30, _short(shot.return_so_far), INK, size=18)
        pen.text(WIDTH / 2, 14, "value", DIM)
        pen.text(WIDTH / 2, 30, "-" if shot.insight is None else _short(shot.insight.value), INK, size=18)
        pen.text(WIDTH - MARGIN, 14, f"step {shot.step}", DIM, "ra")
        if shot.insight is None:
            pen.text(MARGIN, ROWS_TOP, "the game is over", DIM)

    def _draw_curve(self, pen: _Pen, step: int) -> None:
        """The value so far, on axes that fit the whole episode."""
        bottom, width = CURVE_TOP + CURVE_HEIGHT, WIDTH - 2 * MARGIN
        low, high = min(0.0, float(self._values.min())), max(0.0, float(self._values.max()))
        span = (high - low) or 1.0
        points = [
            (MARGIN + width * t / max(1, len(self._values) - 1), bottom - CURVE_HEIGHT * (value - low) / span)
            for t, value in enumerate(self._values[: step + 1])
        ]
        zero = bottom - CURVE_HEIGHT * (0.0 - low) / span
        if len(points) > 1:
            pen.polygon([(points[0][0], zero), *points, (points[-1][0], zero)], BAND)
            pen.line(points, BAR, 1.6)
        pen.line([(MARGIN, zero), (WIDTH - MARGIN, zero)], FAINT, 1)
        pen.dot(*points[-1], 3.0, CHOSEN)

    def _draw_rows(self, pen: _Pen, insight: Insight) -> None:
        top = float(ROWS_TOP)
        options = {(option.column, option.category): option for option in insight.options}
        for place in self._shown:
            self._draw_option(pen, top, options[place])
            top += self._row_height
        for column in self._columns:
            self._draw_continuous(pen, top, insight, column)
            top += self._row_height
        if self._num_hidden:
            pen.text(MARGIN, top + self._row_height / 2, f"and {self._num_hidden} more", DIM, "lm", self._font_size)

    def _draw_option(self, pen: _Pen, top: float, option: Option) -> None:
        middle = top + self._row_height / 2
        colour = INK if option.is_chosen else DIM if option.is_allowed else PALE
        pen.text(MARGIN, middle, self._name(option), colour, "lm", self._font_size)
        left, right = MARGIN + LABEL_WIDTH, WIDTH - MARGIN - NUMBER_WIDTH
        if not option.is_allowed:
            pen.line([(left, middle), (right, middle)], FAINT, 1)
            pen.text(WIDTH - MARGIN, middle, "masked", PALE, "rm", self._font_size - 1)
            return
        half = self._row_height * 0.32
        pen.box(left, middle - half, right, middle + half, FAINT)
        filled = left + (right - left) * option.probability
        pen.box(left, middle - half, filled, middle + half, CHOSEN if option.is_chosen else BAR)
        pen.text(WIDTH - MARGIN, middle, f"{option.probability:.0%}", colour, "rm", self._font_size)

    def _draw_continuous(self, pen: _Pen, top: float, insight: Insight, column: int) -> None:
        """Mean and deviation as a band, the action as a dot, on the action's range."""
        middle, half = top + self._row_height / 2, self._row_height * 0.32
        left, right = MARGIN + LABEL_WIDTH / 2, float(WIDTH - MARGIN - 2 * NUMBER_WIDTH)
        low, high = self._reach[column]

        def place(value: float) -> float:
            return left + (right - left) * min(max((value - low) / ((high - low) or 1.0), 0.0), 1.0)

        mean, deviation = float(insight.mean[column]), float(insight.deviation[column])
        number = len(self._spec.nvec) + column
        pen.text(MARGIN, middle, str(number), INK, "lm", self._font_size)
        pen.box(left, middle - half, right, middle + half, FAINT)
        pen.box(place(mean - deviation), middle - half, place(mean + deviation), middle + half, BAR)
        pen.line([(place(mean), middle - half), (place(mean), middle + half)], INK, 1)
        pen.dot(place(float(insight.action[number])), middle, 3.0, CHOSEN)
        pen.text(WIDTH - MARGIN, middle, f"{mean:.2f} ± {deviation:.2f}", INK, "rm", self._font_size)

    def _name(self, option: Option) -> str:
        if self._names:
            return self._names[option.category]
        return f"{option.column}: {option.category}" if len(self._spec.nvec) > 1 else str(option.category)

    @property
    def _font_size(self) -> int:
        return 12 if self._row_height > LEAST_ROW_HEIGHT else 11


def _most_probable(insights: Sequence[Insight], room: int) -> list[tuple[int, int]]:
    """The (column, category) that were chosen or else most probable at any time, as many as fit, in their order.

    The same for the whole episode: rows that change places cannot be followed.
    """
    peaks: dict[tuple[int, int], float] = {}
    for insight in insights:
        for option in insight.options:
            place = option.column, option.category
            peaks[place] = max(peaks.get(place, 0.0), option.probability + option.is_chosen)
    if len(peaks) > room:
        room -= 1  # for the line that says how many there are besides
    return sorted(sorted(peaks, key=lambda place: -peaks[place])[: max(0, room)])


def _reach(insights: Sequence[Insight], spec: ActionSpec) -> list[tuple[float, float]]:
    """The ends of each continuous column's axis: its bounds, or where it has none, how far the policy goes."""
    ends = []
    for column in range(spec.num_box):
        wide = [(insight.mean[column], 2 * insight.deviation[column]) for insight in insights]
        low, high = min(mean - two for mean, two in wide), max(mean + two for mean, two in wide)
        bounds = spec.low[column], spec.high[column]
        ends.append(bounds if np.isfinite(bounds).all() else (float(low), float(high)))
    return ends


class _Pen:
    """Draws in pixels of the panel on its larger canvas."""

    def __init__(self, canvas: Any) -> None:
        from PIL import ImageDraw

        self._draw = ImageDraw.Draw(canvas)

    def text(
        self, x: float, y: float, text: str, colour: tuple[int, int, int], anchor: str = "la", size: int = 12
    ) -> None:
        from PIL import ImageFont

        font = ImageFont.load_default(size * OVERSAMPLING)
        self._draw.text((x * OVERSAMPLING, y * OVERSAMPLING), text, colour, font, anchor)

    def box(self, left: float, top: float, right: float, bottom: float, colour: tuple[int, int, int]) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def polygon(self, corners: list[tuple[float, float]], colour: tuple[int, int, int]) -> None:
        self._draw.polygon(_larger(corners), colour)

    def line(self, points: list[tuple[float, float]], colour: tuple[int, int, int], width: float) -> None:
        self._draw.line(_larger(points), colour, round(width * OVERSAMPLING), joint="curve")

    def dot(self, x: float, y: float, radius: float, colour: tuple[int, int, int]) -> None:
        self._draw.ellipse(_larger([(x - radius, y - radius), (x + radius, y + radius)]), colour)


def _larger(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x * OVERSAMPLING, y * OVERSAMPLING) for x, y in points]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _pillow() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise MissingExtraError("pillow", "render", "drawing what the policy thinks") from None
    return Image


def contact_sheet(pictures: Sequence[Any]) -> Any:
    """Pictures of one size in rows, read like a page."""
    Image = _pillow()  # noqa: N806 - its own name
    columns = math.ceil(math.sqrt(len(pictures) * pictures[0].height / pictures[0].width))
    rows = math.ceil(len(pictures) / columns)
    width, height = pictures[0].width + MARGIN, pictures[0].height + MARGIN
    sheet = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), FAINT)
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (MARGIN + i % columns * width, MARGIN + i // columns * height))
    return sheet
