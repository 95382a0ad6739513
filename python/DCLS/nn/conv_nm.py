"""Convolutions whose first kernel axes are dense and whose last ones are learnable."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from DCLS._types import Device, Method, Padding, PaddingMode, Version
from DCLS.nn.builders import (
    ConstructKernel2_1d,
    ConstructKernel3_1d,
    ConstructKernel3_2d,
)
from DCLS.nn.initial import InitPositions
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
        padding: Padding = 0,
        dense_kernel_size: int | Sequence[int] = 1,
        dilated_kernel_size: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        version: Version = "gauss",
        *,
        method: Method = "auto",
        init_positions: InitPositions = "normal",
        init_widths: float | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Creates the layer.

        Each argument except ``bias``, ``device`` and ``dtype`` becomes an attribute of its name.
        Numbers for each axis become tuples. ``kernel_size`` and ``dilation`` describe the
        dense kernel, as on a layer of ``torch.nn``. ``dilated_kernel_size`` may hold whole floats.

        Args:
            in_channels: number of input channels ``I``.
            out_channels: number of output channels ``O``.
            kernel_count: number of elements ``K`` at each point of the dense axes.
            stride: step between outputs, an int or one for each axis; default 1.
            padding: points added on both sides of the input: an int, or for each axis an int or a
                pair ``(before, behind)``. Or ``same`` for an output of the input's size, ``valid``
                for no padding, ``causal`` for outputs that see no later input. The last axis is
                time, with all padding before it; others are padded as for ``same``. Default 0.
            dense_kernel_size: number of grid points of the dense axes, which come first; an int or
                one for each dense axis. Default 1.
            dilated_kernel_size: number of grid points ``S`` of the learnable axes, which come last;
                an int or one for each learnable axis. Default 1.
            groups: number of groups ``g``. It divides ``I`` and ``O``. Default 1.
            bias: whether the layer has a learnable bias; default True.
            padding_mode: ``zeros`` (default), ``reflect``, ``replicate`` or ``circular``.
            version: the interpolation, one of ``DCLS.VERSIONS``; default ``gauss``.
            method: how the layer convolves: ``auto`` (default), ``direct`` or ``conv``, see
                the property ``method``.
            init_positions: where the elements start: ``normal`` (default), ``spread``, ``grid`` or
                a function, see ``reset_parameters``.
            init_widths: ``SIG`` of all elements at the start, a number; None (default) for the
                version's own, which for ``max`` is 0, where widths get no gradient. Only for a
                version with widths.
            device: where to create the parameters; None (default) for torch's default.
            dtype: dtype of the parameters: float32, float64, float16 or bfloat16; None (default)
                for torch's default.

        Raises:
            TypeError: an argument has a wrong type.
            ValueError: an argument is out of its range or has a wrong length.
        """
        self._set_up(locals())


class Dcls3_1d(_DclsConvN_M):
    """A 3-D convolution that learns the positions of its elements along the last axis.

    At each point of the dense axes a kernel has ``kernel_count`` elements on a line.

    Attributes:
        weight: weights of the elements, ``(O, I/g, *dense_kernel_size, K)``.
        P: their positions in grid steps from the centre ``S // 2``, ``(1, O, I/g,
            *dense_kernel_size, K)``.
        SIG: their widths, shaped as ``P``; None if the version has no width.
        bias: ``(O,)`` or None.
        DCK: the module that builds the dense kernel: ``m.DCK(m.weight, m.P, m.SIG)``.

    Shape:
        Input ``(N, I, D, H, W)`` or ``(I, D, H, W)``. The output has the shape that a
        ``torch.nn.Conv3d`` with a kernel of size ``dense_kernel_size + dilated_kernel_size``
        gives.
    """

    _ndim, _learnable_ndim, _dense_ndim = 3, 1, 2
    _builder = ConstructKernel3_1d


class Dcls2_1d(_DclsConvN_M):
    """A 2-D convolution that learns the positions of its elements along the last axis.

    At each point of the dense axis a kernel has ``kernel_count`` elements on a line. For ``gauss``
    the width of an element is ``|SIG| + 1.0``, where it is ``|SIG| + 0.27`` in all other layers.

    Attributes:
        weight: weights of the elements, ``(O, I/g, *dense_kernel_size, K)``.
        P: their positions in grid steps from the centre ``S // 2``, ``(1, O, I/g,
            *dense_kernel_size, K)``.
        SIG: their widths, shaped as ``P``; None if the version has no width.
        bias: ``(O,)`` or None.
        DCK: the module that builds the dense kernel: ``m.DCK(m.weight, m.P, m.SIG)``.

    Shape:
        Input ``(N, I, H, W)`` or ``(I, H, W)``. The output has the shape that a
        ``torch.nn.Conv2d`` with a kernel of size ``dense_kernel_size + dilated_kernel_size``
        gives.
    """

    _ndim, _learnable_ndim, _dense_ndim = 2, 1, 1
    _builder = ConstructKernel2_1d


class Dcls3_2d(_DclsConvN_M):
    """A 3-D convolution that learns the positions of its elements along the last two axes.

    At each point of the dense axis a kernel has ``kernel_count`` elements on a plane.

    Attributes:
        weight: weights of the elements, ``(O, I/g, *dense_kernel_size, K)``.
        P: their positions in grid steps from the centre ``S // 2``, ``(2, O, I/g,
            *dense_kernel_size, K)``. For every version ``P[0]`` is the position along the height
            and ``P[1]`` the position along the width.
        SIG: their widths, shaped as ``P``; None if the version has no width.
        bias: ``(O,)`` or None.
        DCK: the module that builds the dense kernel: ``m.DCK(m.weight, m.P, m.SIG)``.

    Shape:
        Input ``(N, I, D, H, W)`` or ``(I, D, H, W)``. The output has the shape that a
        ``torch.nn.Conv3d`` with a kernel of size ``dense_kernel_size + dilated_kernel_size``
        gives.
    """

    _ndim, _learnable_ndim, _dense_ndim = 3, 2, 1
    _builder = ConstructKernel3_2d
