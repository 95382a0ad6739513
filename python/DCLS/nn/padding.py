"""The padding of a layer: what is taken, and how much it is on each side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from DCLS import _checks


def checked(value: object, stride: Sequence[int], mode: str, transposed: bool) -> Any:
    """Returns ``padding`` as a layer holds it: ints, pairs or a name.

    Raises:
        TypeError: it has a wrong type.
        ValueError: it is out of its range, or the layer does not take it.
    """
    padding = _checks.padding(value, stride)
    if transposed and is_one_sided(padding):
        raise ValueError(
            "padding must be equal on both sides for a transposed convolution, where it cuts the "
            f"output, got {value!r}"
        )
    check_causal(padding, mode)
    return padding


def check_causal(padding: object, mode: str) -> None:
    """Raises if values of the future would stand before the first input."""
    if padding == "causal" and mode not in ("zeros", "replicate"):
        raise ValueError(
            f"padding_mode must be 'zeros' or 'replicate' for padding='causal', got {mode!r}, "
            "which would put later inputs before the first one"
        )


def is_one_sided(padding: Any) -> bool:
    """Whether the two sides of an axis differ, so that the layers of torch lack it."""
    return padding == "causal" or isinstance(padding[0], tuple)


def explicit(
    padding: Any, kernel_size: Sequence[int], stride: Sequence[int], time_axis: int
) -> tuple[int, ...]:
    """Returns the padding as ``torch.nn.functional.pad`` takes it, last axis first."""
    if padding in ("same", "causal") and len(kernel_size) != len(stride):
        raise ValueError(
            "kernel_size must have one number for each of the "
            f"{len(stride)} axes where padding={padding!r}, got {tuple(kernel_size)}"
        )
    sides = _checks.padding_sides(padding, kernel_size, stride, time_axis=time_axis)
    return tuple(zeros for pair in reversed(sides) for zeros in pair)
