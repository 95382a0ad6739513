"""How a step sends its values to the steps and channels where they arrive."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from DCLS._native.delay import WholeDelays

# The ways. Each has a method ``onto(state, values)``, which returns what is on its way:
# (max_delay + 1, outputs, batch), what arrives now first. The state is not written into.


def with_state(sent: Tensor, state: Tensor) -> Tensor:
    """Adds what was on its way to new memory that holds what is sent."""
    total = sent.to(torch.promote_types(sent.dtype, state.dtype))
    total[:-1].add_(state)
    return total


class Matrix(NamedTuple):
    """Sends each value to all outputs and steps: ``taps`` is (steps * outputs, inputs)."""

    taps: Tensor

    def onto(self, state: Tensor, values: Tensor) -> Tensor:
        """Sends ``values`` (inputs, batch)."""
        return with_state((self.taps @ values).view(len(state) + 1, *state.shape[1:]), state)


class Lines(NamedTuple):
    """Sends each value to one channel, at several steps: ``taps`` is (steps, channels, count)."""

    taps: Tensor

    def onto(self, state: Tensor, values: Tensor) -> Tensor:
        """Sends ``values`` (channels * count, batch)."""
        sent = self.taps.unsqueeze(-1) * values.reshape(*self.taps.shape[1:], values.shape[-1])
        return with_state(sent.squeeze(2) if sent.shape[2] == 1 else sent.sum(2), state)


def at_targets(state: Tensor, targets: Tensor, sent: Tensor) -> Tensor:
    """Adds each row of ``sent``, (rows, batch), to its target, a row of what is on its way."""
    pending = torch.cat((state, state.new_zeros(1, *state.shape[1:])))
    if state.shape[-1] == 1:  # torch adds numbers several times faster than rows of one number
        pending.flatten().index_add_(0, targets, sent.flatten())
    else:
        pending.flatten(0, 1).index_add_(0, targets, sent)
    return pending


class Jumps(NamedTuple):
    """Sends each value to one channel at one step: ``targets`` are rows of what is on its way."""

    targets: Tensor
    gain: float
    whole: WholeDelays

    def onto(self, state: Tensor, values: Tensor) -> Tensor:
        """Sends ``values`` (channels * count, batch)."""
        sent = values.to(state.dtype).contiguous()
        return at_targets(state, self.targets, sent if self.gain == 1 else sent * self.gain)


class Bags(NamedTuple):
    """Sends each value to each output at one step, which may be another one for each output.

    Of one sequence, each product of a value and a weight goes to its target. Of several, the inputs
    of the same output and step are a bag, which is summed while it is read: ``items`` are inputs,
    ``starts`` where a bag begins in them, and ``weights`` their weights.
    """

    weight: Tensor
    targets: Tensor
    items: Tensor
    starts: Tensor
    weights: Tensor
    whole: WholeDelays

    def onto(self, state: Tensor, values: Tensor) -> Tensor:
        """Sends ``values`` (inputs, batch)."""
        values = values.to(self.weight.dtype)
        if values.shape[1] == 1:
            sent = (self.weight * values).view(-1, 1)
            dtype = torch.promote_types(sent.dtype, state.dtype)
            return at_targets(state.to(dtype), self.targets, sent.to(dtype))
        sums = F.embedding_bag(
            self.items,
            values.contiguous(),
            self.starts,
            mode="sum",
            per_sample_weights=self.weights,
        )
        return with_state(sums.view(len(state) + 1, *state.shape[1:]), state)


def send(way: Any, state: Tensor, values: Tensor, in_place: bool) -> tuple[Tensor, Tensor]:
    """Sends values; returns what arrives now, and the state, in the old one's memory if asked."""
    whole = way.whole if isinstance(way, (Jumps, Bags)) else None
    if whole is not None and whole.takes(state, values):
        return whole.onto(state, values, in_place)
    pending = way.onto(state, values)
    return pending[0], state.copy_(pending[1:]) if in_place else pending[1:]


def bags(delays: Tensor, weight: Tensor, steps: int, gain: float) -> Bags:
    """Sorts the connections ``(outputs, inputs, count)`` by where they send to."""
    outputs, inputs, count = delays.shape
    numbers = torch.arange(max(outputs, inputs), device=delays.device)
    targets = (delays * outputs + numbers[:outputs, None, None]).flatten()
    order = targets.argsort(stable=True)
    every_item = numbers[None, :inputs, None].expand(outputs, inputs, count).flatten(1)
    items = every_item.flatten()[order]
    every = torch.arange(steps * outputs, device=delays.device)
    starts = torch.searchsorted(targets[order], every)
    weight = (weight * gain).contiguous()
    whole = WholeDelays(delays.flatten(1), every_item, weight.flatten(1), inputs, steps)
    return Bags(weight, targets, items, starts, weight.flatten()[order], whole)
