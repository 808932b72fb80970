"""What a checkpoint is given comes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from millrace.checkpoints.store import CheckpointStore
from millrace.config import CheckpointConfig


def test_weights_come_back_however_they_lie_in_memory(tmp_path: Path) -> None:
    """Convolutions keep their channels last."""
    weights = {
        "convolution": np.arange(120.0, dtype=np.float32).reshape(2, 4, 5, 3).transpose(0, 3, 1, 2),
        "transposed": np.arange(6.0, dtype=np.float32).reshape(2, 3).T,
        "scalar": np.array(3.0, np.float32),
    }
    written = CheckpointStore(tmp_path, CheckpointConfig()).write(7, {}, weights, {}, "0")
    loaded = written.read_policy()[1]
    for name, array in weights.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].shape == array.shape
