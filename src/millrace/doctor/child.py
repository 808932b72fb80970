"""The process in which a policy is loaded: a line of JSON on standard output for each stage as it finishes."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import TextIO

from millrace import system
from millrace.doctor.findings import Finding
from millrace.doctor.loading import EARLIER, STAGES, Loading, StuckError
from millrace.errors import MillraceError


def main(path: str, env: str, stages: list[str]) -> None:
    """Go through the stages until one is stuck."""
    system.no_core_dump()
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a game prints is none of ours
    loading = Loading(Path(path), env)
    for name in stages:
        if not _go_on(name, loading, lines):
            return


def _go_on(name: str, loading: Loading, lines: TextIO) -> bool:
    begin_s, stuck = time.perf_counter(), False
    try:
        finding = STAGES[name](loading)
    except Exception as error:
        finding, stuck = _stuck(name, error), True
    timed = dataclasses.replace(finding, took_s=time.perf_counter() - begin_s)
    print(json.dumps(dataclasses.asdict(timed)), file=lines, flush=True)
    return not stuck


def _stuck(name: str, error: Exception) -> Finding:
    remedy = error.remedy if isinstance(error, StuckError) else EARLIER
    if isinstance(error, MillraceError):
        return Finding("error", name, str(error), remedy, exit_code=error.exit_code)
    return Finding("error", name, f"{type(error).__name__}: {error}", remedy, exit_code=4)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
