"""A policy in one file: an archive of a manifest, a description and the weights, and nothing that training needs."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from millrace.checkpoints.migrations import migrate
from millrace.checkpoints.sealed import MANIFEST, SealedFiles, policy_files, seal
from millrace.errors import CheckpointError
from millrace.types import Array

SUFFIX = ".millrace"
MAX_BYTES = 1 << 29
"""512 MB: far above any policy that acts in real time, far below what hurts."""
PROBLEMS = (zipfile.BadZipFile, RuntimeError, EOFError, struct.error, zlib.error, MemoryError, OverflowError)


@dataclass(frozen=True)
class PolicyArchive:
    """One file on disk: a ZIP archive whose members are stored as they are, so that none can grow when it is read."""

    path: Path

    def verify(self, part: str = "") -> dict[str, Any]:
        """Compare the members with the manifest and return it.

        Raises:
            CheckpointError: missing, damaged, of a newer format, or no such archive.
        """
        return self._files.verify(part)

    def read_policy(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """The policy's description and its named arrays, in today's form.

        Raises:
            CheckpointError: as `verify`.
        """
        version = self._files.manifest()["format_version"]
        return migrate(*self._files.load("policy"), version, str(self.path))

    @cached_property
    def _files(self) -> SealedFiles:
        return SealedFiles(str(self.path), self._member, "copy or export it again", PROBLEMS)

    @cached_property
    def _content(self) -> bytes:
        size = self.path.stat().st_size
        if size > MAX_BYTES:
            raise ValueError(f"{size >> 20} MB are more than the {MAX_BYTES >> 20} MB that a policy may have")
        return self.path.read_bytes()

    def _member(self, name: str) -> bytes:
        with zipfile.ZipFile(io.BytesIO(self._content)) as archive:
            info = archive.getinfo(name)
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise ValueError(f"{name} is compressed, which no policy is")
            if info.file_size > len(self._content):
                raise ValueError(f"{name} claims to be larger than its archive")
            return archive.read(info)


def write_archive(
    path: Path, record: Mapping[str, Any], weights: Mapping[str, Array], env_steps: int, version: str
) -> PolicyArchive:
    """Write a policy so that the file is either whole or not there. The same policy gives the same bytes.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    content = policy_files(record, weights)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {MANIFEST: seal(content, env_steps, version), **content}.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    write_whole(path, buffer.getvalue())
    return PolicyArchive(path)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file aside and move it to its place.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    aside = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content)
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from None
