"""Learning curves as a picture. Pillow is imported on use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.errors import MissingExtraError
from millrace.experiments.curves import Band, Curve, band
from millrace.types import Array

WIDTH, HEIGHT = 900, 540
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 44, 56
OVERSAMPLING = 2
"""The picture is drawn this much larger and shrunk, which smooths edges."""
INK, FRAME, GRID, PAPER = (30, 33, 42), (150, 152, 160), (228, 229, 233), (255, 255, 255)
# Told apart by those who see colours differently (Okabe and Ito 2008).
COLOURS = [(0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233)]
MOST_LINES = len(COLOURS)


@dataclass(frozen=True)
class Line:
    """Runs that belong together: each thin, their mean thick, with a band of one standard deviation."""

    label: str
    curves: list[Curve]


def draw_curves(path: Path, title: str, lines: list[Line], across: str = "environment steps") -> None:
    """Write the curves as PNG.

    Args:
        across: what the axis across counts.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw
    except ModuleNotFoundError:
        raise MissingExtraError("pillow", "render", "drawing learning curves") from None
    size = WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING
    picture = Image.new("RGB", size, PAPER)
    plot = _Plot(lines)
    plot.draw_frame(ImageDraw.Draw(picture), title, across)
    for line, colour in zip(lines, COLOURS, strict=False):
        veil = Image.new("RGBA", size, (0, 0, 0, 0))
        plot.draw_line(ImageDraw.Draw(veil), line, colour)
        picture.paste(veil, mask=veil)
    if len(lines) > 1:
        _draw_legend(ImageDraw.Draw(picture), [line.label for line in lines], plot.begins_high)
    picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).save(path)


class _Plot:
    """Axes around all curves, and what is drawn between them."""

    def __init__(self, lines: list[Line]) -> None:
        curves = [curve for line in lines for curve in line.curves]
        returns = [value for curve in curves for value in (curve.episode_return.min(), curve.episode_return.max())]
        self._last_step = max((float(curve.env_steps[-1]) for curve in curves), default=1.0)
        self._x = [tick for tick in _ticks(0.0, self._last_step) if tick <= self._last_step]
        self._y = _ticks(min(returns, default=0.0), max(returns, default=1.0))
        self._first = max((float(curve.episode_return[0]) for curve in curves), default=0.0)

    @property
    def begins_high(self) -> bool:
        """Whether curves begin in the upper half, where a legend would lie on them."""
        return self._first > (self._y[0] + self._y[-1]) / 2

    def draw_frame(self, draw: Any, title: str, across: str) -> None:
        left, right, top, bottom = (v * OVERSAMPLING for v in (LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM))
        for value in self._y:
            y = self._place(self._x[0], value)[1]
            draw.line([(left, y), (right, y)], GRID, OVERSAMPLING)
            _write(draw, (left - 16, y), short(value), "rm")
        for value in self._x:
            x = self._place(value, self._y[0])[0]
            draw.line([(x, bottom), (x, bottom + 10)], FRAME, OVERSAMPLING)
            _write(draw, (x, bottom + 16), short(value), "ma")
        draw.line([(left, top), (left, bottom), (right, bottom)], FRAME, OVERSAMPLING)
        _write(draw, (left, top - 24), title, "ls", 16)
        _write(draw, ((left + right) / 2, bottom + 62), across, "ma")

    def draw_line(self, draw: Any, line: Line, colour: tuple[int, int, int]) -> None:
        together: Band | None = band(line.curves)
        if together is not None and len(line.curves) > 1:
            upper = self._points(together.env_steps, together.mean + together.deviation)
            lower = self._points(together.env_steps, together.mean - together.deviation)
            draw.polygon([*upper, *lower[::-1]], (*colour, 48))
        for curve in line.curves:
            draw.line(self._points(curve.env_steps, curve.episode_return), (*colour, 170), OVERSAMPLING, joint="curve")
        if together is not None:
            points = self._points(together.env_steps, together.mean)
            draw.line(points, (*colour, 255), 3 * OVERSAMPLING, joint="curve")

    def _points(self, env_steps: Array, values: Array) -> list[tuple[float, float]]:
        return [self._place(x, y) for x, y in zip(env_steps, values, strict=True)]

    def _place(self, env_steps: float, value: float) -> tuple[float, float]:
        """Pixels, inside the frame."""
        across = env_steps / self._last_step
        up = min(max((value - self._y[0]) / (self._y[-1] - self._y[0]), 0.0), 1.0)
        x = LEFT + across * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)
        return x * OVERSAMPLING, y * OVERSAMPLING


def _draw_legend(draw: Any, labels: list[str], is_below: bool) -> None:
    top = HEIGHT - BOTTOM - 20 * len(labels) if is_below else TOP + 12
    for i, (label, colour) in enumerate(zip(labels, COLOURS, strict=False)):
        x, y = (LEFT + 16) * OVERSAMPLING, (top + 20 * i) * OVERSAMPLING
        draw.line([(x, y), (x + 48, y)], colour, 3 * OVERSAMPLING)
        _write(draw, (x + 60, y), label, "lm")


def _write(draw: Any, place: tuple[float, float], text: str, anchor: str, size: int = 13) -> None:
    from PIL import ImageFont

    draw.text(place, text, INK, ImageFont.load_default(size * OVERSAMPLING), anchor)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, about five apart, from at or below the lowest to at or above the highest."""
    span = (high - low) or max(abs(high), 1.0)
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 5)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [i * step for i in range(first, last + 1)]


def short(value: float) -> str:
    """A number for an axis: 200k, 1.5M."""
    for limit, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{sign}"
    return f"{value:.6g}"
