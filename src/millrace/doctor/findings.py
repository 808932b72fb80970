"""What a check found."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from millrace.errors import MillraceError

Level = Literal["ok", "note", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One sentence about one thing.

    Attributes:
        level: `note` is worth knowing, `warning` worth changing; with `error` something does not work.
        subject: what was looked at.
        remedy: what to do, where there is something.
        took_s: seconds that looking took, where that says something.
        exit_code: of the command, where this is an error; see `millrace --help`.
    """

    level: Level
    subject: str
    what: str
    remedy: str = ""
    took_s: float | None = None
    exit_code: int = MillraceError.exit_code

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "exit_code"}


def exit_code(findings: Iterable[Finding]) -> int:
    """0, or that of the first error."""
    return next((finding.exit_code for finding in findings if finding.level == "error"), 0)
