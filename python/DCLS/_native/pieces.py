"""How an im2col problem is cut into pieces whose columns fit a workspace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """A part of the columns: items of the batch, channels, and outputs of each axis."""

    batch: range
    channels: range
    outputs: tuple[range, ...]

    def shape(self, elements: int) -> tuple[int, ...]:
        """The shape of its columns."""
        lengths = (len(outputs) for outputs in self.outputs)
        return (len(self.batch), len(self.channels), elements, *lengths)


def _ranges(length: int, step: int) -> list[range]:
    """Cuts range(length) into ranges of at most ``step``, of nearly equal lengths."""
    count = -(-length // step)
    return [range(length * i // count, length * (i + 1) // count) for i in range(count)]


def cut(
    batch: int,
    lanes: int,
    output_size: Sequence[int],
    lane_bytes: int,
    workspace: int,
    lanes_in_block: int = 1,
) -> tuple[list[range], list[range], list[tuple[range, ...]]]:
    """Cuts a problem into pieces whose columns take at most ``workspace`` bytes.

    First the batch is cut, then the lanes, then the outputs from the first axis on: a cut through
    the outputs has some rows of the input read twice.

    Args:
        batch: items of the batch.
        lanes: what the pieces of the channels are made of: channels, or groups of them.
        output_size: outputs on each axis.
        lane_bytes: bytes of a lane's columns at one output.
        workspace: most bytes of a piece, at least ``lane_bytes``.
        lanes_in_block: no piece has lanes of several blocks of so many lanes, unless all of them.

    Returns:
        The ranges of the batch, of the lanes, and of the outputs on all axes.
    """
    room = workspace // max(lane_bytes, 1)  # outputs of a lane
    steps = []
    for axis, length in enumerate(output_size):
        below = math.prod(output_size[axis + 1 :])
        steps.append(min(length, max(1, room // below)))
    step_lanes = min(lanes, max(1, room // math.prod(output_size)))
    step_batch = min(batch, max(1, room // max(1, lanes * math.prod(output_size))))
    if step_lanes >= lanes_in_block:
        blocks = _ranges(lanes // lanes_in_block, step_lanes // lanes_in_block)
        of_lanes = [range(b.start * lanes_in_block, b.stop * lanes_in_block) for b in blocks]
    else:
        of_lanes = [
            range(first + r.start, first + r.stop)
            for first in range(0, lanes, lanes_in_block)
            for r in _ranges(lanes_in_block, step_lanes)
        ]
    outputs: list[tuple[range, ...]] = [()]
    for length, step in zip(output_size, steps, strict=True):
        outputs = [(*before, r) for before in outputs for r in _ranges(length, step)]
    return _ranges(batch, max(1, step_batch)), of_lanes, outputs
