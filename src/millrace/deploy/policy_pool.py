"""The policies of a run's last updates as files, for other programs: opponents, evaluators, a live game."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.deploy.archive import SUFFIX, PolicyArchive, write_archive
from millrace.types import Array

PREFIX = "update_"


@dataclass(frozen=True)
class PolicyPool:
    """A directory of archives `update_000000001234.millrace`, each whole from the moment that it has its name.

    Attributes:
        keep: how many there are at most; the oldest go first.
    """

    directory: Path
    keep: int

    def versions(self) -> list[Path]:
        """The files, oldest first; any may be gone by the time that it is opened, and the next one is not."""
        return sorted(self.directory.glob(f"{PREFIX}*{SUFFIX}"))

    def add(
        self, record: Mapping[str, Any], weights: Mapping[str, Array], updates: int, env_steps: int, version: str
    ) -> PolicyArchive:
        """Write the policy of an update and let the oldest go.

        Raises:
            CheckpointError: the disk is full or not writable.
        """
        path = self.directory / f"{PREFIX}{updates:012d}{SUFFIX}"
        archive = write_archive(path, record, weights, env_steps, version)
        for old in self.versions()[: -self.keep]:
            old.unlink(missing_ok=True)
        return archive
