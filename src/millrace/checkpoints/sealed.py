"""Named files under a manifest with digests and a format version: what checkpoints and exported policies share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from millrace.errors import CheckpointError
from millrace.types import Array

FORMAT_VERSION = 2
MANIFEST = "manifest.json"


class SealedFiles:
    """A description `PART.json` and arrays `PART.safetensors` for each part, and the manifest that vouches for them.

    Args:
        where: what to call them in messages.
        read: the bytes of a file by its name.
        remedy: what to do where a file is damaged.
        problems: what `read` raises for a file that is missing or no file of its kind.
    """

    def __init__(
        self, where: str, read: Callable[[str], bytes], remedy: str, problems: tuple[type[Exception], ...] = ()
    ) -> None:
        self._where, self._read, self._remedy = where, read, remedy
        usual = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
        self._problems: tuple[type[Exception], ...] = (*usual, *problems)
        self._unreadable: tuple[type[Exception], ...] = (*self._problems, safetensors.SafetensorError, MemoryError)

    def manifest(self) -> dict[str, Any]:
        """The manifest, of a format that this Millrace reads.

        Raises:
            CheckpointError: missing, damaged, or of a newer format.
        """
        try:
            manifest: dict[str, Any] = json.loads(self._read(MANIFEST))
            version, writer = int(manifest["format_version"]), str(manifest["millrace_version"])
            dict(manifest["files"])
        except self._problems as error:
            raise self._broken(error) from None
        if version > FORMAT_VERSION:
            raise CheckpointError(
                f"{self._where} has format {version}, this Millrace reads up to {FORMAT_VERSION}: it was written by "
                f"millrace {writer:.40}; install that or a later one"
            )
        if version < 1:
            raise CheckpointError(f"{self._where} is not whole: there is no format {version}")
        return manifest

    def verify(self, part: str = "") -> dict[str, Any]:
        """Compare the files of a part, or all, with the manifest, and return it.

        Raises:
            CheckpointError: a file is missing or differs.
        """
        manifest = self.manifest()
        for name in manifest["files"]:
            if str(name).startswith(part):
                self._content(manifest, name)
        return manifest

    def load(self, part: str) -> tuple[dict[str, Any], dict[str, Array]]:
        """The description and the arrays of a part, as they were written.

        Raises:
            CheckpointError: missing, damaged, or of a newer format.
        """
        manifest = self.manifest()
        content = {suffix: self._content(manifest, f"{part}.{suffix}") for suffix in ("json", "safetensors")}
        try:
            data: dict[str, Any] = json.loads(content["json"])
            arrays: dict[str, Array] = safetensors.numpy.load(content["safetensors"])
        except self._unreadable as error:
            raise CheckpointError(f"{self._where}: cannot read its {part}: {brief(error)}") from None
        return data, arrays

    def _content(self, manifest: Mapping[str, Any], name: str) -> bytes:
        try:
            content = self._read(name)
            is_as_written = hashlib.sha256(content).hexdigest() == manifest["files"][name]["sha256"]
        except self._problems as error:
            raise self._broken(error) from None
        if not is_as_written:
            raise CheckpointError(f"{self._where}: {name} is damaged (its digest differs); {self._remedy}")
        return content

    def _broken(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"{self._where} is not whole: {brief(error)}")


def brief(error: Exception) -> str:
    """An error in one line, cut where a hostile file made it long."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def seal(content: Mapping[str, bytes], env_steps: int, version: str) -> bytes:
    """The manifest for files of this content."""
    files = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in content.items()}
    manifest = {
        "format_version": FORMAT_VERSION,
        "millrace_version": version,
        "env_steps": env_steps,
        "files": files,
    }
    return json.dumps(manifest, indent=1).encode()


def policy_files(record: Mapping[str, Any], weights: Mapping[str, Array]) -> dict[str, bytes]:
    """All that acting needs, as files."""
    # safetensors takes the bytes as they lie, whatever the strides say.
    arrays = {name: np.asarray(array, order="C") for name, array in weights.items()}
    return {"policy.json": json.dumps(record, indent=1).encode(), "policy.safetensors": safetensors.numpy.save(arrays)}
