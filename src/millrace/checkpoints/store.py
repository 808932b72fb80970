"""Writing, reading, finding and retiring checkpoints.

A checkpoint is a directory `step_000012345678` with `policy.json` and `policy.safetensors` (all that acting
needs), `trainer.json` and `trainer.safetensors` (all that training needs besides), and `manifest.json` with the
size and SHA-256 of each, written last.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.numpy

from millrace import system
from millrace.checkpoints.migrations import migrate
from millrace.checkpoints.sealed import FORMAT_VERSION, MANIFEST, SealedFiles, policy_files, seal
from millrace.checkpoints.tree import flatten, unflatten
from millrace.config import CheckpointConfig
from millrace.errors import CheckpointError
from millrace.types import Array

PREFIX = "step_"


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk."""

    path: Path

    @property
    def env_steps(self) -> int:
        return int(self.path.name[len(PREFIX) :])

    def read_policy(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """The policy's description and its named arrays, in today's form.

        Raises:
            CheckpointError: missing, damaged, or of a newer format.
        """
        version = self._files.manifest()["format_version"]
        return migrate(*self._files.load("policy"), version, str(self.path))

    def read_trainer(self) -> dict[str, Any]:
        """What resuming needs, as nested values and arrays.

        Raises:
            CheckpointError: missing, damaged, or of another format.
        """
        version = self._files.manifest()["format_version"]
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{self.path} has the training state of format {version}, which cannot be resumed; its policy can be "
                f"used, and trained on in a new run: millrace train ENV --init-from {self.path}"
            )
        tree: dict[str, Any] = unflatten(*self._files.load("trainer"))
        return tree

    def verify(self, part: str = "") -> dict[str, Any]:
        """Compare the files with the manifest and return it.

        Raises:
            CheckpointError: a file is missing or differs.
        """
        return self._files.verify(part)

    @property
    def _files(self) -> SealedFiles:
        return SealedFiles(
            str(self.path), lambda name: (self.path / Path(name).name).read_bytes(), "use an earlier checkpoint"
        )


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, directory: Path, config: CheckpointConfig) -> None:
        self.directory = directory
        self.config = config
        self.best_env_steps = -1
        self._written: set[Path] = set()

    def write(
        self, env_steps: int, policy: Mapping[str, Any], weights: Mapping[str, Array], trainer: Any, version: str
    ) -> Checkpoint:
        """Write a checkpoint so that it is either whole or not there.

        Raises:
            OSError: the disk is full or not writable; earlier checkpoints stay as they were.
        """
        final = self.directory / f"{PREFIX}{env_steps:012d}"
        if final in self._written and final.exists():
            return Checkpoint(final)
        aside = self.directory / f".{final.name}.writing"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        arrays: dict[str, Array] = {}
        trainer_json = flatten(trainer, arrays)
        try:
            content = {
                **policy_files(policy, weights),
                "trainer.json": json.dumps(trainer_json).encode(),
                "trainer.safetensors": safetensors.numpy.save(arrays),
            }
            for name, data in content.items():
                _write_synced(aside / name, data)
            _write_synced(aside / MANIFEST, seal(content, env_steps, version))
            system.sync_directory(aside)
            if final.exists():  # damaged, or of a future that resuming from before it has undone
                shutil.rmtree(final)
            aside.replace(final)
            system.sync_directory(self.directory)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        self._written.add(final)
        return Checkpoint(final)

    def all(self) -> list[Checkpoint]:
        """Every checkpoint that has a manifest, oldest first."""
        return find_checkpoints(self.directory)

    def set_aside_after(self, env_steps: int) -> list[Path]:
        """Hide checkpoints of later steps, which resuming from here undoes; they would pass for the newest."""
        undone = [checkpoint.path for checkpoint in self.all() if checkpoint.env_steps > env_steps]
        for path in undone:
            hidden = path.with_name(f".{path.name}.undone")
            shutil.rmtree(hidden, ignore_errors=True)
            path.rename(hidden)
        return undone

    def retire(self) -> list[Path]:
        """Delete what the retention rules do not keep and return it."""
        checkpoints, config = self.all(), self.config
        if not config.keep_last:
            return []
        kept = {checkpoint.path for checkpoint in checkpoints[-config.keep_last :]}
        kept |= {checkpoint.path for checkpoint in checkpoints if checkpoint.env_steps == self.best_env_steps}
        if config.keep_every_env_steps:
            kept |= {c.path for c in _first_in_each(checkpoints, config.keep_every_env_steps)}
        doomed = [checkpoint.path for checkpoint in checkpoints if checkpoint.path not in kept]
        for path in doomed:
            shutil.rmtree(path, ignore_errors=True)
        return doomed


def _first_in_each(checkpoints: list[Checkpoint], every: int) -> Iterator[Checkpoint]:
    seen: set[int] = set()
    for checkpoint in checkpoints:
        if checkpoint.env_steps // every not in seen:
            seen.add(checkpoint.env_steps // every)
            yield checkpoint


def find_checkpoints(directory: Path) -> list[Checkpoint]:
    """The checkpoints in a directory, oldest first; half-written ones are not among them."""
    paths = (path for path in directory.glob(f"{PREFIX}*") if (path / MANIFEST).is_file())
    return sorted((Checkpoint(path) for path in paths), key=lambda checkpoint: checkpoint.env_steps)


def newest_whole(directory: Path) -> tuple[Checkpoint, list[str]]:
    """The newest checkpoint whose digests are right, and a sentence for each newer one that was passed over.

    Raises:
        CheckpointError: there is none.
    """
    problems: list[str] = []
    for checkpoint in reversed(find_checkpoints(directory)):
        try:
            checkpoint.verify()
            return checkpoint, problems
        except CheckpointError as error:
            problems.append(str(error))
    detail = f": {problems[0]}" if problems else ""
    raise CheckpointError(f"there is no whole checkpoint in {directory}{detail}")


def _write_synced(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
