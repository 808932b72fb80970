"""Checkpoints of a run that RLlib trains: its own format, with the run's counters beside."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from millrace.checkpoints.store import PREFIX
from millrace.errors import CheckpointError
from millrace.rundir import RunDirectory

COUNTERS_FILE = "millrace_counters.json"


@dataclasses.dataclass
class Counters:
    """What a run has come to, earlier processes included; beside RLlib's files in every checkpoint."""

    env_steps: int = 0
    episodes: int = 0
    updates: int = 0
    wall_s: float = 0.0
    mean_return: float | None = None
    best_score: float | None = None
    best_env_steps: int = -1

    @classmethod
    def read(cls, checkpoint: Path) -> Counters:
        """Of the run that wrote the checkpoint.

        Raises:
            CheckpointError: they are not there, or damaged.
        """
        try:
            return cls(**json.loads((checkpoint / COUNTERS_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{checkpoint} cannot be resumed: its counters are not readable: {error}") from None


def write_checkpoint(algorithm: Any, counters: Counters, directory: RunDirectory) -> Path:
    """Write one, aside first: it is either whole or not there.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints stay as they were.
    """
    final = directory.checkpoints / f"{PREFIX}{counters.env_steps:012d}"
    aside = final.with_name(f".{final.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        algorithm.save_to_path(str(aside.resolve()))
        (aside / COUNTERS_FILE).write_text(json.dumps(dataclasses.asdict(counters)), encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        aside.replace(final)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return final


def retire(directory: RunDirectory, keep_last: int, best_env_steps: int) -> None:
    """Delete all but the newest and the best; 0 = none."""
    best = f"{PREFIX}{best_env_steps:012d}"
    for path in checkpoints_of(directory)[:-keep_last] if keep_last else []:
        if path.name != best:
            shutil.rmtree(path, ignore_errors=True)


def checkpoints_of(directory: RunDirectory) -> list[Path]:
    """Of a run that RLlib trained, oldest first."""
    found = directory.checkpoints.glob(f"{PREFIX}*/{COUNTERS_FILE}")
    return sorted(path.parent for path in found)


def newest_checkpoint(run: Path) -> Path:
    """The newest checkpoint of a run, or the one that is named.

    Raises:
        CheckpointError: there is none.
    """
    if (run / COUNTERS_FILE).is_file():
        return run
    found = checkpoints_of(RunDirectory(run))
    if not found:
        raise CheckpointError(f"there is no checkpoint in {run}")
    return found[-1]
