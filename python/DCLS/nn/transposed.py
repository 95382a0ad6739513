"""Transposed convolutions all of whose kernel axes are learnable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from DCLS.method import Choice
from DCLS.nn import arguments as _arguments
from DCLS.nn.builders import (
    ConstructKernel1d,
    ConstructKernel2d,
    ConstructKernel3d,
)
from DCLS.nn.subclassing import _DclsNd

__all__ = ["DclsTranspose1d", "DclsTranspose2d", "DclsTranspose3d"]

_CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


class _DclsTranspose(_DclsNd):
    """What DclsTranspose1d, DclsTranspose2d and DclsTranspose3d share."""

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
        padding_mode: str = "zeros",
        version: str = "gauss",
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_count,
            stride,
            _arguments.integers("padding", padding, self._ndim, 0),
            dilated_kernel_size,
            True,
            output_padding,
            groups,
            bias,
            _arguments.padding_mode(padding_mode, ("zeros",)),
            version,
            device=device,
            dtype=dtype,
        )

    def _choose(self, *_: Any) -> Choice:
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
            output_padding = self._output_padding(input, output_size)
        return _CONV_TRANSPOSE[len(self.stride)](
            input,
            self._dense_kernel(weight, P, SIG),
            bias,
            self.stride,
            self.padding,
            output_padding,
            self.groups,
        )

    def _output_padding(self, input: Tensor, output_size: Sequence[int]) -> tuple[int, ...]:
        """Returns the output padding that gives an output of ``output_size``."""
        ndim = len(self.stride)
        if input.ndim not in (ndim + 1, ndim + 2):
            raise ValueError(
                f"input must have {ndim + 1} or {ndim + 2} axes, got {tuple(input.shape)}"
            )
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
                input.shape[-ndim:],
                self.stride,
                self.padding,
                self.dilated_kernel_size,
                strict=True,
            )
        )
        largest = tuple(low + step - 1 for low, step in zip(smallest, self.stride, strict=True))
        if any(
            not low <= size <= high
            for low, size, high in zip(smallest, wanted, largest, strict=True)
        ):
            raise ValueError(
                f"output_size must be from {smallest} to {largest} for an input of size "
                f"{tuple(input.shape[-ndim:])}, got {wanted}"
            )
        return tuple(size - low for size, low in zip(wanted, smallest, strict=True))

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Applies the transposed convolution to ``input``, batched or not.

        Args:
            input: ``(N, in_channels, *spatial)`` or ``(in_channels, *spatial)``.
            output_size: spatial size of the result, or its whole shape, of the sizes that
                ``stride`` leaves open; None (default) for the one that ``output_padding`` gives.

        Returns:
            ``(N, out_channels, *spatial)`` or ``(out_channels, *spatial)``.

        Raises:
            TypeError: the dtypes of ``weight``, ``P`` and ``SIG`` differ, or are not among those
                that the class takes.
            ValueError: ``output_size`` cannot be reached, ``version`` needs ``SIG`` and there is
                none, or ``P`` or ``SIG`` does not fit ``weight``.
            RuntimeError: torch's, for an input whose number of axes, channels, dtype or device does
                not fit; or the tensors are on a GPU that this build or machine cannot serve.
        """
        if output_size is None:
            return super().forward(input)
        return self._conv_forward(input, self.weight, self.bias, self.P, self.SIG, output_size)


class DclsTranspose1d(_DclsTranspose):
    """A 1-D transposed convolution that learns where the elements of its kernels are.

    Args:
        in_channels: number of input channels ``I``.
        out_channels: number of output channels ``O``.
        kernel_count: number of elements ``K`` of a kernel.
        stride: an int or one int for each axis; default 1.
        padding: an int or one int for each axis, as ``torch.nn.ConvTranspose1d`` takes it;
            default 0.
        output_padding: added to one side of the output, an int or one for each axis; less than
            ``stride``; default 0.
        dilated_kernel_size: number of grid points ``S`` of the kernel, an int or one for each axis;
            default 1.
        groups: number of groups ``g``, which divides both numbers of channels; default 1.
        bias: whether a learnable bias is added; default True.
        padding_mode: ``zeros`` only.
        version: interpolation, one of ``DCLS.VERSIONS``; default ``gauss``; may be changed later.
        device: where to create the parameters; None (default) for torch's own.
        dtype: float32, float64, float16 or bfloat16; None (default) for torch's own.

    Attributes:
        weight: weights of the elements, ``(I, O/g, K)``.
        P: their positions in grid steps from the centre ``S // 2``, ``(1, I, O/g, K)``, with the
            rows of the ``Dcls1d`` of that dimension.
        SIG: their widths, shaped as ``P``; None if the version has no width.
        bias: ``(O,)`` or None.
        DCK: the module that builds the dense kernel: ``m.DCK(m.weight, m.P, m.SIG)``.
        version: the interpolation; may be set, which sets that of ``DCK``, too.
        method: always ``auto``: the convolution is torch's own.
        stride: one int for each axis.
        padding: one int for each axis.
        output_padding: one int for each axis.
        dilated_kernel_size: one int for each axis.
        in_channels: as given.
        out_channels: as given.
        kernel_count: as given.
        groups: as given.
        padding_mode: as given.

    Shape:
        Input ``(N, I, L)`` or ``(I, L)``, output as that of ``torch.nn.ConvTranspose1d`` with
        a kernel of size ``dilated_kernel_size``.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument is out of its range, or has a wrong length.
    """

    _ndim = _learnable_ndim = 1
    _builder = ConstructKernel1d


class DclsTranspose2d(_DclsTranspose):
    """A 2-D transposed convolution that learns where the elements of its kernels are.

    Arguments, attributes and errors as ``DclsTranspose1d``.

    Shape:
        Input ``(N, I, H, W)`` or ``(I, H, W)``, output as that of
        ``torch.nn.ConvTranspose2d``; ``P`` and ``SIG`` are ``(2, I, O/g, K)``.
    """

    _ndim = _learnable_ndim = 2
    _builder = ConstructKernel2d


class DclsTranspose3d(_DclsTranspose):
    """A 3-D transposed convolution that learns where the elements of its kernels are.

    Arguments, attributes and errors as ``DclsTranspose1d``.

    Shape:
        Input ``(N, I, D, H, W)`` or ``(I, D, H, W)``, output as that of
        ``torch.nn.ConvTranspose3d``; ``P`` and ``SIG`` are ``(3, I, O/g, K)``.
    """

    _ndim = _learnable_ndim = 3
    _builder = ConstructKernel3d
