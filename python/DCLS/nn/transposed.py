"""Transposed convolutions all of whose kernel axes are learnable."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from DCLS import _checks
from DCLS._fx import traceable
from DCLS._types import Device, PaddingMode, Version
from DCLS.method import Choice
from DCLS.nn.builders import (
    ConstructKernel1d,
    ConstructKernel2d,
    ConstructKernel3d,
)
from DCLS.nn.initial import InitPositions
from DCLS.nn.subclassing import _DclsNd

__all__ = ["DclsTranspose1d", "DclsTranspose2d", "DclsTranspose3d"]

_CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


@traceable
def _output_padding(
    input: Tensor,
    output_size: Sequence[int] | None,
    default: tuple[int, ...],
    strides: tuple[int, ...],
    paddings: tuple[int, ...],
    kernel_size: tuple[int, ...],
) -> tuple[int, ...]:
    """Returns the output padding that gives an output of ``output_size``; for None the default."""
    if output_size is None:
        return default
    ndim = len(strides)
    if input.ndim not in (ndim + 1, ndim + 2):
        raise ValueError(f"input must have {ndim + 1} or {ndim + 2} axes, got {tuple(input.shape)}")
    wanted = tuple(output_size)
    if len(wanted) == input.ndim:
        wanted = wanted[-ndim:]
    if len(wanted) != ndim:
        raise ValueError(
            f"output_size must have {ndim} or {input.ndim} numbers, got {tuple(output_size)}"
        )
    smallest = tuple(
        (length - 1) * stride - 2 * padding + size
        for length, stride, padding, size in zip(
            input.shape[-ndim:], strides, paddings, kernel_size, strict=True
        )
    )
    largest = tuple(low + step - 1 for low, step in zip(smallest, strides, strict=True))
    if any(
        not low <= size <= high for low, size, high in zip(smallest, wanted, largest, strict=True)
    ):
        raise ValueError(
            f"output_size must be from {smallest} to {largest} for an input of size "
            f"{tuple(input.shape[-ndim:])}, got {wanted}"
        )
    return tuple(size - low for size, low in zip(wanted, smallest, strict=True))


class _DclsTranspose(_DclsNd):
    """What DclsTranspose1d, DclsTranspose2d and DclsTranspose3d share."""

    _is_transposed = True
    padding: tuple[int, ...]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        dilated_kernel_size: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        version: Version = "gauss",
        *,
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
            kernel_count: number of elements ``K`` of a kernel.
            stride: step between outputs, an int or one for each axis; default 1.
            padding: points cut off on both sides of the output, an int or one for each axis, as
                ``torch.nn.ConvTranspose2d`` takes it; default 0.
            output_padding: points added to one side of the output, an int or one for each axis;
                less than ``stride``. Default 0.
            dilated_kernel_size: number of grid points ``S`` of the kernel, an int or one for each
                axis; default 1.
            groups: number of groups ``g``. It divides ``I`` and ``O``. Default 1.
            bias: whether the layer has a learnable bias; default True.
            padding_mode: ``zeros``, the only one that torch has for these layers.
            version: the interpolation, one of ``DCLS.VERSIONS``; default ``gauss``.
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
        padding = _checks.integers("padding", padding, self._ndim, 0)
        _checks.choice("padding_mode", padding_mode, ("zeros",))
        self._set_up({**locals(), "transposed": True})

    def _only_choice(self) -> Choice:
        return Choice("conv", "a transposed convolution is always torch's own", "layer")

    def _conv_forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        P: Tensor,
        SIG: Tensor | None,
        output_size: Sequence[int] | None = None,
    ) -> Tensor:
        """Builds the kernel with ``self.DCK`` and applies it to ``input``."""
        output_padding = self.output_padding
        if output_size is not None:
            output_padding = _output_padding(
                input,
                output_size,
                self.output_padding,
                self.stride,
                self.padding,
                self.dilated_kernel_size,
            )
        return _CONV_TRANSPOSE[len(self.stride)](
            input,
            self._dense_kernel(weight, P, SIG),
            bias,
            self.stride,
            self.padding,
            output_padding,
            self.groups,
        )

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Applies the transposed convolution to ``input``, with or without a batch axis.

        Args:
            input: ``(N, in_channels, *spatial)`` or ``(in_channels, *spatial)``.
            output_size: spatial size of the output, or its whole shape. With a ``stride`` above 1
                several sizes are possible. None (default) for the one that ``output_padding``
                gives.

        Returns:
            ``(N, out_channels, *spatial)`` or ``(out_channels, *spatial)``.

        Raises:
            TypeError: ``input`` is no tensor, the dtypes of ``weight``, ``P`` and ``SIG`` differ,
                or the class does not take them.
            ValueError: ``output_size`` is not possible, ``version`` needs ``SIG`` and there is
                none, or ``P`` or ``SIG`` does not fit ``weight``.
            RuntimeError: the number of axes, channels, dtype or device of the input does not fit
                (torch's own error), or the build or the machine cannot serve the tensors' GPU.
        """
        if output_size is None:
            return super().forward(input)
        return self._conv_forward(*self._arguments(input), output_size)


