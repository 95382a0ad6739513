"""The operators as expressions of torch, for where there are no native kernels.

Torch differentiates them itself, in both modes and to any order. Taps are evaluated by axis, so
that nothing here holds a grid for each element.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from DCLS import reference
from DCLS._spec import NORM_EPS, NORMALISED

#: Taps of a gaussian below this part of the largest one do not mark a cell, as in the library.
_NEGLIGIBLE = {torch.float32: math.exp(-23), torch.float64: math.exp(-45)}

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _wide(tensor: Tensor | None) -> Any:
    """16 bits are computed in float32, as everywhere."""
    return tensor if tensor is None or tensor.dtype in _NEGLIGIBLE else tensor.float()


def _zeros(shape: Sequence[int], *sources: Tensor | None) -> Tensor:
    """Zeros where nothing is computed, which autograd takes as results of ``sources``."""
    given = [tensor for tensor in sources if tensor is not None]
    nothing = [tensor.reshape(-1)[:0].sum().to(given[0].dtype) for tensor in given]
    return given[0].new_zeros(shape) + sum(nothing)


def _output_size(
    input: Tensor, span: Sequence[int], stride: Sequence[int], zeros: Sequence[int]
) -> list[int]:
    """Points of the output on each axis; ``zeros`` is the padding of both sides together."""
    axes = zip(input.shape[2:], span, stride, zeros, strict=True)
    return [(length + both - reach) // step + 1 for length, reach, step, both in axes]


def _taps(
    P: Tensor, SIG: Tensor | None, size: Sequence[int], version: str, sigma_min: float
) -> Tensor | Sequence[Tensor]:
    """The taps of all axes, each of shape ``(rows, K, size)``; one tensor of axes of one size."""
    rows: tuple[int, ...] = (math.prod(P.shape[1:-1]), P.shape[-1], 1)
    form = rows if len(size) == 1 else (len(size), *rows)
    # A position that is not finite on one axis poisons the element on all of them.
    fixed = P.detach()
    poison = fixed - fixed
    p = torch.addcmul(P, P, poison if len(size) == 1 else poison.sum(0)).reshape(form)
    widths = None if SIG is None else SIG.reshape(form)
    smallest = None if SIG is None else sigma_min
    if len(size) == 1:
        return [reference.finite_taps(p, widths, size[0], version, smallest)]
    if all(length == size[0] for length in size):  # in one go: a call costs more than small taps
        return reference.finite_taps(p, widths, size[0], version, smallest)
    return [
        reference.finite_taps(
            p[d], None if widths is None else widths[d], length, version, smallest
        )
        for d, length in enumerate(size)
    ]


def _by_axis(taps: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return taps.unbind(0) if isinstance(taps, Tensor) else taps


def _norm(taps: Tensor | Sequence[Tensor]) -> Tensor:
    """What a normalised element is divided by, of shape ``(rows, K)``."""
    sums = taps.sum(-1) if isinstance(taps, Tensor) else [of_axis.sum(-1) for of_axis in taps]
    total, *others = _by_axis(sums)
    for of_axis in others:
        total = total * of_axis
    return total + NORM_EPS


def _sum_of_products(rows: Tensor, axes: Sequence[Tensor]) -> Tensor:
    """The sum over K of the outer products of ``rows``, ``(rows, K)``, and the taps of all axes."""
    *others, last = axes
    rows = rows.unsqueeze(-1)
    if not others:  # many products of a row are slower than one sum
        return (rows * last).sum(1)
    rows = rows * others[0]
    for of_axis in others[1:]:
        rows = (rows.unsqueeze(-1) * of_axis.unsqueeze(-2)).flatten(-2)
    return rows.transpose(1, 2).bmm(last)


def construct_kernel(*args: Any) -> Tensor:
    """``dcls::construct_kernel``."""
    with torch._C._DisableAutocast():
        return construct_kernel_without_autocast(*args)


def construct_kernel_without_autocast(
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    size: Sequence[int],
    version: str,
    sigma_min: float,
) -> Tensor:
    """The same, where autocast is off."""
    taps = _taps(_wide(P), _wide(SIG), size, version, sigma_min)
    axes = _by_axis(taps)
    scale = _wide(weight).reshape(axes[0].shape[:-1])
    if version in NORMALISED:
        scale = scale / _norm(taps)
    kernel = _sum_of_products(scale, axes).reshape(*weight.shape[:-1], *size)
    return kernel if kernel.dtype == weight.dtype else kernel.to(weight.dtype)


@torch.no_grad()
def construct_support(
    P: Tensor, SIG: Tensor | None, size: Sequence[int], version: str, sigma_min: float
) -> Tensor:
    """``dcls::construct_support``."""
    P, SIG = _wide(P), _wide(SIG)
    marks = []
    for d, taps in enumerate(_by_axis(_taps(P, SIG, size, version, sigma_min))):
        if version == "v0":  # a tap of zero has a derivative
            low = P[d].floor().reshape(*taps.shape[:-1], 1)
            x = torch.arange(size[d], dtype=P.dtype, device=P.device) - size[d] // 2
            far = (x < low) | (x > low + 1)
        elif version == "gauss":
            far = taps <= _NEGLIGIBLE[P.dtype] * taps.amax(-1, keepdim=True)  # or all are 0
        else:
            far = taps == 0
        marks.append((~far).to(P.dtype))
    with torch._C._DisableAutocast():
        touched = _sum_of_products(torch.ones_like(marks[0][..., 0]), marks)
    return (touched > 0).reshape(*P.shape[1:-1], *size)


def direct_conv(
    input: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    support: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """``dcls::direct_conv``."""
    if support is not None:
        # The others count as constants in all derivatives.
        kernel = torch.where(support, kernel, kernel.detach())
    convolution = _CONV[input.ndim - 2]
    geometry = tuple(stride), tuple(padding), tuple(dilation), groups
    output: Tensor
    if input.numel() and kernel.numel():
        output = convolution(input, kernel, bias, *geometry)
        return output
    # Torch refuses some of these, or drops channels of the output.
    span = [d * (points - 1) + 1 for d, points in zip(dilation, kernel.shape[2:], strict=True)]
    out = _output_size(input, span, stride, [2 * before for before in padding])
    output = _zeros((input.shape[0], kernel.shape[0], *out), input, kernel)
    return output if bias is None else output + bias.reshape(-1, *[1] * len(out))


def im2col(
    input: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    version: str,
    sigma_min: float,
) -> Tensor:
    """``dcls::im2col``: a convolution along one axis after the other."""
    channels, elements = P.shape[1:]
    ndim = len(size)
    pairs = [padding[i : i + 2] for i in range(0, len(padding), 2)]
    if not (input.shape[0] and channels and elements):
        both = [before + behind for before, behind in pairs]
        out = _output_size(input, size, stride, both)
        return _zeros((input.shape[0], channels, elements, *out), input, P, SIG)
    with torch._C._DisableAutocast():
        taps = _taps(_wide(P), _wide(SIG), size, version, sigma_min)
        norm = _norm(taps) if version in NORMALISED else None
        x = F.pad(_wide(input), [side for pair in reversed(pairs) for side in pair])
        groups = channels
        for d, of_axis in enumerate(_by_axis(taps)):
            along = [size[d] if e == d else 1 for e in range(ndim)]
            step = [stride[d] if e == d else 1 for e in range(ndim)]
            kernels = of_axis.to(x.dtype).reshape(channels * elements, 1, *along)
            x = _CONV[ndim](x, kernels, None, tuple(step), groups=groups)
            groups = channels * elements
        columns = x.reshape(input.shape[0], channels, elements, *x.shape[2:])
        if norm is not None:
            columns = columns / norm.reshape(channels, elements, *[1] * ndim).to(x.dtype)
        return columns.to(input.dtype)


def im2col_conv(
    input: Tensor, weight: Tensor, bias: Tensor | None, P: Tensor, SIG: Tensor | None, *rest: Any
) -> Tensor:
    """``dcls::im2col_conv``: the columns and a product. It holds all columns at once."""
    *spec, groups, _workspace = rest
    columns = im2col(input, P, SIG, *spec)
    batch, channels, elements, *out = columns.shape
    of_group = channels // groups * elements
    columns = columns.reshape(batch, groups, of_group, math.prod(out))
    matrices = weight.reshape(groups, weight.shape[0] // groups, of_group)
    with torch._C._DisableAutocast():
        output = (matrices @ columns).reshape(batch, weight.shape[0], *out)
    return output if bias is None else output + bias.reshape(-1, *[1] * len(out))
