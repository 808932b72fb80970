"""The newest policy weights, where collectors read them."""

from __future__ import annotations

import zlib

import numpy as np

from millrace.errors import WorkerError
from millrace.types import Array

HEADER_WORDS = 4  # newest version, version being written, digest of the even half, digest of the odd half


class WeightsBoard:
    """Two halves written in turn, each with a digest: a reader never takes half an update.

    The memory holds a header of int64 words and two vectors of `size` float32.
    """

    def __init__(self, memory: memoryview, size: int) -> None:
        self._header = np.ndarray((HEADER_WORDS,), np.int64, buffer=memory)
        self._halves = np.ndarray((2, size), np.float32, buffer=memory, offset=HEADER_WORDS * 8)

    @staticmethod
    def nbytes(size: int) -> int:
        return HEADER_WORDS * 8 + 2 * 4 * size

    @property
    def version(self) -> int:
        """Updates made when the newest weights were published."""
        return int(self._header[0])

    def publish(self, weights: Array, version: int) -> None:
        """Make these the newest weights."""
        half = version % 2
        self._header[1] = version
        self._halves[half] = weights
        self._header[2 + half] = zlib.crc32(weights.tobytes())
        self._header[0] = version

    def read(self, out: Array) -> int:
        """Copy the newest weights and return their version.

        Raises:
            WorkerError: no whole vector could be read, which means that the memory is damaged.
        """
        for _ in range(1000):
            version = int(self._header[0])
            half = version % 2
            out[:] = self._halves[half]
            digest = int(self._header[2 + half])
            # The digest also guards processors that reorder writes.
            if int(self._header[1]) < version + 2 and zlib.crc32(out.tobytes()) == digest:
                return version
        raise WorkerError(
            "the policy weights in shared memory cannot be read whole; restart the run from its checkpoint"
        )
