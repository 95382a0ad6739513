"""Padding by name, as torch's convolutions have it."""

from __future__ import annotations

from collections.abc import Sequence


def check_padding_name(padding: str, stride: Sequence[int]) -> str:
    """Returns ``padding`` if it is a name that fits the stride.

    Raises:
        ValueError: it is neither ``same`` nor ``valid``, or is ``same`` with a stride above 1.
    """
    if padding not in ("same", "valid"):
        raise ValueError(f"padding must be 'same', 'valid', an int or a sequence, got {padding!r}")
    if padding == "same" and any(step != 1 for step in stride):
        raise ValueError(f"padding='same' takes a stride of 1 only, got stride={tuple(stride)}")
    return padding


def same_padding(kernel_size: Sequence[int]) -> list[tuple[int, int]]:
    """Returns the zeros before and behind each axis that make an output of the input's size.

    Args:
        kernel_size: points that the kernel spans on each axis. An even number gets the longer side
            at the end.
    """
    return [((size - 1) // 2, size // 2) for size in kernel_size]
