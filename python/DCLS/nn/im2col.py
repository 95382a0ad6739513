"""Convolutions that sample their input at learnable positions, and never build a kernel."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.fx import Proxy

from DCLS._spec import SIGMA_VERSIONS
from DCLS._types import Method
from DCLS.functional import construct_kernel, im2col_conv
from DCLS.method import Choice, check_method
from DCLS.nn.axes import as_floats
from DCLS.nn.conv import _DclsConv

__all__ = ["Dcls1d", "Dcls2d", "Dcls3d"]


class _Im2colConv(_DclsConv):
    """What the im2col convolutions share."""

    workspace: int | None = None

    @property
    def method(self) -> Method:
        """Always ``auto``: there is no dense kernel to choose a convolution for."""
        return "auto"

    @method.setter
    def method(self, value: Method) -> None:
        if check_method(value) != "auto":
            raise ValueError(
                f"method must be 'auto' for an im2col convolution, which builds no kernel, "
                f"got {value!r}"
            )
        self.__dict__["method"] = value

    def _only_choice(self) -> Choice:
        return Choice("im2col", "an im2col layer builds no kernel", "layer")

    def _rows_shape(self, weight_shape: Sequence[int]) -> tuple[int, ...]:
        # All output channels share the positions.
        return (self.in_channels, weight_shape[-1])

    def _row_axes(self) -> tuple[int, ...]:
        # P[d] belongs to axis d, in every version: there are no older checkpoints to keep to.
        return tuple(range(len(self.dilated_kernel_size)))

    def _to_rows(self, kernels: Tensor) -> Tensor:
        by_group: Tensor = kernels.unflatten(0, (self.groups, self.out_channels // self.groups))
        return by_group.transpose(1, 2).flatten(0, 1)

    def _from_rows(self, rows: Tensor) -> Tensor:
        by_group: Tensor = rows.unflatten(0, (self.groups, self.in_channels // self.groups))
        return by_group.transpose(1, 2).flatten(0, 1)

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
        # torch.fx, which traces symbolically, knows no shapes: its graph takes batches only.
        batched = isinstance(input, Proxy) or self._is_batched(input)
        x, padding = self._pad(input if batched else input.unsqueeze(0))
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
        return output if batched else output.squeeze(0)


class Dcls1d(_Im2colConv):
    """A 1-D convolution that learns where it samples its input.

    It computes what ``DCLS.Dcls1d`` computes if all output channels share their positions.
    It does not build a kernel, so that its cost does not grow with ``dilated_kernel_size``: see
    ``DCLS.functional.im2col_conv``. It has no ``DCK``, and ``method`` is always ``auto``.

    Attributes:
        weight: weights of the elements, ``(O, I/g, K)``.
        P: their positions in grid steps from the centre ``S // 2``, ``(1, I, K)``.
        SIG: their widths, shaped as ``P``; None if the version has no width.
        bias: ``(O,)`` or None.
        workspace: most bytes of columns held at a time. None (default) for the default of
            ``DCLS.functional.im2col_conv``. It may be set at any time.

    Shape:
        Input ``(N, I, L)`` or ``(I, L)``. The output has the shape that a
        ``torch.nn.Conv1d`` with a kernel of size ``dilated_kernel_size`` gives.
    """

    _ndim = _learnable_ndim = 1


class Dcls2d(_Im2colConv):
    """A 2-D convolution that learns where it samples its input.

    It computes what ``DCLS.Dcls2d`` computes if all output channels share their positions.
    It does not build a kernel, so that its cost does not grow with ``dilated_kernel_size``: see
    ``DCLS.functional.im2col_conv``. It has no ``DCK``, and ``method`` is always ``auto``.

    Attributes:
        weight: weights of the elements, ``(O, I/g, K)``.
        P: their positions in grid steps from the centre ``S // 2``, ``(2, I, K)``. In
            every version the rows are the positions along height and width, in this order.
        SIG: their widths, shaped as ``P``; None if the version has no width.
        bias: ``(O,)`` or None.
        workspace: most bytes of columns held at a time. None (default) for the default of
            ``DCLS.functional.im2col_conv``. It may be set at any time.

    Shape:
        Input ``(N, I, H, W)`` or ``(I, H, W)``. The output has the shape that a
        ``torch.nn.Conv2d`` with a kernel of size ``dilated_kernel_size`` gives.

    Example:
        >>> m = Dcls2d(64, 64, kernel_count=9, dilated_kernel_size=31, padding=15)
        >>> m(torch.randn(8, 64, 56, 56)).shape
        torch.Size([8, 64, 56, 56])
    """

    _ndim = _learnable_ndim = 2


class Dcls3d(_Im2colConv):
    """A 3-D convolution that learns where it samples its input.

    It computes what ``DCLS.Dcls3d`` computes if all output channels share their positions.
    It does not build a kernel, so that its cost does not grow with ``dilated_kernel_size``: see
    ``DCLS.functional.im2col_conv``. It has no ``DCK``, and ``method`` is always ``auto``.

    Attributes:
        weight: weights of the elements, ``(O, I/g, K)``.
        P: their positions in grid steps from the centre ``S // 2``, ``(3, I, K)``. In
            every version the rows are the positions along depth, height and width, in this order.
        SIG: their widths, shaped as ``P``; None if the version has no width.
        bias: ``(O,)`` or None.
        workspace: most bytes of columns held at a time. None (default) for the default of
            ``DCLS.functional.im2col_conv``. It may be set at any time.

    Shape:
        Input ``(N, I, D, H, W)`` or ``(I, D, H, W)``. The output has the shape that a
        ``torch.nn.Conv3d`` with a kernel of size ``dilated_kernel_size`` gives.
    """

    _ndim = _learnable_ndim = 3
