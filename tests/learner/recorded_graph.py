"""What a CUDA graph does, done on a CPU: operations are recorded with the memory that they touch, and replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ASKS_THE_HOST = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")


class RecordedGraph:
    """Python runs once, at the recording; a replay is the same operations on the same memory."""

    def __init__(self) -> None:
        self.num_replays = 0
        self._operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def warm(self, step: Callable[[], Tensor]) -> Tensor:
        return step()

    def record(self, step: Callable[[], Tensor]) -> Tensor:
        recorder = Recorder()
        with recorder:
            result = step()
        for storage, before in recorder.overwritten.values():
            storage.copy_(before)  # a recording makes nothing
        self._operations = recorder.operations
        return result

    def replay(self) -> None:
        self.num_replays += 1
        with torch.no_grad():
            for operation, args, kwargs, recorded in self._operations:
                given = {x.untyped_storage().data_ptr() for x in tensors((args, kwargs))}
                for new, old in zip(tensors(operation(*args, **kwargs)), tensors(recorded), strict=True):
                    if old.untyped_storage().data_ptr() not in given:  # else it is a view, or was written in place
                        old.copy_(new)


class Recorder(TorchDispatchMode):
    """Notes every operation, and what memory held before it was first written to."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.overwritten: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if operation.overloadpacket.__name__ in ASKS_THE_HOST:
            raise RuntimeError(f"{operation} is not permitted while a graph is recorded")
        for argument, value in zip(operation._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._remember(value)
        self._remember(kwargs.get("out"))
        result = operation(*args, **kwargs)
        self.operations.append((operation, args, kwargs, result))
        return result

    def _remember(self, values: Any) -> None:
        for tensor in tensors(values):
            storage = tensor.untyped_storage()
            self.overwritten.setdefault(storage.data_ptr(), (storage, storage.clone()))


class Listener(TorchDispatchMode):
    """Counts how often somebody asks what a tensor holds."""

    def __init__(self) -> None:
        super().__init__()
        self.num_asked = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_asked += operation.overloadpacket.__name__ in ASKS_THE_HOST
        return operation(*args, **(kwargs or {}))


def tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]
