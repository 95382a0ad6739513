"""The rows of ``P`` and ``SIG``, brought into the order of the kernel's axes and back."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def to_kernel_axes(rows: Tensor, order: Sequence[int]) -> Tensor:
    """Reorders the rows of ``P`` or ``SIG``: row ``d`` of the result belongs to kernel axis ``d``.

    Args:
        rows: the rows, along the first axis.
        order: row ``i`` belongs to the kernel axis ``order[i]``; a permutation of 1 to 3 axes.
    """
    count = len(order)
    if count == 1:
        return rows
    source = [list(order).index(axis) for axis in range(count)]
    if source == list(range(count)):
        return rows
    # Not an index tensor: building one would copy it to the device at every forward, which blocks
    # the stream and cannot be captured in a CUDA graph. Not a stack of the rows either: autocast on
    # the CPU cannot promote float16. Up to three rows, an order is a rotation, perhaps of the
    # reversed rows.
    first = source[0]
    if source[1] == (first + 1) % count and count > 2:
        return rows.roll(-first, 0)
    reversed_rows = rows.flip(0)
    shift = (first + 1) % count
    return reversed_rows.roll(shift, 0) if shift else reversed_rows


def to_position_rows(axes: Tensor, order: Sequence[int]) -> Tensor:
    """The converse: row ``i`` of the result is what belongs to kernel axis ``order[i]``."""
    return to_kernel_axes(axes, [list(order).index(axis) for axis in range(len(order))])
