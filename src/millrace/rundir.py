"""The directory of a run: its files, its lock, and how runs are found."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

from millrace import system
from millrace.checkpoints.store import PREFIX, Checkpoint, newest_whole
from millrace.config import Config
from millrace.errors import CheckpointError, MillraceError

RUNS = Path("runs")


class RunDirectory:
    """config.toml, metrics.jsonl, log.txt, tensorboard/, checkpoints/, crashes/, media/, status.json, lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = system.FileLock(path / "lock")

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def config_file(self) -> Path:
        return self.path / "config.toml"

    def create(self) -> None:
        """Make the directory and take its lock.

        Raises:
            MillraceError: it cannot be written.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
        except OSError as error:
            raise MillraceError(
                f"cannot write the run directory {self.path}: {error.strerror}; choose --run-dir"
            ) from None

    def read_config(self) -> Config:
        return Config.from_toml(self.config_file)

    def write_config(self, config: Config) -> None:
        """Write the settings; what a resume changed stays readable in the numbered copies.

        Raises:
            MillraceError: the disk is full or not writable.
        """
        try:
            self._write_config(config)
        except OSError as error:
            raise MillraceError(f"cannot write {self.config_file}: {error.strerror}; choose --run-dir") from None

    def _write_config(self, config: Config) -> None:
        if self.config_file.exists() and self.config_file.read_text() != config.to_toml():
            copies = len(list(self.path.glob("config.*.toml")))
            self.config_file.rename(self.path / f"config.{copies}.toml")
        self.config_file.write_text(config.to_toml(), encoding="utf-8")

    def write_status(self, status: dict[str, Any]) -> None:
        (self.path / "status.json").write_text(json.dumps(status, indent=1), encoding="utf-8")

    def newest_checkpoint(self) -> tuple[Checkpoint, list[str]]:
        """The newest whole checkpoint and what was wrong with newer ones."""
        return newest_whole(self.checkpoints)


def new_run_path(env_name: str, parent: Path = RUNS, kind: str = "") -> Path:
    """runs/ENV-TIME and what kind of experiment it is, with a number where that is taken."""
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", env_name).strip("-") + time.strftime("-%Y%m%d-%H%M%S")
    path, number = parent / f"{stem}{kind}", 1
    while path.exists():
        number += 1
        path = parent / f"{stem}-{number}{kind}"
    return path


def find_checkpoint(path: str | Path | None) -> Checkpoint:
    """The checkpoint that a run directory, a checkpoint, or nothing (the newest run) stands for.

    Raises:
        CheckpointError: there is none.
    """
    where = newest_run() if not path else Path(path)
    if where.name.startswith(PREFIX) and not (where / "checkpoints").is_dir():
        return Checkpoint(where)
    if not where.is_dir():
        raise CheckpointError(
            f"{where} is neither a run nor a checkpoint" + ("" if where.exists() else ": it does not exist")
        )
    return RunDirectory(where).newest_checkpoint()[0]


def newest_run(parent: Path = RUNS) -> Path:
    """The run directory that was written last, those of seeds and sweeps among them.

    Raises:
        CheckpointError: there is none.
    """
    depths = ("*/config.toml", "*/seed_*/config.toml", "*/trial_*/seed_*/config.toml")
    configs = sorted((file for depth in depths for file in parent.glob(depth)), key=lambda file: file.stat().st_mtime)
    if not configs:
        raise CheckpointError(f"there is no run in {parent.resolve()}; train one, or name its directory")
    return configs[-1].parent
