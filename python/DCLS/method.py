"""How a layer convolves: the one place of the rule behind ``method="auto"``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from DCLS._native.dense import memory_format
from DCLS._spec import INITIAL_SIG, SIGMA_MIN

# Before torch 2.7 the compiler cannot be told from export: its graphs are then chosen alike.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)

METHODS: Final[tuple[str, ...]] = ("auto", "direct", "conv")

#: Grid points that an element covers along one axis, but for gaussians: two in the linear versions,
#: and as many as the width of a new layer gives in ``max``.
_REACH: Final[dict[str, int]] = {"v0": 2, "v1": 2, "max": 3}

#: The same of a gaussian, for each unit of its width: it ends where it cannot change a float32 sum.
_GAUSS_REACH: Final = 14

#: Points of an input from which on the padding of its planes no longer weighs: 28 x 28.
_MAP: Final = 784

#: Below 14 x 14, most of what a direct convolution reads is padding.
_SMALL_MAP: Final = 196


def check_method(method: object) -> str:
    """Returns ``method`` if it names one, else raises.

    Raises:
        TypeError: ``method`` is not a string.
        ValueError: ``method`` is not one of ``METHODS``.
    """
    if not isinstance(method, str):
        raise TypeError(
            f"method must be a str out of {', '.join(METHODS)}, got {type(method).__name__}"
        )
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    return method


def expected_cells(
    version: str,
    kernel_count: int,
    dense_kernel_size: Sequence[int],
    dilated_kernel_size: Sequence[int],
    sigma_min: float | None = None,
) -> int:
    """Non-zero cells of a kernel if no two elements met, from the shapes alone.

    The rule may not look at positions or widths: it would wait for the device, and the graph of a
    compiled layer would depend on them. ``sigma_min`` is the layer's smallest width; None for the
    version's own.
    """
    if version == "gauss":
        width = INITIAL_SIG[version] + (SIGMA_MIN[version] if sigma_min is None else sigma_min)
        along = round(_GAUSS_REACH * width)
    else:
        along = _REACH[version]
    # A list: torch.compile cannot take a generator here.
    reach = math.prod([min(along, size) for size in dilated_kernel_size])
    learnable = min(kernel_count * reach, math.prod(dilated_kernel_size))
    return math.prod(dense_kernel_size) * learnable


def prefers_direct(input: Tensor, kernel: Tensor, cells: int) -> bool:
    """Whether ``method="auto"`` convolves directly; docs/performance.md has the measurements.

    Args:
        input: the input of the convolution, with a batch axis or without.
        kernel: the dense kernel.
        cells: non-zero cells to expect in the kernel of one pair of channels.
    """
    # On CUDA it has not been measured yet. Of two dtypes torch says what is wrong with them.
    if input.device.type != "cpu" or not _same_dtype(input, kernel) or kernel.numel() == 0:
        return False
    ndim = kernel.ndim - 2
    size = math.prod(kernel.shape[2:])
    batch = input.shape[0] if input.ndim == kernel.ndim else 1
    points = math.prod(input.shape[-ndim:])
    if _is_exporting():
        # The graph serves inputs of other sizes too, and a question about one would restrict them.
        batch, points = 1, _MAP
    per_group = kernel.shape[1]
    large_map = points >= _MAP
    training = torch.is_grad_enabled() and kernel.requires_grad
    if ndim == 1:
        if per_group <= 4:
            return size >= ((9 if per_group == 1 else 3) if large_map else 25)
        if _fills_vectors(batch, points):
            return size >= 9 and cells * 10 <= size * (8 if size >= 25 else 3)
        return size >= 25 and (cells * 4 <= size or large_map)
    channels_last = memory_format(input) != torch.contiguous_format
    if per_group > 4:
        # torch multiplies matrices here, at several times the speed of a direct convolution.
        if size < (25 if channels_last and large_map else 49):
            return False
        if ndim == 2 and size >= (225 if large_map else 900) and not channels_last:
            return True
        moderate = ndim == 2 and (large_map or (training and size >= 225))
        return cells * 10 <= size * (3 if moderate else 1)
    if per_group > 1:
        if large_map:
            return size >= (25 if channels_last else 9)
        if training and not channels_last:
            return size >= 25
        return size >= (225 if training else 900) or (size >= 49 and cells * 2 <= size)
    if training:
        return size >= (81 if channels_last and not large_map else 25)
    # Inference is what torch's depthwise kernels are fast at.
    if channels_last:
        if size >= 225:
            return large_map and cells * 2 <= size
        return ndim == 2 and (size >= 81 if large_map else size >= 169 and points >= _SMALL_MAP)
    return size >= 225 or (size >= 49 and large_map)


def _same_dtype(input: Tensor, kernel: Tensor) -> bool:
    """Whether a convolution gets both in one dtype, perhaps from autocast."""
    if input.dtype == kernel.dtype:
        return True
    # Autocast leaves float64 alone.
    return torch.is_autocast_enabled(input.device.type) and (
        input.dtype != torch.float64 and kernel.dtype != torch.float64
    )


def _fills_vectors(batch: int, points: int) -> bool:
    """Whether a batch fills vectors of 16 as well as the rows of its images would.

    It then takes their place: aligned, and with cells that share what they load. The condition is
    that of ``batch_as_columns`` in src/cpu/conv/conv_plan.cpp.
    """
    return batch * (-(-points // 16)) >= points * (-(-batch // 16))
