"""Convolutions all of whose kernel axes are learnable, and the 2-D one with a flat kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from DCLS.nn import arguments as _arguments
from DCLS.nn.builders import (
    ConstructKernel1d,
    ConstructKernel2d,
    ConstructKernel3d,
)
from DCLS.nn.subclassing import _DclsNd

__all__ = ["Dcls1d", "Dcls2d", "Dcls2dK1d", "Dcls3d"]


class _DclsConv(_DclsNd):
    """What Dcls1d, Dcls2d and Dcls3d share."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
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


class Dcls1d(_DclsConv):
    """A 1-D convolution that learns where the elements of its kernels are.

    Args:
        in_channels: number of input channels ``I``.
        out_channels: number of output channels ``O``.
        kernel_count: number of elements ``K`` of a kernel.
        stride: an int or one int for each axis; default 1.
        padding: an int, one int for each axis, or ``same`` or ``valid``, as
            ``torch.nn.Conv1d`` takes them; default 0.
        dilated_kernel_size: number of grid points ``S`` of the kernel, an int or one for each axis;
            default 1.
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
        weight: weights of the elements, ``(O, I/g, K)``.
        P: their positions in grid steps from the centre ``S // 2``, ``(1, O, I/g, K)``.
        SIG: their widths, shaped as ``P``; None if the version has no width.
        bias: ``(O,)`` or None.
        DCK: the module that builds the dense kernel: ``m.DCK(m.weight, m.P, m.SIG)``.
        version: the interpolation; may be set, which sets that of ``DCK``, too.
        method: how it convolves; may be set.
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
    _builder = ConstructKernel1d


class Dcls2d(_DclsConv):
    """A 2-D convolution that learns where the elements of its kernels are.

    Arguments, attributes and errors as ``Dcls1d``, and

    Args:
        use_implicit_gemm: as in DCLS 0.1.1, False stands for torch's own convolution: it sets
            ``method="conv"``, and says afterwards whether that is not the method. Default True.

    Shape:
        Input ``(N, I, H, W)`` or ``(I, H, W)``, output as that of ``torch.nn.Conv2d``;
        ``P`` and ``SIG`` are ``(2, O, I/g, K)``. As in DCLS 0.1.1 ``P[0]`` is the position along
        the width and ``P[1]`` that along the height; the other way round for ``v0``.

    Example:
        >>> m = Dcls2d(96, 96, kernel_count=26, dilated_kernel_size=17, padding=8, groups=96)
        >>> m(torch.randn(8, 96, 50, 100)).shape
        torch.Size([8, 96, 50, 100])
    """

    _ndim = _learnable_ndim = 2
    _builder = ConstructKernel2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilated_kernel_size: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        version: str = "gauss",
        use_implicit_gemm: bool = True,
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
            dilated_kernel_size,
            groups,
            bias,
            padding_mode,
            version,
            method=method,
            device=device,
            dtype=dtype,
        )
        if not _arguments.flag("use_implicit_gemm", use_implicit_gemm):
            self.use_implicit_gemm = False

    @property
    def use_implicit_gemm(self) -> bool:
        """Whether anything but torch's own convolution may be used; the name is 0.1.1's."""
        return self.method != "conv"

    @use_implicit_gemm.setter
    def use_implicit_gemm(self, value: bool) -> None:
        if _arguments.flag("use_implicit_gemm", value) != self.use_implicit_gemm:
            self.method = "auto" if value else "conv"


class Dcls3d(_DclsConv):
    """A 3-D convolution that learns where the elements of its kernels are.

    Arguments, attributes and errors as ``Dcls1d``.

    Shape:
        Input ``(N, I, D, H, W)`` or ``(I, D, H, W)``, output as that of ``torch.nn.Conv3d``;
        ``P`` and ``SIG`` are ``(3, O, I/g, K)``. As in DCLS 0.1.1 ``P[0], P[1], P[2]`` are the
        positions along width, height and depth; along depth, width and height for ``v0``.
    """

    _ndim = _learnable_ndim = 3
    _builder = ConstructKernel3d


class Dcls2dK1d(_DclsNd):
    """A 2-D convolution with flat kernels, which learns positions along their one long axis.

    Arguments, attributes and errors as ``Dcls1d``, and

    Args:
        flat_dim: 0 (default) for kernels of size ``(dilated_kernel_size, 1)``, 1 for ``(1,
            dilated_kernel_size)``.
        version: default ``v1``.

    Shape:
        Input ``(N, I, H, W)`` or ``(I, H, W)``, output as that of ``torch.nn.Conv2d``.
    """

    _ndim, _learnable_ndim = 2, 1
    _builder = ConstructKernel1d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilated_kernel_size: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        version: str = "v1",
        flat_dim: int = 0,
        *,
        method: str = "auto",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        flat_dim = _arguments.integer("flat_dim", flat_dim, 0)
        if flat_dim > 1:
            raise ValueError(f"flat_dim must be 0 or 1, got {flat_dim}")
        (size,) = _arguments.integers("dilated_kernel_size", dilated_kernel_size, 1, 1)
        super().__init__(
            in_channels,
            out_channels,
            kernel_count,
            stride,
            padding,
            size,
            False,
            0,
            groups,
            bias,
            padding_mode,
            version,
            kernel_size=(1, size) if flat_dim else (size, 1),
            method=method,
            device=device,
            dtype=dtype,
        )
        self.flat_dim = flat_dim

    def _shape_kernel(self, kernel: Tensor) -> Tensor:
        return kernel.unsqueeze(-1 - self.flat_dim)

    def _whole_kernel_size(self) -> tuple[int, ...]:
        (size,) = self.dilated_kernel_size
        return (1, size) if self.flat_dim else (size, 1)

    def _describe(self) -> Iterator[str]:
        yield from super()._describe()
        yield f"flat_dim={self.flat_dim}"
