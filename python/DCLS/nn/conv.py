"""Convolutions with only learnable kernel axes, and the 2-D one with a flat kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from DCLS import _checks
from DCLS._types import Device, Method, Padding, PaddingMode, Version
from DCLS.nn.builders import (
    ConstructKernel1d,
    ConstructKernel2d,
    ConstructKernel3d,
)
from DCLS.nn.initial import InitPositions
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
        padding: Padding = 0,
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
            kernel_count: number of elements ``K`` of a kernel.
            stride: step between outputs, an int or one for each axis; default 1.
            padding: points added on both sides of the input: an int, or for each axis an int or a
                pair ``(before, behind)``. Or ``same`` for an output of the input's size, ``valid``
                for no padding, ``causal`` for outputs that see no later input. The last axis is
                time, with all padding before it; others are padded as for ``same``. Default 0.
            dilated_kernel_size: number of grid points ``S`` of the kernel, an int or one for each
                axis; default 1.
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


class Dcls1d(_DclsConv):
    """A 1-D convolution that learns where the elements of its kernels are.

    Attributes:
        weight: weights of the elements, ``(O, I/g, K)``.
        P: their positions in grid steps from the centre ``S // 2``, ``(1, O, I/g, K)``.
        SIG: their widths, shaped as ``P``; None if the version has no width.
        bias: ``(O,)`` or None.
        DCK: the module that builds the dense kernel: ``m.DCK(m.weight, m.P, m.SIG)``.

    Shape:
        Input ``(N, I, L)`` or ``(I, L)``. The output has the shape that a ``torch.nn.Conv1d``
        with a kernel of size ``dilated_kernel_size`` gives.
    """

    _ndim = _learnable_ndim = 1
    _builder = ConstructKernel1d


class Dcls2d(_DclsConv):
    """A 2-D convolution that learns where the elements of its kernels are.

    Attributes:
        weight: weights of the elements, ``(O, I/g, K)``.
        P: their positions in grid steps from the centre ``S // 2``, ``(2, O, I/g, K)``. As in DCLS
            0.1.1, ``P[0]`` is the position along the width and ``P[1]`` the position along the
            height; the other way round for ``v0``.
        SIG: their widths, shaped as ``P``; None if the version has no width.
        bias: ``(O,)`` or None.
        DCK: the module that builds the dense kernel: ``m.DCK(m.weight, m.P, m.SIG)``.

    Shape:
        Input ``(N, I, H, W)`` or ``(I, H, W)``. The output has the shape that a
        ``torch.nn.Conv2d`` with a kernel of size ``dilated_kernel_size`` gives.

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
        padding: Padding = 0,
        dilated_kernel_size: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        version: Version = "gauss",
        use_implicit_gemm: bool = True,
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
            kernel_count: number of elements ``K`` of a kernel.
            stride: step between outputs, an int or one for each axis; default 1.
            padding: points added on both sides of the input: an int, or for each axis an int or a
                pair ``(before, behind)``. Or ``same`` for an output of the input's size, ``valid``
                for no padding, ``causal`` for outputs that see no later input. The last axis is
                time, with all padding before it; others are padded as for ``same``. Default 0.
            dilated_kernel_size: number of grid points ``S`` of the kernel, an int or one for each
                axis; default 1.
            groups: number of groups ``g``. It divides ``I`` and ``O``. Default 1.
            bias: whether the layer has a learnable bias; default True.
            padding_mode: ``zeros`` (default), ``reflect``, ``replicate`` or ``circular``.
            version: the interpolation, one of ``DCLS.VERSIONS``; default ``gauss``.
            use_implicit_gemm: False is another way to write ``method="conv"``, for code that was
                written for DCLS 0.1.1. Default True.
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
        if not _checks.flag("use_implicit_gemm", use_implicit_gemm):
            self.use_implicit_gemm = False

    @property
    def use_implicit_gemm(self) -> bool:
        """Whether ``method`` is not ``conv``. The name is the one of DCLS 0.1.1.

        Setting it to False sets ``method`` to ``conv``. Setting it to True sets a ``method`` of
        ``conv`` to ``auto``.
        """
        return self.method != "conv"

    @use_implicit_gemm.setter
    def use_implicit_gemm(self, value: bool) -> None:
        if _checks.flag("use_implicit_gemm", value) != self.use_implicit_gemm:
            self.method = "auto" if value else "conv"


