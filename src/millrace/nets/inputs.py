"""Which observation goes into which encoder. No torch here: the NumPy actor reads it too."""

from __future__ import annotations

from millrace.config import NetConfig
from millrace.types import SlotSpec

FLAT_IMAGE_LIMIT = 2048  # ours: below this a dense layer is cheaper than convolutions on a CPU


def image_keys(spec: SlotSpec, net: NetConfig) -> list[str]:
    """Observations that go through convolutions."""
    if net.image == "flat":
        return []
    limit = FLAT_IMAGE_LIMIT if net.image == "auto" else 0
    return [key for key, array in spec.observation.items() if array.is_image and array.num_inputs > limit]


def dense_keys(spec: SlotSpec, net: NetConfig) -> list[str]:
    """Observations that are flattened and laid side by side, in the order of the space."""
    images = image_keys(spec, net)
    return [key for key in spec.observation if key not in images]


def module_name(key: str) -> str:
    """An observation's key, which may be any text, as the name of a torch module: never one of torch's own names."""
    return f"[{key.replace('.', '%2E')}]"


def normalized_keys(spec: SlotSpec, enabled: bool) -> list[str]:
    """Observations that running statistics normalise: floating-point ones, where that is switched on."""
    return [key for key, array in spec.observation.items() if enabled and array.dtype.startswith("float")]


def state_size(net: NetConfig) -> int:
    """S, the numbers of recurrent state that a slot needs: an LSTM carries its cell besides its output."""
    return {"none": 0, "gru": net.memory_size, "lstm": 2 * net.memory_size}[net.memory]
