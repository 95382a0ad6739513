"""The mathematics of DCLS in plain, differentiable torch: the oracle of the tests.

Slow and simple on purpose, and independent of the native library: every formula is written as its
source has it (arXiv 2112.03740 for the first version, arXiv 2306.00817 for the next three, this
package for later ones), and autograd derives the gradients. It runs on every device and dtype that
torch supports, and can be differentiated twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from DCLS._checks import check_version, resolve_sigma_min
from DCLS._spec import NORM_EPS, NORMALISED, SIGMA_VERSIONS

__all__ = ["construct_kernel", "im2col", "im2col_conv", "taps"]


def _v0(x: Tensor, p: Tensor) -> Tensor:
    low = p.floor().detach()
    fraction = p - low
    outside = p - p  # 0, or NaN for a NaN position
    return torch.where(x == low, 1 - fraction, torch.where(x == low + 1, fraction, outside))


def _gauss(x: Tensor, p: Tensor, sigma: Tensor) -> Tensor:
    # Far taps, which are no normal numbers, are 0. exp takes ten times as long for them, while
    # squares and derivatives may overflow. A factor, for its derivative cannot.
    most = math.floor(-math.log(torch.finfo(x.dtype).tiny))
    u = F.hardtanh((p - x) * sigma.reciprocal(), -math.sqrt(2 * most), math.sqrt(2 * most))
    return F.threshold((u.square() * -0.5).exp(), math.exp(1 - most), 0)


def _spline(x: Tensor, p: Tensor) -> Tensor:
    delta = x - p
    a = delta.abs()
    near = torch.where(a < 1, delta, 0)  # the square of a far one may overflow
    # Squares instead of abs, whose derivative at 0 would hide the second derivative of the tap.
    inner = 2 / 3 - near**2 + near**2 * near.abs() / 2
    return torch.where(a < 1, inner, (2 - a).relu() ** 3 / 6)


#: Of each version (grid points, positions[, widths]) to taps, as its paper writes it.
_VERSIONS: Final[dict[str, Callable[..., Tensor]]] = {
    "v0": _v0,
    "v1": lambda x, p: (1 - (p - x).abs()).relu(),
    "max": lambda x, p, sigma: (sigma - (p - x).abs()).relu(),
    "gauss": _gauss,
    "spline": _spline,
}


def taps(
    P: Tensor, SIG: Tensor | None, size: int, version: str, sigma_min: float | None = None
) -> Tensor:
    """Evaluates the tap function of one axis on its whole grid.

    Args:
        P: positions along the axis in grid steps, 0 at the centre ``size // 2``; any shape.
        SIG: widths of the same shape if the version has a width, else None.
        size: number of grid points of the axis.
        version: one of ``DCLS.VERSIONS``.
        sigma_min: added to ``|SIG|``; None for the version's own.

    Returns:
        The taps, of shape ``P.shape + (size,)``, not normalised.

    Raises:
        ValueError: ``version`` is no version.
        KeyError: it has no formula here.
    """
    # P - P is 0 for a finite position and NaN otherwise: a diverged position poisons its element
    # in every version, where the formulas alone would let an infinite one vanish silently. A factor
    # poisons the derivatives, too.
    poison = (P - P).detach().unsqueeze(-1)
    p = P.unsqueeze(-1) * (1 + poison)
    sigma = None if SIG is None else SIG.unsqueeze(-1)
    return finite_taps(p, sigma, size, check_version(version), sigma_min)


def finite_taps(
    p: Tensor, SIG: Tensor | None, size: int, version: str, sigma_min: float | None
) -> Tensor:
    """``taps`` of finite positions. ``p`` and ``SIG`` have a last axis of 1, for the grid."""
    # From the centre, where P counts from: its bits are not rounded away.
    x = torch.arange(-(size // 2), size - size // 2, dtype=p.dtype, device=p.device)
    if version not in SIGMA_VERSIONS:
        return _VERSIONS[version](x, p)
    assert SIG is not None
    least = resolve_sigma_min(version, sigma_min)
    if version == "gauss":  # the derivative of a reciprocal is a square: below this it overflows
        least = max(least, torch.finfo(p.dtype).tiny ** 0.5)
    return _VERSIONS[version](x, p, SIG.abs() + least)


def construct_kernel(
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None = None,
    *,
    dilated_kernel_size: Sequence[int],
    version: str = "gauss",
    sigma_min: float | None = None,
) -> Tensor:
    """Builds the dense kernel. Arguments and result as ``DCLS.functional.construct_kernel``.

    The kernel is the sum over the elements of ``weight`` times the outer product of the taps of
    all axes, which is divided, except in ``v0``, by its sum over the grid plus 1e-7.
    """
    axes = [
        taps(P[axis], None if SIG is None else SIG[axis], size, version, sigma_min)
        for axis, size in enumerate(dilated_kernel_size)
    ]
    scale = weight
    if version in NORMALISED:
        grid_sum = torch.stack([tap.sum(-1) for tap in axes]).prod(0)
        scale = weight / (grid_sum + NORM_EPS)
    letters = "xyz"[: len(axes)]
    operands = ",".join(f"...k{letter}" for letter in letters)
    return torch.einsum(f"...k,{operands}->...{letters}", scale, *axes)


def _convolve(
    input: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int,
) -> Tensor:
    """Convolves with zeros before and behind each axis: ``padding`` has (begin, end) of each."""
    pairs = [padding[i : i + 2] for i in range(0, len(padding), 2)]
    padded = F.pad(input, [side for pair in reversed(pairs) for side in pair])
    convolution = (F.conv1d, F.conv2d, F.conv3d)[input.ndim - 3]
    output: Tensor = convolution(padded, kernel, bias, tuple(stride), groups=groups)
    return output


def im2col(
    input: Tensor,
    P: Tensor,
    SIG: Tensor | None = None,
    *,
    dilated_kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    version: str = "gauss",
    sigma_min: float | None = None,
) -> Tensor:
    """Samples the input around its elements: a convolution with the kernel of each of them.

    Arguments and result as ``DCLS.functional.im2col``, but for ``stride``, which has one int
    for each axis, and ``padding``, which has two: before and behind it.
    """
    rows = P.shape[1] * P.shape[2]
    kernels = construct_kernel(
        input.new_ones(rows, 1, 1, dtype=P.dtype),
        P.reshape(P.shape[0], rows, 1, 1),
        None if SIG is None else SIG.reshape(P.shape[0], rows, 1, 1),
        dilated_kernel_size=dilated_kernel_size,
        version=version,
        sigma_min=sigma_min,
    ).to(input.dtype)
    columns = _convolve(input, kernels, None, stride, padding, P.shape[1])
    return columns.reshape(input.shape[0], *P.shape[1:], *columns.shape[2:])


def im2col_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    P: Tensor,
    SIG: Tensor | None = None,
    *,
    dilated_kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int = 1,
    version: str = "gauss",
    sigma_min: float | None = None,
) -> Tensor:
    """Convolves with the dense kernel whose positions all output channels share.

    Arguments and result as ``DCLS.functional.im2col_conv``, but for ``stride`` and ``padding``,
    which are those of ``im2col``.
    """

    def shared(rows: Tensor) -> Tensor:
        """(D, I, K) to (D, O, I/g, K): output channel o has the positions of its group."""
        of_groups = rows.reshape(rows.shape[0], groups, 1, *weight.shape[1:])
        shape = (*rows.shape[:1], groups, weight.shape[0] // groups, *weight.shape[1:])
        return of_groups.expand(shape).reshape(rows.shape[0], *weight.shape).to(weight.dtype)

    kernel = construct_kernel(
        weight,
        shared(P),
        None if SIG is None else shared(SIG),
        dilated_kernel_size=dilated_kernel_size,
        version=version,
        sigma_min=sigma_min,
    )
    return _convolve(input, kernel, bias, stride, padding, groups)
