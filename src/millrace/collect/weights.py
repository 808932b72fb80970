"""The newest policy weights, where collectors read them."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np

from millrace.errors import WorkerError
from millrace.types import Array

HEADER_WORDS = 2  # vectors published so far, and counting the one that is being written
VECTOR_WORDS = 2  # version and digest of each vector
READ_ATTEMPTS = 1000


class Held(NamedTuple):
    """Which weights somebody holds.

    Attributes:
        version: updates made when they were published.
        digest: CRC-32 of the vector.
    """

    version: int
    digest: int


def digest_of(weights: Array) -> int:
    """CRC-32 of a vector."""
    return zlib.crc32(weights.tobytes())


class WeightsBoard:
    """The last `num_vectors` versions, written in turn, each with a digest: a reader never takes half an update.

    The memory holds int64 words, a header and two for each vector, and the vectors of `size` float32.
    """

    def __init__(self, memory: memoryview, size: int, num_vectors: int = 2) -> None:
        self._header = np.ndarray((HEADER_WORDS,), np.int64, buffer=memory)
        self._held = np.ndarray((num_vectors, VECTOR_WORDS), np.int64, buffer=memory, offset=8 * HEADER_WORDS)
        offset = 8 * (HEADER_WORDS + VECTOR_WORDS * num_vectors)
        self._vectors = np.ndarray((num_vectors, size), np.float32, buffer=memory, offset=offset)

    @staticmethod
    def nbytes(size: int, num_vectors: int = 2) -> int:
        return 8 * (HEADER_WORDS + VECTOR_WORDS * num_vectors) + 4 * size * num_vectors

    @property
    def newest(self) -> Held:
        """What was published last; version and digest are 0 before anything was."""
        return Held(*(int(word) for word in self._held[(self._header[0] - 1) % len(self._held)]))

    @property
    def version(self) -> int:
        """Updates made when the newest weights were published."""
        return self.newest.version

    def publish(self, weights: Array, version: int) -> Held:
        """Make these the newest weights."""
        count = int(self._header[0])
        index = count % len(self._vectors)
        held = Held(version, digest_of(weights))
        self._header[1] = count + 1
        self._vectors[index] = weights
        self._held[index] = held
        self._header[0] = count + 1
        return held

    def read(self, out: Array, version: int | None = None) -> Held:
        """Copy the newest weights, or those of a version, and return which they are.

        Raises:
            WorkerError: the version is not there any more, or no whole vector could be read, which means that the
                memory is damaged.
        """
        for _ in range(READ_ATTEMPTS):
            index = self._find(version)
            held = Held(*(int(word) for word in self._held[index]))
            out[:] = self._vectors[index]
            # The digest also guards processors that reorder writes.
            if digest_of(out) == held.digest and version in (None, held.version):
                return held
        raise WorkerError(
            "the policy weights in shared memory cannot be read whole; restart the run from its checkpoint"
        )

    def _find(self, version: int | None) -> int:
        if version is None:
            return int(self._header[0] - 1) % len(self._vectors)
        found = np.flatnonzero(self._held[: int(self._header[0]), 0] == version)  # those that were ever written
        if not len(found):
            raise WorkerError(f"version {version} of the policy weights is no longer in shared memory")
        return int(found[-1])
