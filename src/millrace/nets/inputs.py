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


def has_free_log_std(spec: SlotSpec, net: NetConfig) -> bool:
    """Whether log standard deviations are parameters of the policy, not outputs of the network."""
    return spec.action.num_box > 0 and not net.state_log_std


def num_outputs(spec: SlotSpec, net: NetConfig) -> int:
    """Of the policy's head: logits and means, and log standard deviations where they depend on the state."""
    return spec.action.num_params if net.state_log_std else spec.action.num_logits + spec.action.num_box


def state_size(spec: SlotSpec, net: NetConfig) -> int:
    """S, the numbers of recurrent state that a slot needs: an LSTM carries its cell besides its output."""
    return num_streams(spec, net) * {"none": 0, "gru": net.memory_size, "lstm": 2 * net.memory_size}[net.memory]


def num_streams(spec: SlotSpec, net: NetConfig) -> int:
    """Recurrent layers: actor and critic have one each, unless they share it, as they do behind images."""
    return 1 if net.shared or image_keys(spec, net) else 2


def dense_index(spec: SlotSpec, net: NetConfig, normalize_observation: bool) -> WeightsIndex:
    """What the weights of a network without images consist of, as `millrace.nets.policy` lays them."""
    index: list[tuple[str, tuple[int, ...]]] = []

    def layer(name: str, num_inputs: int, num_outputs: int) -> None:
        index.extend([(f"network.{name}.weight", (num_outputs, num_inputs)), (f"network.{name}.bias", (num_outputs,))])

    if has_free_log_std(spec, net):
        index.append(("log_std", (spec.action.num_box,)))
    widths = (sum(spec.observation[key].num_inputs for key in dense_keys(spec, net)), *net.hidden)
    for trunk in dense_trunks(spec, net):
        for depth, pair in enumerate(itertools.pairwise(widths)):
            layer(f"{trunk}.{depth}", *pair)
        if net.memory != "none":
            gates = {"gru": 3, "lstm": 4}[net.memory] * net.memory_size
            memory = f"network.{recurrent_layer(trunk)}"
            index += [(f"{memory}.weight_ih_l0", (gates, widths[-1]))]
            index += [(f"{memory}.weight_hh_l0", (gates, net.memory_size))]
            index += [(f"{memory}.bias_{of}_l0", (gates,)) for of in ("ih", "hh")]
    num_features = widths[-1] if net.memory == "none" else net.memory_size
    layer("policy_head", num_features, num_outputs(spec, net))
    layer("value_head", num_features, 1)
    for key in normalized_keys(spec, normalize_observation):
        index += [
            (f"normalizer.{module_name(key)}.{part}", spec.observation[key].shape) for part in ("offset", "factor")
        ]
    return index


def dense_trunks(spec: SlotSpec, net: NetConfig) -> tuple[str, ...]:
    """Names of the stacks of dense layers, the actor's first."""
    if net.memory != "none":
        return tuple(f"streams.{i}.body.layers" for i in range(num_streams(spec, net)))
    return ("trunk",) if net.shared else ("actor", "critic")


def recurrent_layer(trunk: str) -> str:
    """Name of the recurrent layer behind a stack of dense ones."""
    return trunk.replace("body.layers", "memory")
