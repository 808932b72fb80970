"""Tables and JSON on standard output."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any


def print_json(value: Any) -> None:
    """One object as one line."""
    print(json.dumps(value, default=str), flush=True)


def print_table(rows: Iterable[Sequence[str]], header: Sequence[str] = ()) -> None:
    """Columns aligned: the first to the left, the others, under a header, to the right."""
    cells = [list(row) for row in ([header] if header else [])] + [list(row) for row in rows]
    if not cells:
        return
    widths = [max(len(row[i]) for row in cells if i < len(row)) for i in range(max(map(len, cells)))]
    for row in cells:
        first, *others = (
            cell.rjust(width) if header and i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        print("  ".join([first, *others]).rstrip())


def number(value: float) -> str:
    """A figure for people: as many digits as say something."""
    if value != value:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 1 and value else f"{value:.2f}".removesuffix(".00")


def seconds(value: float) -> str:
    """A duration for people."""
    minutes, rest = divmod(value, 60)
    if minutes < 1:
        return f"{value:.1f} s"
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest:.0f} s"
