"""The two bases of the DCLS convolutions: all kernel axes learnable, or only the last ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import init

from DCLS.nn.base import _DclsModule
from DCLS.nn.builders import _ConstructKernel, _ConstructKernelN_M

__all__ = ["_DclsN_Md", "_DclsNd"]


class _DclsNd(_DclsModule):
    """A convolution all of whose kernel axes are learnable; to subclass.

    A subclass sets ``self.DCK`` to a callable that turns ``(weight, P, SIG)`` into the dense kernel
    ``(out_channels, in_channels / groups, *kernel_size)``. ``weight`` has the shape
    ``(out_channels, in_channels / groups, kernel_count)`` (with ``transposed``: ``(in_channels,
    out_channels / groups, kernel_count)``), ``P`` and ``SIG`` one row of that for each number of
    ``dilated_kernel_size``. Positions are drawn from N(0, 0.5) and clamped.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel_count: number of elements of a kernel.
        stride: steps of the convolution, one for each of its axes.
        padding: padding of both sides, one number for each axis, or ``same`` or ``valid``.
        dilated_kernel_size: number of grid points of the learnable axes.
        transposed: whether the parameters are those of a transposed convolution.
        output_padding: of a transposed convolution, one number for each axis.
        groups: number of groups, which divides both numbers of channels.
        bias: whether there is a learnable bias.
        padding_mode: ``zeros``, ``reflect``, ``replicate`` or ``circular``.
        version: one of ``DCLS.VERSIONS``.
        kernel_size: size of the kernel that is convolved with, where it is not
            ``dilated_kernel_size``; only ``padding='same'`` needs it. Default None.
        method: ``auto`` (default), ``direct`` or ``conv``: how it convolves, see ``Dcls1d``;
            ``auto`` only if ``transposed``.
        device: where to create the parameters; None (default) for torch's own.
        dtype: of the parameters; None (default) for torch's own.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument is out of its range, or has a wrong length.
    """

    _dense_ndim = 0
    #: The class of ``DCK``; None where a subclass builds its own.
    _builder: ClassVar[type[_ConstructKernel] | None] = None
    _count_note = "previous kernel_size"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: int | Sequence[int],
        padding: int | Sequence[int] | str,
        dilated_kernel_size: int | Sequence[int],
        transposed: bool,
        output_padding: int | Sequence[int],
        groups: int,
        bias: bool,
        padding_mode: str,
        version: str,
        *,
        kernel_size: Sequence[int] | None = None,
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
            (),
            dilated_kernel_size,
            transposed,
            output_padding,
            groups,
            bias,
            padding_mode,
            version,
            kernel_size,
            method,
            device,
            dtype,
        )
        if self._builder is not None:
            self.DCK = self._builder(
                self.out_channels,
                self.in_channels,
                self.groups,
                self.kernel_count,
                self.dilated_kernel_size,
                self.version,
            )

    def _draw_positions(self, row: Tensor, low: int, high: int) -> None:
        init.normal_(row, 0, 0.5).clamp_(low, high)


class _DclsN_Md(_DclsModule):
    """A convolution whose last M of N kernel axes are learnable; to subclass.

    As ``_DclsNd``, but for ``dense_kernel_size``, the number of grid points of the axes that
    are not learnable and come first. ``weight`` has the shape ``(out_channels, in_channels /
    groups, *dense_kernel_size, kernel_count)`` (transposed: ``(in_channels, out_channels / groups,
    …)``). Positions are drawn uniformly over the grid.
    """

    #: The class of ``DCK``; None where a subclass builds its own.
    _builder: ClassVar[type[_ConstructKernelN_M] | None] = None
    _count_note = "for the learnable dims"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: int | Sequence[int],
        padding: int | Sequence[int] | str,
        dense_kernel_size: int | Sequence[int],
        dilated_kernel_size: int | Sequence[int],
        transposed: bool,
        output_padding: int | Sequence[int],
        groups: int,
        bias: bool,
        padding_mode: str,
        version: str,
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
            transposed,
            output_padding,
            groups,
            bias,
            padding_mode,
            version,
            None,
            method,
            device,
            dtype,
        )
        if self._builder is not None:
            self.DCK = self._builder(
                self.out_channels,
                self.in_channels,
                self.groups,
                self.kernel_count,
                self.dense_kernel_size,
                self.dilated_kernel_size,
                self.version,
            )

    def _draw_positions(self, row: Tensor, low: int, high: int) -> None:
        init.uniform_(row, low, high)
