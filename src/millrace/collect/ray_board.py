"""The learner's weights in the object store of a Ray cluster."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

from millrace.collect.weights import Held, digest_of
from millrace.types import Array


class RayBoard:
    """Each version of the weights is put into the object store once, and referred to from then on."""

    def __init__(self, num_versions: int) -> None:
        self._refs = collections.OrderedDict[int, Any]()
        self._num_versions = num_versions
        self.version = 0
        self.listener: Callable[[], None] | None = None

    def publish(self, weights: Array, version: int) -> Held:
        import ray

        self._refs[version] = ray.put(weights)
        self.version = version
        while len(self._refs) > self._num_versions:
            self._refs.popitem(last=False)
        if self.listener is not None:
            self.listener()
        return Held(version, digest_of(weights))

    def ref(self, version: int) -> Any:
        return self._refs[version]

    def clear(self) -> None:
        self._refs.clear()
