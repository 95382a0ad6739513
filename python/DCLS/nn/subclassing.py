"""The two bases of the DCLS convolutions: all kernel axes learnable, or only the last ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import init

from DCLS._types import Device, Method, Padding, PaddingMode, Version
from DCLS.nn.base import _DclsModule
from DCLS.nn.initial import InitPositions

__all__ = ["_DclsN_Md", "_DclsNd"]


class _DclsNd(_DclsModule):
    """A convolution with only learnable kernel axes, to subclass.

    A subclass sets ``self.DCK`` to a callable that turns ``(weight, P, SIG)`` into the dense kernel
    ``(out_channels, in_channels / groups, *kernel_size)``. Positions are drawn from a normal
    distribution with a standard deviation of 0.5, and clamped to the grid.

    Attributes:
        weight: weights of the elements, ``(out_channels, in_channels / groups, kernel_count)``, or
            ``(in_channels, out_channels / groups, kernel_count)`` if ``transposed``.
        P: their positions, one row of weight's shape for each number of ``dilated_kernel_size``.
        SIG: their widths, shaped as ``P``; None if the version has no width.
        bias: ``(out_channels,)`` or None.
    """

    _dense_ndim = 0

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: int | Sequence[int],
        padding: Padding,
        dilated_kernel_size: int | Sequence[int],
        transposed: bool,
        output_padding: int | Sequence[int],
        groups: int,
        bias: bool,
        padding_mode: PaddingMode,
        version: Version,
        *,
        kernel_size: Sequence[int] | None = None,
        method: Method = "auto",
        init_positions: InitPositions = "normal",
        init_widths: float | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Creates the layer.

        Args:
            in_channels: number of input channels.
            out_channels: number of output channels.
            kernel_count: number of elements of a kernel.
            stride: step between outputs, one int for each axis of the convolution.
            padding: points added on both sides, for each axis an int or a pair ``(before,
                behind)``, or ``same``, ``valid`` or ``causal``, as ``Dcls1d`` takes it.
            dilated_kernel_size: number of grid points, one int for each learnable axis.
            transposed: whether the parameters are those of a transposed convolution.
            output_padding: points added to one side of a transposed output, one int for each axis.
            groups: number of groups. It divides both numbers of channels.
            bias: whether the layer has a learnable bias.
            padding_mode: ``zeros``, ``reflect``, ``replicate`` or ``circular``.
            version: the interpolation, one of ``DCLS.VERSIONS``.
            kernel_size: size of the dense kernel; None (default) for ``dilated_kernel_size``. It
                becomes an attribute, and ``padding="same"`` uses it.
            method: how the layer convolves: ``auto`` (default), ``direct`` or ``conv``. Only
                ``auto`` if ``transposed``.
            init_positions: where the elements start: ``normal`` (default), ``spread``, ``grid`` or
                a function, see ``reset_parameters``.
            init_widths: ``SIG`` of all elements at the start, a number; None (default) for the
                version's own, which for ``max`` is 0, where widths get no gradient. Only for a
                version with widths.
            device: where to create the parameters; None (default) for torch's default.
            dtype: dtype of the parameters; None (default) for torch's default.

        Raises:
            TypeError: an argument has a wrong type.
            ValueError: an argument is out of its range or has a wrong length.
        """
        self._set_up(locals())
        if kernel_size is not None:
            self.kernel_size = tuple(int(points) for points in kernel_size)

    def _draw_positions(self, row: Tensor, low: int, high: int) -> None:
        init.normal_(row, 0, 0.5).clamp_(low, high)


class _DclsN_Md(_DclsModule):
    """A convolution with N kernel axes, the last M of which are learnable, to subclass.

    A subclass sets ``self.DCK`` as one of ``_DclsNd`` does. Positions are drawn uniformly over
    the grid.

    Attributes:
        weight: weights of the elements, ``(out_channels, in_channels / groups, *dense_kernel_size,
            kernel_count)``, or ``(in_channels, out_channels / groups, ...)`` if ``transposed``.
        P: their positions, one row of weight's shape for each number of ``dilated_kernel_size``.
        SIG: their widths, shaped as ``P``; None if the version has no width.
        bias: ``(out_channels,)`` or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: int | Sequence[int],
        padding: Padding,
        dense_kernel_size: int | Sequence[int],
        dilated_kernel_size: int | Sequence[int],
        transposed: bool,
        output_padding: int | Sequence[int],
        groups: int,
        bias: bool,
        padding_mode: PaddingMode,
        version: Version,
        *,
        method: Method = "auto",
        init_positions: InitPositions = "normal",
        init_widths: float | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Creates the layer.

        Args:
            in_channels: number of input channels.
            out_channels: number of output channels.
            kernel_count: number of elements of a kernel at each point of the dense axes.
            stride: step between outputs, one int for each axis of the convolution.
            padding: points added on both sides, for each axis an int or a pair ``(before,
                behind)``, or ``same``, ``valid`` or ``causal``, as ``Dcls1d`` takes it.
            dense_kernel_size: number of grid points, one int for each dense axis.
            dilated_kernel_size: number of grid points, one int for each learnable axis.
            transposed: whether the parameters are those of a transposed convolution.
            output_padding: points added to one side of a transposed output, one int for each axis.
            groups: number of groups. It divides both numbers of channels.
            bias: whether the layer has a learnable bias.
            padding_mode: ``zeros``, ``reflect``, ``replicate`` or ``circular``.
            version: the interpolation, one of ``DCLS.VERSIONS``.
            method: how the layer convolves: ``auto`` (default), ``direct`` or ``conv``. Only
                ``auto`` if ``transposed``.
            init_positions: where the elements start: ``normal`` (default), ``spread``, ``grid`` or
                a function, see ``reset_parameters``.
            init_widths: ``SIG`` of all elements at the start, a number; None (default) for the
                version's own, which for ``max`` is 0, where widths get no gradient. Only for a
                version with widths.
            device: where to create the parameters; None (default) for torch's default.
            dtype: dtype of the parameters; None (default) for torch's default.

        Raises:
            TypeError: an argument has a wrong type.
            ValueError: an argument is out of its range or has a wrong length.
        """
        self._set_up(locals())

    def _draw_positions(self, row: Tensor, low: int, high: int) -> None:
        init.uniform_(row, low, high)
