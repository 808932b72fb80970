"""Which observation goes into which encoder. No torch here: the NumPy actor reads it too."""

from __future__ import annotations

from millrace.config import NetConfig
from millrace.types import ArraySpec, SlotSpec

FLAT_IMAGE_LIMIT = 2048  # ours: below this a dense layer is cheaper than convolutions on a CPU
NATURE_MIN_SIDE = 64  # ours: below this the strides of the Nature CNN, 4 and 2, leave little of an image


def image_encoder(array: ArraySpec, net: NetConfig) -> str:
    """The kind of convolutions for one image, `small`, `nature` or `impala`; or `flat`, as for all that is no image."""
    if not array.is_image or net.image == "flat":
        return "flat"
    if net.image != "auto":
        return net.image
    if array.num_inputs <= FLAT_IMAGE_LIMIT:
        return "flat"
    return "nature" if min(frame_size(array.seen_shape)) >= NATURE_MIN_SIDE else "small"


def is_channels_last(shape: tuple[int, ...]) -> bool:
    """Whether the last three dimensions of an image are [H, W, C]; else they are [C, H, W]."""
    return shape[-1] in (1, 3, 4) and shape[-3] not in (1, 3, 4)


def frame_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of an image, or of a stack of them."""
    height, width = shape[-3:-1] if is_channels_last(shape) else shape[-2:]
    return height, width


def image_keys(spec: SlotSpec, net: NetConfig) -> list[str]:
    """Observations that go through convolutions."""
    return [key for key, array in spec.observation.items() if image_encoder(array, net) != "flat"]


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
