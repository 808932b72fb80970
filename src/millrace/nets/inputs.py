"""Which observation goes into which encoder. No torch here: the NumPy actor reads it too."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from millrace.config import NetConfig
from millrace.types import ArraySpec, SlotSpec

WeightsIndex = Sequence[tuple[str, tuple[int, ...]]]
"""Name and shape of each part of the flat weights, in order."""

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


def dense_index(spec: SlotSpec, net: NetConfig, normalize_observation: bool) -> WeightsIndex:
    """What the weights of a network without images consist of, as `millrace.nets.policy` lays them."""
    index: list[tuple[str, tuple[int, ...]]] = []

    def layer(name: str, num_inputs: int, num_outputs: int) -> None:
        index.extend([(f"network.{name}.weight", (num_outputs, num_inputs)), (f"network.{name}.bias", (num_outputs,))])

    if spec.action.num_box:
        index.append(("log_std", (spec.action.num_box,)))
    widths = (sum(spec.observation[key].num_inputs for key in dense_keys(spec, net)), *net.hidden)
    for trunk in dense_trunks(net):
        for depth, pair in enumerate(itertools.pairwise(widths)):
            layer(f"{trunk}.{depth}", *pair)
    num_features = widths[-1]
    if net.memory != "none":
        gates = {"gru": 3, "lstm": 4}[net.memory] * net.memory_size
        index += [("network.memory.weight_ih_l0", (gates, num_features))]
        index += [("network.memory.weight_hh_l0", (gates, net.memory_size))]
        index += [(f"network.memory.bias_{of}_l0", (gates,)) for of in ("ih", "hh")]
        num_features = net.memory_size
    layer("policy_head", num_features, spec.action.num_logits + spec.action.num_box)
    layer("value_head", num_features, 1)
    for key in normalized_keys(spec, normalize_observation):
        index += [
            (f"normalizer.{module_name(key)}.{part}", spec.observation[key].shape) for part in ("offset", "factor")
        ]
    return index


def dense_trunks(net: NetConfig) -> tuple[str, ...]:
    """Names of the stacks of dense layers, the actor's first."""
    if net.memory != "none":
        return ("body.layers",)
    return ("trunk",) if net.shared else ("actor", "critic")
