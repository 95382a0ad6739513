"""Convolutions that sample their input at learnable positions, and never build a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from DCLS._spec import SIGMA_VERSIONS
from DCLS.functional import construct_kernel, im2col_conv
from DCLS.method import Choice, check_method
from DCLS.nn.axes import as_floats, row_limits
from DCLS.nn.conv import _DclsConv

__all__ = ["Dcls1d", "Dcls2d", "Dcls3d"]


class _Im2colConv(_DclsConv):
    """What the im2col convolutions share."""

    #: Most bytes of columns held at a time, see ``DCLS.functional.im2col_conv``. May be set at
    #: any time; None for its default.
    workspace: int | None = None

    @property
    def method(self) -> str:
        """Always ``auto``: there is no dense kernel to choose a convolution for."""
        return "auto"

    @method.setter
    def method(self, value: str) -> None:
        if check_method(value) != "auto":
            raise ValueError(
                f"method must be 'auto' for an im2col convolution, which builds no kernel, "
                f"got {value!r}"
            )

    def _choose(self, *_: Any) -> Choice:
        return Choice("im2col", "an im2col layer builds no kernel", "layer")

    def _rows_shape(self, weight_shape: Sequence[int]) -> tuple[int, ...]:
        # All output channels share the positions.
        return (self.in_channels, weight_shape[-1])

    def _position_limits(self) -> tuple[tuple[int, int], ...]:
        # P[d] belongs to axis d, in every version: there are no older checkpoints to keep to.
        return row_limits(self.dilated_kernel_size, range(len(self.dilated_kernel_size)))

    def _used_rows(self, P: Tensor, SIG: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Returns the positions and widths as the present version takes them."""
        P = as_floats(P, self.weight.dtype)
        if SIG is None or self.version not in SIGMA_VERSIONS:
            return P, None
        return P, as_floats(SIG, P.dtype)

    def _dense_kernel(self, weight: Tensor, P: Tensor, SIG: Tensor | None) -> Tensor:
        """Builds the kernel that does the same, for ``to_conv``."""
        P, SIG = self._used_rows(P, SIG)

        def shared(rows: Tensor) -> Tensor:
            of_groups: Tensor = rows.unflatten(1, (self.groups, self.in_channels // self.groups))
            every: Tensor = of_groups.repeat_interleave(self.out_channels // self.groups, 1)
            return every.to(weight.dtype)

        return construct_kernel(
            weight,
            shared(P),
            None if SIG is None else shared(SIG),
            dilated_kernel_size=self.dilated_kernel_size,
            version=self.version,
        )

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, P: Tensor, SIG: Tensor | None
    ) -> Tensor:
        """Samples ``input`` at the positions and multiplies by the weights."""
        ndim = len(self.stride)
        if input.ndim not in (ndim + 1, ndim + 2):
            raise ValueError(
                f"input must have {ndim} spatial axes, that is shape (N, {self.in_channels}, "
                f"*spatial) or ({self.in_channels}, *spatial), got {tuple(input.shape)}"
            )
        if input.shape[-ndim - 1] != self.in_channels:
            raise ValueError(
                f"input must have {self.in_channels} channels, got {input.shape[-ndim - 1]} in the "
                f"shape {tuple(input.shape)}"
            )
        x = input if input.ndim == ndim + 2 else input.unsqueeze(0)
        padding = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0,) * ndim
        P, SIG = self._used_rows(P, SIG)
        output = im2col_conv(
            x,
            weight,
            bias,
            P,
            SIG,
            dilated_kernel_size=self.dilated_kernel_size,
            stride=self.stride,
            padding=padding,
            groups=self.groups,
            version=self.version,
            workspace=self.workspace,
        )
        return output if input.ndim == ndim + 2 else output.squeeze(0)


class Dcls1d(_Im2colConv):
    """A 1-D convolution that learns where it samples its input.

    It computes what ``DCLS.construct.modules.Dcls1d`` computes with positions that all output
    channels share, at a cost that does not grow with ``dilated_kernel_size``: by
    ``DCLS.functional.im2col_conv``. All tools of that class work here, too; there is no
    ``DCK``, for there is no kernel.

    Args:
        in_channels: number of input channels ``I``.
        out_channels: number of output channels ``O``.
        kernel_count: number of elements ``K``.
        stride: an int or one int for each axis; default 1.
        padding: an int, one int for each axis, or ``same`` or ``valid``, as
            ``torch.nn.Conv1d`` takes them; default 0.
        dilated_kernel_size: number of grid points ``S`` over which positions range, an int or one
            for each axis; default 1.
        groups: number of groups ``g``, which divides both numbers of channels; default 1.
        bias: whether a learnable bias is added; default True.
        padding_mode: ``zeros`` (default), ``reflect``, ``replicate`` or ``circular``.
        version: interpolation, one of ``DCLS.VERSIONS``; default ``gauss``; may be changed later.
        method: ``auto`` only, for there is no kernel to convolve with.
        device: where to create the parameters; None (default) for torch's own.
        dtype: float32, float64, float16 or bfloat16; None (default) for torch's own. ``P`` and
            ``SIG`` may stay float32 where the others have 16 bits.

    Attributes:
        weight: weights of the elements, ``(O, I/g, K)``.
        P: their positions in grid steps from the centre ``S // 2``, ``(1, I, K)``. ``P[d]`` belongs
            to axis ``d``, whatever the version.
        SIG: their widths, shaped as ``P``; None if the version has no width.
        bias: ``(O,)`` or None.
        workspace: most bytes of columns held at a time; None for the default of
            ``DCLS.functional.im2col_conv``.
        version: the interpolation; may be set.
        method: always ``auto``.
        stride: one int for each axis.
        padding: one int for each axis, or a name.
        dilated_kernel_size: one int for each axis.
        in_channels: as given.
        out_channels: as given.
        kernel_count: as given.
        groups: as given.
        padding_mode: as given.

    Shape:
        Input ``(N, I, L)`` or ``(I, L)``, output as that of ``torch.nn.Conv1d`` with a kernel
        of size ``dilated_kernel_size``.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument is out of its range, or has a wrong length.
    """

    _ndim = _learnable_ndim = 1


class Dcls2d(_Im2colConv):
    """A 2-D convolution that learns where it samples its input.

    Arguments, attributes and errors as ``Dcls1d``.

    Shape:
        Input ``(N, I, H, W)`` or ``(I, H, W)``, output as that of ``torch.nn.Conv2d``;
        ``P`` and ``SIG`` are ``(2, I, K)``: along the height, then along the width.

    Example:
        >>> m = Dcls2d(64, 64, kernel_count=9, dilated_kernel_size=31, padding=15)
        >>> m(torch.randn(8, 64, 56, 56)).shape
        torch.Size([8, 64, 56, 56])
    """

    _ndim = _learnable_ndim = 2


class Dcls3d(_Im2colConv):
    """A 3-D convolution that learns where it samples its input.

    Arguments, attributes and errors as ``Dcls1d``.

    Shape:
        Input ``(N, I, D, H, W)`` or ``(I, D, H, W)``, output as that of ``torch.nn.Conv3d``;
        ``P`` and ``SIG`` are ``(3, I, K)``: along depth, height and width.
    """

    _ndim = _learnable_ndim = 3
