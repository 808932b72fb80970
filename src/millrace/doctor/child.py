"""The process in which a policy is loaded: a line of JSON on standard output for each stage as it finishes."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from millrace import system
from millrace.doctor.findings import Finding
from millrace.doctor.loading import STAGES, TRUSTED, Loading, stuck


def main(path: str, env: str, trust: str, stages: list[str]) -> None:
    """Go through the stages and print what they find."""
    system.no_core_dump()
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a game prints is none of ours
    for finding in load(Loading(Path(path), env, trust == TRUSTED), stages):
        print(json.dumps(dataclasses.asdict(finding)), file=lines, flush=True)


def load(loading: Loading, stages: Iterable[str] = tuple(STAGES)) -> Iterator[Finding]:
    """What each stage finds, until one is stuck."""
    for name in stages:
        begin_s, is_stuck = time.perf_counter(), False
        try:
            finding = STAGES[name](loading)
        except Exception as error:
            finding, is_stuck = stuck(name, error, loading.elsewhere), True
        yield dataclasses.replace(finding, took_s=time.perf_counter() - begin_s)
        if is_stuck:
            return


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