class Dcls3d(_DclsConv):
    """A 3-D convolution that learns where the elements of its kernels are.

    Attributes:
        weight: weights of the elements, ``(O, I/g, K)``.
        P: their positions in grid steps from the centre ``S // 2``, ``(3, O, I/g, K)``. As in DCLS
            0.1.1, ``P[0], P[1], P[2]`` are the positions along width, height and depth; along
            depth, width and height for ``v0``.
        SIG: their widths, shaped as ``P``; None if the version has no width.
        bias: ``(O,)`` or None.
        DCK: the module that builds the dense kernel: ``m.DCK(m.weight, m.P, m.SIG)``.

    Shape:
        Input ``(N, I, D, H, W)`` or ``(I, D, H, W)``. The output has the shape that a
        ``torch.nn.Conv3d`` with a kernel of size ``dilated_kernel_size`` gives.
    """

    _ndim = _learnable_ndim = 3
    _builder = ConstructKernel3d


class Dcls2dK1d(_DclsNd):
    """A 2-D convolution with flat kernels, which learns positions along their one long axis.

    Attributes:
        weight: weights of the elements, ``(O, I/g, K)``.
        P: their positions in grid steps from the centre ``S // 2``, ``(1, O, I/g, K)``.
        SIG: their widths, shaped as ``P``; None if the version has no width.
        bias: ``(O,)`` or None.
        DCK: the module that builds the kernels with one axis: ``m.DCK(m.weight, m.P, m.SIG)``.

    Shape:
        Input ``(N, I, H, W)`` or ``(I, H, W)``. The output has the shape that a
        ``torch.nn.Conv2d`` with such a flat kernel gives.
    """

    _ndim, _learnable_ndim = 2, 1
    _builder = ConstructKernel1d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: int | Sequence[int] = 1,
        padding: Padding = 0,
        dilated_kernel_size: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        version: Version = "v1",
        flat_dim: int = 0,
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
            kernel_count: number of elements ``K`` of a kernel.
            stride: step between outputs, an int or one for each axis; default 1.
            padding: points added on both sides of the input: an int, or for each axis an int or a
                pair ``(before, behind)``. Or ``same`` for an output of the input's size, ``valid``
                for no padding, ``causal`` for outputs that see no later input. The long axis is
                time, with all padding before it; others are padded as for ``same``. Default 0.
            dilated_kernel_size: number of grid points ``S`` along the long axis; default 1.
            groups: number of groups ``g``. It divides ``I`` and ``O``. Default 1.
            bias: whether the layer has a learnable bias; default True.
            padding_mode: ``zeros`` (default), ``reflect``, ``replicate`` or ``circular``.
            version: the interpolation, one of ``DCLS.VERSIONS``; default ``v1``.
            flat_dim: 0 (default) for kernels of size ``(dilated_kernel_size, 1)``, 1 for kernels of
                size ``(1, dilated_kernel_size)``.
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
        flat_dim = _checks.integer("flat_dim", flat_dim, 0)
        if flat_dim > 1:
            raise ValueError(f"flat_dim must be 0 or 1, got {flat_dim}")
        self.flat_dim = flat_dim  # the size of the kernel depends on it
        self._set_up(locals())

    @classmethod
    def _learnable_conv_axes(cls, conv: _ConvNd) -> tuple[int, ...]:
        return (cls._more_options(conv)["flat_dim"],)

    @classmethod
    def _more_options(cls, conv: _ConvNd) -> dict[str, Any]:
        if 1 not in conv.kernel_size:
            raise ValueError(
                f"conv must have a flat kernel, with a size of 1 on one axis, got "
                f"{tuple(conv.kernel_size)}"
            )
        return {"flat_dim": 0 if conv.kernel_size[1] == 1 else 1}

    def _shape_kernel(self, kernel: Tensor) -> Tensor:
        return kernel.unsqueeze(-1 - self.flat_dim)

    def _whole_kernel_size(self) -> tuple[int, ...]:
        (size,) = self.dilated_kernel_size
        return (1, size) if self.flat_dim else (size, 1)

    def _time_axis(self) -> int:
        return self.flat_dim

    def _describe(self) -> Iterator[str]:
        yield from super()._describe()
        yield f"flat_dim={self.flat_dim}"
