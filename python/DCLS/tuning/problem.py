"""What a measured choice depends on, as keys of a dict."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch


class Geometry(NamedTuple):
    """A layer and the way it is called, except for the size of its input.

    All of it is known without a look at values, so that a graph may ask for it.
    """

    device_type: str
    device_index: int | None
    #: The dtype in which the convolution runs: under autocast that of autocast.
    dtype: torch.dtype
    input_dtype: torch.dtype
    weight_dtype: torch.dtype
    channels_last: bool
    in_channels: int
    out_channels: int
    groups: int
    kernel_size: tuple[int, ...]
    dense_kernel_size: tuple[int, ...]
    dilated_kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    version: str
    kernel_count: int
    #: What the builder adds to ``abs(SIG)``; None for the version's own.
    sigma_min: float | None
    #: Cells of a kernel that are not zero if its elements are spread, see ``bucket``.
    cells: int
    bias: bool
    #: Which gradients are wanted: of the input, and of weights, positions and widths.
    grad_input: bool
    grad_kernel: bool

    @property
    def device(self) -> torch.device:
        """The device of the input."""
        index = self.device_index
        return torch.device(self.device_type, *(() if index is None else (index,)))


class Problem(NamedTuple):
    """All that a measured choice depends on, except for what the machine is."""

    geometry: Geometry
    #: Images, up to a power of two: see ``bucket``.
    batch: int
    spatial: tuple[int, ...]
    #: What ``facts.flags`` returned.
    flags: tuple[Any, ...]


def bucket(count: int, steps: int = 1) -> int:
    """Rounds a number up to a power of two, or to one of some steps between two powers."""
    if count <= 1:
        return max(count, 0)
    return math.ceil(2 ** (math.ceil(steps * math.log2(count) - 1e-9) / steps))


def as_json(problem: Problem) -> dict[str, Any]:
    """Returns the problem as JSON holds it. The number of the device is left out."""
    fields = {**problem.geometry._asdict(), **problem._asdict()}
    del fields["geometry"], fields["device_index"]
    return {name: _plain(value) for name, value in fields.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, (str, int, float, type(None))) else str(value)
