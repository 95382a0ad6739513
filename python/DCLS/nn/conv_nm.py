"""Convolutions whose first kernel axes are dense and whose last ones are learnable."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from DCLS.nn.builders import (
    ConstructKernel2_1d,
    ConstructKernel3_1d,
    ConstructKernel3_2d,
)
from DCLS.nn.subclassing import _DclsN_Md

__all__ = ["Dcls2_1d", "Dcls3_1d", "Dcls3_2d"]


class _DclsConvN_M(_DclsN_Md):
    """What Dcls2_1d, Dcls3_1d and Dcls3_2d share."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dense_kernel_size: int | Sequence[int] = 1,
        dilated_kernel_size: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        version: str = "gauss",
        *,
        method: str = "auto",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_count,
            stride,
            padding,
            dense_kernel_size,
            dilated_kernel_size,
            False,
            0,
            groups,
            bias,
            padding_mode,
            version,
            method=method,
            device=device,
            dtype=dtype,
        )


class Dcls3_1d(_DclsConvN_M):
    """A 3-D convolution that learns the positions of its elements along the last axis.

    At each point of the dense axes a kernel has ``kernel_count`` elements on a line.

    Args:
        in_channels: number of input channels ``I``.
        out_channels: number of output channels ``O``.
        kernel_count: number of elements ``K`` at each point of the dense axes.
        stride: an int or one int for each axis of the convolution; default 1.
        padding: an int, one int for each axis of the convolution, or ``same`` or ``valid``;
            default 0.
        dense_kernel_size: number of grid points of the dense axes, which come first; an int or one
            for each dense axis; default 1.
        dilated_kernel_size: number of grid points of the learnable axes, which come last; an int
            or one for each learnable axis; default 1.
        groups: number of groups ``g``, which divides both numbers of channels; default 1.
        bias: whether a learnable bias is added; default True.
        padding_mode: ``zeros`` (default), ``reflect``, ``replicate`` or ``circular``.
        version: interpolation, one of ``DCLS.VERSIONS``; default ``gauss``; may be changed later.
        method: how it convolves. ``direct`` visits only the cells of the kernel that are not zero
            (``DCLS.functional.direct_conv``), ``conv`` is torch's convolution with the dense
            kernel, ``auto`` takes the one that measured faster for such shapes, which may be
            another for training than for inference: they then agree to rounding; may be changed
            later. Default ``auto``.
        device: where to create the parameters; None (default) for torch's own.
        dtype: float32, float64, float16 or bfloat16; None (default) for torch's own.

    Attributes:
        weight: weights of the elements, ``(O, I/g, *dense_kernel_size, K)``.
        P: their positions in grid steps from the centre, one row for each learnable axis, in order:
            ``(1, O, I/g, *dense_kernel_size, K)``.
        SIG: their widths, shaped as ``P``; None if the version has no width.
        bias: ``(O,)`` or None.
        DCK: the module that builds the dense kernel: ``m.DCK(m.weight, m.P, m.SIG)``.
        version: the interpolation; may be set, which sets that of ``DCK``, too.
        method: how it convolves; may be set.
        stride: one int for each axis of the convolution.
        padding: one int for each axis of the convolution, or a name.
        dense_kernel_size: one int for each dense axis.
        dilated_kernel_size: one int for each learnable axis.
        in_channels: as given.
        out_channels: as given.
        kernel_count: as given.
        groups: as given.
        padding_mode: as given.

    Shape:
        Input ``(N, I, D, H, W)`` or ``(I, D, H, W)``, output as that of ``torch.nn.Conv3d``
        with a kernel of size ``dense_kernel_size + dilated_kernel_size``.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument is out of its range, or has a wrong length.
    """

    _ndim, _learnable_ndim, _dense_ndim = 3, 1, 2
    _builder = ConstructKernel3_1d


class Dcls2_1d(_DclsConvN_M):
    """A 2-D convolution that learns the positions of its elements along the last axis.

    Arguments, attributes and errors as ``Dcls3_1d``, but for one dense axis. The width of its
    ``gauss`` is ``|SIG| + 1.0``, where it is ``|SIG| + 0.27`` for all others, as in its origin.

    Shape:
        Input ``(N, I, H, W)`` or ``(I, H, W)``, output as that of ``torch.nn.Conv2d``.
    """

    _ndim, _learnable_ndim, _dense_ndim = 2, 1, 1
    _builder = ConstructKernel2_1d


class Dcls3_2d(_DclsConvN_M):
    """A 3-D convolution that learns the positions of its elements along the last two axes.

    Arguments, attributes and errors as ``Dcls3_1d``, but for one dense axis. ``P[0]`` is the
    position along the height, ``P[1]`` that along the width, for every version.

    Shape:
        Input ``(N, I, D, H, W)`` or ``(I, D, H, W)``, output as that of ``torch.nn.Conv3d``;
        ``P`` and ``SIG`` are ``(2, O, I/g, dense_kernel_size, K)``.
    """

    _ndim, _learnable_ndim, _dense_ndim = 3, 2, 1
    _builder = ConstructKernel3_2d
