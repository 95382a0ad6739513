"""What ``method="auto"`` assumes of GPUs until something was measured: a model, not a measurement.

No GPU has run the kernels of this package. The times come from instruction counts of the compiled
kernels and from arithmetic, for an H200. They serve where a layer must choose and may not measure.
The direct convolution is taken only where the model sees a wide margin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch

#: Multiply-adds a second of an H200's float32 units, and bytes a second of its memory.
RATE: Final = 33e12
BANDWIDTH: Final = 4.3e12

#: Multiply-adds a second that torch's matrix products reach: on tensor cores, and in float32.
TENSOR_RATE: Final = 300e12
MATRIX_RATE: Final = 25e12

#: Seconds of a call that a GPU waits for the host, whatever the sizes.
DIRECT_START: Final = 80e-6
CONV_START: Final = 30e-6

#: The direct convolution is taken if the model says that it needs at most this part of the time.
MARGIN: Final = 0.5


class Part(NamedTuple):
    """The part of the float32 rate that a depthwise convolution reaches."""

    #: Points of the output of one channel, from which on the numbers hold.
    points: int
    direct: float
    torch: float


# The parts of the direct convolution are the least of any pass and layout in the model:
# benchmarks/cuda_model.py --write fills them in. Those of torch are the most that is expected.

#: For 17x17 kernels at 56x56, 28x28, 14x14 and 7x7.
DEPTHWISE: Final = (
    Part(2500, 0.39, 0.08),
    Part(700, 0.37, 0.11),
    Part(180, 0.32, 0.17),
    Part(0, 0.4, 0.42),
)
#: The same of the direct convolution where an output reads many channels.
DENSE: Final = 0.07


class Estimate(NamedTuple):
    """Modelled seconds of one pass."""

    direct: float
    conv: float

    @property
    def method(self) -> str:
        """The method to take."""
        return "direct" if self.direct <= MARGIN * self.conv else "conv"


def part_of(points: int) -> Part:
    """Returns the part that holds for so many points of the output of one channel."""
    for part in DEPTHWISE:
        if points >= part.points:
            return part
    return DEPTHWISE[-1]


def estimate(
    *,
    batch: int,
    in_channels: int,
    out_channels: int,
    groups: int,
    points: int,
    kernel_points: int,
    cells: int,
    dtype: torch.dtype,
) -> Estimate:
    """Models a forward pass. Gradients take as long again, in about the same ratio.

    Args:
        batch: number of images.
        in_channels: of the input.
        out_channels: of the output.
        groups: of the convolution.
        points: points of one channel of the output.
        kernel_points: grid points of the kernel of one pair of channels.
        cells: how many of them are not zero.
        dtype: in which the convolution runs.
    """
    per_group = in_channels // groups
    outputs = batch * out_channels * points * per_group
    copy = batch * (in_channels + out_channels) * points * dtype.itemsize / BANDWIDTH
    part = part_of(points)
    rate = RATE / 2 if dtype == torch.float64 else RATE
    direct_rate = (part.direct if per_group == 1 else DENSE) * rate
    direct = max(copy, outputs * cells / direct_rate)
    if per_group == 1:
        conv_rate = part.torch * rate
    elif dtype in (torch.float16, torch.bfloat16):
        conv_rate = TENSOR_RATE
    else:
        conv_rate = MATRIX_RATE * rate / RATE
    conv = max(copy, outputs * kernel_points / conv_rate)
    return Estimate(max(DIRECT_START, direct), max(CONV_START, conv))


def output_points(
    size: Sequence[int], kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> int:
    """Returns the points of one channel of the output; 0 where the kernel does not fit."""
    # A list: torch.compile cannot take a generator here.
    return math.prod(
        [
            max(0, (length + 2 * pad - points) // step + 1)
            for length, points, step, pad in zip(size, kernel_size, stride, padding, strict=True)
        ]
    )
