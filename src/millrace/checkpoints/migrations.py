"""Policies of earlier formats in the form of today's.

Format 1 (millrace 0.1 before memory): one convolutional network, whose last dense layer took the features of all images
and the dense inputs side by side. Today each has a layer of its own, and the parts are added: the same sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from millrace.errors import CheckpointError
from millrace.types import Array

Parts = tuple[dict[str, Any], dict[str, Array]]
DENSE_AS_CONVOLUTION = 1024
"""From so many features on, the dense layer behind the convolutions is written as one over the whole frame."""


def migrate(record: dict[str, Any], arrays: dict[str, Array], version: int, where: str) -> Parts:
    """A policy of format `version` in today's.

    Raises:
        CheckpointError: it is not what its format says.
    """
    try:
        for step in MIGRATIONS[version - 1 :]:
            record, arrays = step(record, arrays)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where} is no policy of format {version} ({type(error).__name__}: {error})") from None
    return record, arrays


def _from_format_1(record: dict[str, Any], arrays: dict[str, Array]) -> Parts:
    if "memory" in record["net"]:  # written shortly before the format changed its number
        return record, arrays
    keys = _image_keys(arrays)
    net = {**record["net"], "image": "small" if keys else "flat"}
    if keys:
        arrays = _separate_layers(record, arrays, keys)
    return {**record, "net": net}, arrays


def _image_keys(arrays: dict[str, Array]) -> list[str]:
    """Module names of the images, in the order of the network."""
    prefix, suffix = "network.encoders.", ".0.weight"
    return [name[len(prefix) : -len(suffix)] for name in arrays if name.startswith(prefix) and name.endswith(suffix)]


def _separate_layers(record: dict[str, Any], arrays: dict[str, Array], keys: list[str]) -> dict[str, Array]:
    in_order = [f"[{key.replace('.', '%2E')}]" for key in record["spec"]["observation"]]
    keys = sorted(keys, key=in_order.index)
    weight, bias = arrays["network.trunk.0.weight"], arrays["network.trunk.0.bias"]
    moved = {
        name: array for name, array in arrays.items() if not name.startswith(("network.e", "network.t", "network.d"))
    }
    first = 0
    for key in keys:
        for name, array in arrays.items():
            if name.startswith(f"network.encoders.{key}."):
                moved[name.replace(f"encoders.{key}", f"body.encoders.{key}.convolutions")] = array
        channels, height, width = _frame(record["spec"]["observation"][_plain(key)]["shape"])
        size = channels * height * width
        columns = weight[:, first : first + size]
        as_convolution = size >= DENSE_AS_CONVOLUTION
        layer = f"network.body.encoders.{key}.dense.{0 if as_convolution else 1}"
        moved[f"{layer}.weight"] = columns.reshape(-1, channels, height, width) if as_convolution else columns
        moved[f"{layer}.bias"] = bias if key == keys[0] else np.zeros_like(bias)
        first += size
    if "network.dense.weight" in arrays:
        moved["network.body.beside.0.weight"] = arrays["network.dense.weight"]
        moved["network.body.beside.0.bias"] = arrays["network.dense.bias"]
        moved["network.body.beside.2.weight"] = weight[:, first:]
    elif first != weight.shape[1]:
        raise ValueError("its images have another size than it says")
    return {name: np.ascontiguousarray(array) for name, array in moved.items()}


def _plain(key: str) -> str:
    return key[1:-1].replace("%2E", ".")


def _frame(shape: list[int]) -> tuple[int, int, int]:
    """Channels, height and width behind three convolutions of stride 2: 5, 3 and 3 wide, 32 channels at last."""
    is_channels_last = shape[-1] in (1, 3, 4) and shape[0] not in (1, 3, 4)
    height, width = shape[:2] if is_channels_last else shape[1:]
    for kernel in (5, 3, 3):
        height, width = (height - kernel) // 2 + 1, (width - kernel) // 2 + 1
    return 32, height, width


MIGRATIONS: tuple[Callable[[dict[str, Any], dict[str, Array]], Parts], ...] = (_from_format_1,)
"""The k-th leads from format k to k + 1."""
