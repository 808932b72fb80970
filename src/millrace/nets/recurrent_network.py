"""Recurrence between an encoder and the heads."""

from __future__ import annotations

import typing
import warnings

import torch
from torch import Tensor, nn

from millrace.config import NetConfig
from millrace.nets.dense_network import DenseBody
from millrace.nets.image_network import ImageBody
from millrace.nets.inputs import image_keys, num_outputs, num_streams, state_size
from millrace.nets.layers import Head, orthogonal_matrix
from millrace.types import SlotSpec


class RecurrentNetwork(nn.Module):
    """Encoder, one GRU or LSTM layer, heads: a stream of these for the actor and one for the critic, or one for both.

    The state of a slot is one vector [S], the streams' states side by side.
    """

    def __init__(self, spec: SlotSpec, net: NetConfig) -> None:
        super().__init__()
        self.state_size = state_size(spec, net)
        self.streams = nn.ModuleList(Stream(spec, net) for _ in range(num_streams(spec, net)))
        self.policy_head = Head(net.memory_size, num_outputs(spec, net), 0.01)
        self.value_head = Head(net.memory_size, 1, 1.0)

    def body(self, observation: dict[str, Tensor]) -> Tensor:
        """Prepared observations to the features [N, F] before the actor's recurrence."""
        features: Tensor = typing.cast(Stream, self.streams[0]).body(observation)
        return features

    def forward(self, observation: dict[str, Tensor], state: Tensor, begins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `millrace.nets.policy.Network`."""
        state = state * (~begins[0]).unsqueeze(-1)
        segments = Segments(begins) if len(begins) > 1 and bool(begins[1:].any()) else None
        pairs = zip(self.streams, state.chunk(len(self.streams), dim=-1), strict=True)
        runs = (stream(observation, state, tuple(begins.shape), segments) for stream, state in pairs)
        outputs, following = zip(*runs, strict=True)
        return self.policy_head(outputs[0]), self.value_head(outputs[-1]).squeeze(-1), torch.cat(following, dim=-1)

    def step(self, observation: dict[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of N slots as `forward` makes it, written out: graphs of it are small."""
        pairs = zip(self.streams, state.chunk(len(self.streams), dim=-1), strict=True)
        steps = (typing.cast(Stream, stream).step(observation, state) for stream, state in pairs)
        outputs, following = zip(*steps, strict=True)
        return self.policy_head(outputs[0]), self.value_head(outputs[-1]).squeeze(-1), torch.cat(following, dim=-1)


class Stream(nn.Module):
    """An encoder and the recurrent layer behind it. Its state is the layer's output, then an LSTM's cell."""

    def __init__(self, spec: SlotSpec, net: NetConfig) -> None:
        super().__init__()
        self.body = ImageBody(spec, net) if image_keys(spec, net) else DenseBody(spec, net)
        layer = nn.LSTM if net.memory == "lstm" else nn.GRU
        self.memory = layer(self.body.num_features, net.memory_size)
        # The learner lays all parameters into one vector; what cuDNN copies for that is small beside the sequences.
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
        for name, parameter in self.memory.named_parameters():
            nn.init.zeros_(parameter) if name.startswith("bias") else orthogonal_matrix(parameter, 1.0)

    def forward(
        self, observation: dict[str, Tensor], state: Tensor, shape: tuple[int, ...], segments: Segments | None
    ) -> tuple[Tensor, Tensor]:
        """Outputs [T * B, H] of T x B rows, and the state after them, of use where there are no segments."""
        features = self.body(observation).view(*shape, -1)
        if segments is None:
            hidden, state = self._run(features, state)
            return hidden.flatten(0, 1), state
        hidden, _ = self._run(segments.apart(features), segments.first_states(state))
        return segments.together(hidden).flatten(0, 1), state

    def _run(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs [T, B, H] and the state [B, S] after them."""
        if isinstance(self.memory, nn.GRU):
            output, hidden = self.memory(features, state.unsqueeze(0).contiguous())
            return output, hidden[0]
        hidden, cell = (part.unsqueeze(0).contiguous() for part in state.chunk(2, dim=-1))
        output, (hidden, cell) = self.memory(features, (hidden, cell))
        return output, torch.cat([hidden[0], cell[0]], dim=-1)

    def step(self, observation: dict[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        """One step of N slots, written out: output [N, H] and next state [N, S]."""
        features, layer = self.body(observation), self.memory
        if isinstance(layer, nn.GRU):
            output = torch.gru_cell(features, state, *layer.all_weights[0])
            return output, output
        hidden, cell = torch.lstm_cell(features, state.chunk(2, dim=-1), *layer.all_weights[0])
        return hidden, torch.cat([hidden, cell], dim=-1)


class Segments:
    """Sequences [T, B] cut where episodes begin, laid side by side [longest, M]: the layer then runs over all at once.

    With a call for each stretch between two cuts an LSTM over 32 steps of 8 slots took 2 to 6 ms, so 0.8.
    """

    def __init__(self, begins: Tensor) -> None:
        starts = begins.t().clone()  # slot by slot, [B, T]
        starts[:, 0] = True
        num_slots, num_steps = starts.shape
        step = torch.arange(num_steps, device=begins.device).expand(num_slots, -1)
        started = torch.where(starts, step, 0).cummax(dim=1).values
        number = starts.flatten().cumsum(0).view_as(starts) - 1
        self._segment, self._position = number.t(), (step - started).t()  # of each row [T, B]
        self._count, self._longest = int(number[-1, -1]) + 1, int(self._position.max()) + 1
        self._first = number[:, 0]  # each slot's first segment

    def apart(self, x: Tensor) -> Tensor:
        """[T, B, F] as [longest, M, F], zeros behind the ends."""
        cut = x.new_zeros(self._longest, self._count, x.shape[-1])
        return cut.index_put((self._position, self._segment), x)

    def together(self, x: Tensor) -> Tensor:
        """The inverse."""
        return x[self._position, self._segment]

    def first_states(self, state: Tensor) -> Tensor:
        """[M, S]: a slot's state [B, S] for its first segment, nothing for those that begin an episode."""
        return state.new_zeros(self._count, state.shape[-1]).index_put((self._first,), state)
