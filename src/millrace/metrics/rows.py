"""The figures of a run, read back from its `metrics.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path

from millrace.metrics.sinks import Row

TAIL_BYTES = 65_536
"""Holds some rows, however long the file."""


def read_rows(run_dir: Path) -> list[Row]:
    """All rows in order of steps; where a run went on from before its last row, the later rows count."""
    rows: list[Row] = []
    for row in _parsed(_content(run_dir)):
        while rows and rows[-1]["env_steps"] >= row["env_steps"]:
            rows.pop()
        rows.append(row)
    return rows


def last_row(run_dir: Path) -> Row | None:
    """The newest row, without reading the file whole; None before the first."""
    rows = _parsed(_content(run_dir, TAIL_BYTES))
    return rows[-1] if rows else None


def _content(run_dir: Path, tail_bytes: int | None = None) -> bytes:
    path = run_dir / "metrics.jsonl"
    try:
        with open(path, "rb") as file:
            if tail_bytes is not None:
                file.seek(max(0, path.stat().st_size - tail_bytes))
            return file.read()
    except FileNotFoundError:
        return b""


def _parsed(content: bytes) -> list[Row]:
    rows = []
    for line in content.split(b"\n"):
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # cut off by a crash or by where reading began, or being written now
    return [row for row in rows if isinstance(row, dict) and "env_steps" in row]