class DclsTranspose1d(_DclsTranspose):
    """A 1-D transposed convolution that learns where the elements of its kernels are.

    Its ``method`` is always ``auto``: the convolution is torch's own.

    Attributes:
        weight: weights of the elements, ``(I, O/g, K)``.
        P: their positions in grid steps from the centre ``S // 2``, ``(1, I, O/g, K)``.
        SIG: their widths, shaped as ``P``; None if the version has no width.
        bias: ``(O,)`` or None.
        DCK: the module that builds the dense kernel: ``m.DCK(m.weight, m.P, m.SIG)``.

    Shape:
        Input ``(N, I, L)`` or ``(I, L)``. The output has the shape that a
        ``torch.nn.ConvTranspose1d`` with a kernel of size ``dilated_kernel_size`` gives.
    """

    _ndim = _learnable_ndim = 1
    _builder = ConstructKernel1d


class DclsTranspose2d(_DclsTranspose):
    """A 2-D transposed convolution that learns where the elements of its kernels are.

    Its ``method`` is always ``auto``: the convolution is torch's own.

    Attributes:
        weight: weights of the elements, ``(I, O/g, K)``.
        P: their positions in grid steps from the centre ``S // 2``, ``(2, I, O/g, K)``, with
            rows as those of ``Dcls2d``.
        SIG: their widths, shaped as ``P``; None if the version has no width.
        bias: ``(O,)`` or None.
        DCK: the module that builds the dense kernel: ``m.DCK(m.weight, m.P, m.SIG)``.

    Shape:
        Input ``(N, I, H, W)`` or ``(I, H, W)``. The output has the shape that a
        ``torch.nn.ConvTranspose2d`` with a kernel of size ``dilated_kernel_size`` gives.
    """

    _ndim = _learnable_ndim = 2
    _builder = ConstructKernel2d


class DclsTranspose3d(_DclsTranspose):
    """A 3-D transposed convolution that learns where the elements of its kernels are.

    Its ``method`` is always ``auto``: the convolution is torch's own.

    Attributes:
        weight: weights of the elements, ``(I, O/g, K)``.
        P: their positions in grid steps from the centre ``S // 2``, ``(3, I, O/g, K)``, with
            rows as those of ``Dcls3d``.
        SIG: their widths, shaped as ``P``; None if the version has no width.
        bias: ``(O,)`` or None.
        DCK: the module that builds the dense kernel: ``m.DCK(m.weight, m.P, m.SIG)``.

    Shape:
        Input ``(N, I, D, H, W)`` or ``(I, D, H, W)``. The output has the shape that a
        ``torch.nn.ConvTranspose3d`` with a kernel of size ``dilated_kernel_size`` gives.
    """

    _ndim = _learnable_ndim = 3
    _builder = ConstructKernel3d
