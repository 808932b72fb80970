"""Observations on their way to a device before anybody asks for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from millrace.buffer.slab import Slab
from millrace.errors import ConfigError


class Uploads:
    """Twins of the slab's observations on a device, written on a stream of their own while the device computes.

    Every place has a twin. A rollout is copied into its place's twin as soon as it has arrived, straight from the
    page-locked slab, and the batch is put together from twins. Two orders must hold: a place is given back only when
    the copy out of it is made, and a twin is written anew only when the batch before has been put together from it.

    Args:
        slab: in one block of memory.
        streams: the device's module, with `Stream`, `Event`, `stream` and `current_stream` as `torch.cuda` has them.
    """

    def __init__(self, slab: Slab, device: str, streams: Any = torch.cuda) -> None:
        self._slab, self._streams = slab, streams
        self._stream = streams.Stream()
        arrays = slab.rollouts[0].observation
        num_places = len(slab.rollouts)
        self._twins: list[dict[str, Tensor]] = [
            {key: torch.zeros_like(torch.from_numpy(array), device=device) for key, array in arrays.items()}
            for _ in range(num_places)
        ]
        self._copied = [streams.Event() for _ in range(num_places)]
        self._read = [streams.Event() for _ in range(num_places)]
        streams.current_stream().synchronize()  # the twins are made before another stream writes to them
        self._locked = page_lock(slab.memory) if device.startswith("cuda") else None

    def begin(self, place: int) -> None:
        """Have what lies in a place copied."""
        with self._streams.stream(self._stream):
            self._read[place].wait(self._stream)
            for key, array in self._slab.rollouts[place].observation.items():
                self._twins[place][key].copy_(torch.from_numpy(array), non_blocking=True)
            self._copied[place].record(self._stream)

    def finish(self, place: int) -> None:
        """Wait until the place may be written to."""
        self._copied[place].synchronize()

    def columns(self, places: list[int]) -> dict[str, Tensor]:
        """The observations [T + 1, B x P, ...] of some places side by side, by key."""
        here = self._streams.current_stream()
        for place in places:
            self._copied[place].wait(here)
        twins = [self._twins[place] for place in places]
        observation = {key: torch.cat([twin[key] for twin in twins], dim=1) for key in twins[0]}
        for place in places:
            self._read[place].record(here)
        return observation

    def close(self) -> None:
        """Let go of the slab's memory."""
        self._stream.synchronize()
        if self._locked is not None:
            torch.cuda.cudart().cudaHostUnregister(self._locked)  # type: ignore[no-untyped-call]
            self._locked = None


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On a device, without waiting for what that does at the moment; CUDA copies only page-locked memory so."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def page_lock(memory: memoryview) -> int:
    """Fix memory where it lies, so that CUDA copies from there without another copy; its address.

    Raises:
        ConfigError: the system has no room for it.
    """
    address = int(np.frombuffer(memory, np.uint8).ctypes.data)
    error = int(torch.cuda.cudart().cudaHostRegister(address, memory.nbytes, 0))  # type: ignore[no-untyped-call]
    if error:
        raise ConfigError(
            f"the {memory.nbytes / 2**20:.0f} MB of rollouts cannot be page-locked (CUDA error {error}); use "
            "ppo.overlap_transfers=false"
        )
    return address
