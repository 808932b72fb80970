"""Recurrence between an encoder and the heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from millrace.config import NetConfig
from millrace.nets.dense_network import DenseBody
from millrace.nets.image_network import ImageBody
from millrace.nets.inputs import image_keys, state_size
from millrace.nets.layers import Head, num_outputs
from millrace.types import SlotSpec


class RecurrentNetwork(nn.Module):
    """Encoder, one GRU or LSTM layer, heads. Actor and critic share all but the heads.

    The state of a slot is one vector [S]: the layer's output, then an LSTM's cell.
    """

    def __init__(self, spec: SlotSpec, net: NetConfig) -> None:
        super().__init__()
        self.state_size = state_size(net)
        self.body = ImageBody(spec, net) if image_keys(spec, net) else DenseBody(spec, net)
        layer = nn.LSTM if net.memory == "lstm" else nn.GRU
        self.memory = layer(self.body.num_features, net.memory_size)
        for name, parameter in self.memory.named_parameters():
            nn.init.zeros_(parameter) if name.startswith("bias") else nn.init.orthogonal_(parameter, 1.0)
        self.policy_head = Head(net.memory_size, num_outputs(spec.action), 0.01)
        self.value_head = Head(net.memory_size, 1, 1.0)

    def forward(self, observation: dict[str, Tensor], state: Tensor, begins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `millrace.nets.policy.Network`."""
        features = self.body(observation).view(*begins.shape, -1)
        state = state * (~begins[0]).unsqueeze(-1)
        if len(begins) > 1 and bool(begins[1:].any()):
            segments = Segments(begins)
            hidden, state = self._run(segments.apart(features), segments.first_states(state))
            hidden = segments.together(hidden)
        else:
            hidden, state = self._run(features, state)
        x = hidden.flatten(0, 1)
        return self.policy_head(x), self.value_head(x).squeeze(-1), state

    def _run(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs [T, B, H] and the state [B, S] after them."""
        if isinstance(self.memory, nn.GRU):
            output, hidden = self.memory(features, state.unsqueeze(0).contiguous())
            return output, hidden[0]
        hidden, cell = (part.unsqueeze(0).contiguous() for part in state.chunk(2, dim=-1))
        output, (hidden, cell) = self.memory(features, (hidden, cell))
        return output, torch.cat([hidden[0], cell[0]], dim=-1)


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
