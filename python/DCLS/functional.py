"""The operators of DCLS as functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch.nn.functional as F
from torch import Tensor

from DCLS import _ops
from DCLS._checks import (
    check_int,
    check_tensors,
    check_version,
    flag,
    ints,
    padding_sides,
    resolve_sigma_min,
)
from DCLS._fx import traceable
from DCLS._native.im2col import least_workspace
from DCLS._ops.im2col import check_input
from DCLS._types import Version

__all__ = ["construct_kernel", "construct_support", "direct_conv", "im2col", "im2col_conv"]

#: Bytes of columns that ``im2col_conv`` holds at a time by default. On a CPU a piece should
#: stay in the last cache until it has been multiplied, on a GPU it should fill the device.
DEFAULT_WORKSPACE = {"cpu": 8 << 20, "cuda": 256 << 20}


@overload
def construct_kernel(
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None = ...,
    *,
    dilated_kernel_size: int | Sequence[int],
    version: Version = ...,
    sigma_min: float | None = ...,
    return_support: Literal[False] = ...,
) -> Tensor: ...


@overload
def construct_kernel(
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None = ...,
    *,
    dilated_kernel_size: int | Sequence[int],
    version: Version = ...,
    sigma_min: float | None = ...,
    return_support: Literal[True],
) -> tuple[Tensor, Tensor]: ...


@traceable
def construct_kernel(
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None = None,
    *,
    dilated_kernel_size: int | Sequence[int],
    version: Version = "gauss",
    sigma_min: float | None = None,
    return_support: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Builds the dense kernel from weights with real-valued positions.

        kernel[..., x] = sum_k weight[..., k] * phi_k(x)

    where ``phi_k`` is the product over the axes of a tap around ``p = P[d, ..., k] + S_d // 2``,
    with the width ``sigma = abs(SIG[d, ..., k]) + sigma_min`` if the version has one. The guide has
    a table of the versions: their taps, their widths, and whether ``phi_k`` is normalised.

    A normalised ``phi_k`` is divided by its sum over the grid plus 1e-7. Taps outside the grid
    are dropped. On each axis the taps of ``gauss`` below 1e-10 of the element's largest one on the
    grid are dropped, too (3e-20 in float64): they and their derivatives are smaller than the
    rounding of the others. The kernel has no subnormal numbers.

    Differentiable in ``weight``, ``P`` and ``SIG``, twice, and in forward mode (second and forward
    derivatives come from torch expressions and cost accordingly). At the kinks the
    derivative by a position is right-sided for ``v0`` and zero for ``v1`` and ``max``; that of
    ``abs(SIG)`` at 0 is zero. Under autocast it computes in float32.

    Args:
        weight: weights of the kernel elements, of shape ``(*lead, K)``: for a convolution ``lead``
            is ``(out_channels, in_channels // groups)``. float32, float64, float16 or bfloat16; the
            last two are computed in float32.
        P: positions in grid steps, of shape ``(D, *lead, K)`` and of weight's dtype and device.
            ``P[d]`` belongs to kernel axis ``d``; 0 is the centre ``dilated_kernel_size[d] // 2``.
            A non-finite position makes its whole kernel NaN.
        SIG: widths of the shape of ``P``; None if the version has no width.
        dilated_kernel_size: grid points along each of the D axes, D = 1, 2 or 3, each at most
            ``2**24``. An int for D = 1.
        version: the interpolation, one of ``DCLS.VERSIONS``.
        sigma_min: what is added to ``abs(SIG)``, finite and positive. None for the version's own.
        return_support: whether to return the support, too.

    Returns:
        The kernel, of shape ``(*lead, *dilated_kernel_size)``, contiguous. With ``return_support``
        a pair of it and the support, of the same shape and dtype bool, which has no gradient: True
        where an element has a non-zero tap or a non-zero derivative of it by position or width.
        The gradient of the kernel at the other cells reaches neither weights nor positions nor
        widths. A non-finite position marks its whole kernel.

    Raises:
        TypeError: a dtype or the type of an argument is not one that is listed here.
        ValueError: a shape, a device, a size, the version, or whether SIG is given does not fit.
        RuntimeError: the tensors are on a GPU that this build or machine cannot serve; says why.
    """
    size = ints("dilated_kernel_size", dilated_kernel_size)
    sigma_min = resolve_sigma_min(check_version(version), sigma_min)
    check_tensors(weight=weight, P=P)
    check_tensors(or_none=True, SIG=SIG)
    kernel: Tensor = _ops.call_construct(weight, P, SIG, size, version, sigma_min)
    if not flag("return_support", return_support):
        return kernel
    return kernel, _ops.construct_support(P, SIG, size, version, sigma_min)


@traceable
def construct_support(
    P: Tensor,
    SIG: Tensor | None = None,
    *,
    dilated_kernel_size: int | Sequence[int],
    version: Version = "gauss",
    sigma_min: float | None = None,
) -> Tensor:
    """Marks the cells of a dense kernel that can weigh or move an element.

    It returns the support that ``construct_kernel`` returns with ``return_support``.

    Args:
        P: positions, as ``construct_kernel`` takes them, of shape ``(D, *lead, K)``.
        SIG: widths of the shape of ``P``; None if the version has no width.
        dilated_kernel_size: grid points along each of the D axes; an int for D = 1.
        version: the interpolation.
        sigma_min: what is added to ``abs(SIG)``; None for the version's own.

    Returns:
        A bool tensor of shape ``(*lead, *dilated_kernel_size)``, without a gradient.

    Raises:
        TypeError: a dtype or the type of an argument is not one that construct_kernel takes.
        ValueError: a shape, a device, a size, the version, or whether SIG is given does not fit.
        RuntimeError: the tensors are on a GPU that this build or machine cannot serve; says why.
    """
    size = ints("dilated_kernel_size", dilated_kernel_size)
    sigma_min = resolve_sigma_min(check_version(version), sigma_min)
    check_tensors(P=P)
    check_tensors(or_none=True, SIG=SIG)
    support: Tensor = _ops.construct_support(P, SIG, size, version, sigma_min)
    return support


@traceable
def direct_conv(
    input: Tensor,
    kernel: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    support: Tensor | None = None,
) -> Tensor:
    """Convolves with a kernel that is mostly zero, as constructed kernels are.

        output[n, o, y] = bias[o] + sum_{i,r} kernel[o, i, r]
                          * input[n, i, stride * y - padding + dilation * r]

    It computes what ``torch.nn.functional.conv1d``, ``conv2d`` or ``conv3d`` computes. It
    visits only the cells that are not zero, and only the cells in ``support`` get a gradient. Its
    cost grows with the number of these cells, so that it suits large depthwise kernels, and kernels
    with few elements between many channels.

    A value that is infinite or NaN reaches the outputs and gradients that it meets through a cell
    that is not zero, and no others. In ``torch.nn.functional.conv2d`` it meets the zero cells, too.
    Padding is zeros that are read, but a cell that reads nothing else is not visited.

    Differentiable in ``input``, ``kernel`` and ``bias``, any number of times, in reverse and in
    forward mode; both take a cell outside of ``support`` as a constant. Under autocast it
    computes in autocast's dtype, as torch's convolutions do. Results do not depend on the number of
    threads. On a GPU with tensor cores, depthwise float32 convolutions may be rounded to TF32 (11
    significant bits) where torch's own may: ``torch.backends.cudnn.allow_tf32 = False`` forbids it.

    Args:
        input: of shape ``(batch, in_channels, *size)`` or ``(in_channels, *size)``, with as many
            axes in ``size`` as ``kernel`` has (1, 2 or 3). float32, float64, float16 or bfloat16;
            the last two are accumulated in float32. A channels-last input is read, and the output
            written, in that layout.
        kernel: of shape ``(out_channels, in_channels // groups, *kernel_size)`` and of input's
            dtype and device.
        bias: of shape ``(out_channels,)`` and of input's dtype and device, or None.
        stride: steps of the output on the input, at least 1; an int or one for each axis.
        padding: zeros on both sides of the input, at least 0; an int, one for each axis, 'valid'
            for none, or 'same' for an output of the size of the input (stride 1 only).
        dilation: steps of the kernel's cells on the input, at least 1; an int or one for each axis.
        groups: number of groups of channels. Each is convolved by itself.
        support: a bool tensor of kernel's shape, True for the cells that get a gradient. The
            gradient of the others is zero. None for all cells. ``construct_kernel`` can return it.

    Returns:
        The output, of shape ``(batch, out_channels, *output_size)``, or without ``batch`` if input
        had none, with ``output_size = (size + 2 * padding - dilation * (kernel_size - 1) - 1) //
        stride + 1``.

    Raises:
        TypeError: a dtype or the type of an argument is not one that is listed here.
        ValueError: a shape, a device or a number does not fit.
        RuntimeError: the tensors are on a GPU that this build or machine cannot serve; says why.
    """
    check_tensors(input=input, kernel=kernel)
    check_tensors(or_none=True, bias=bias, support=support)
    ndim = kernel.ndim - 2
    if not 1 <= ndim <= 3:
        raise ValueError(
            "kernel must have shape (out_channels, in_channels // groups, *kernel_size) with 1 to "
            f"3 axes, got {tuple(kernel.shape)}"
        )
    check_int("groups", groups)
    strides = ints("stride", stride, ndim, one_for_all=True)
    dilations = ints("dilation", dilation, ndim, one_for_all=True)
    span = [step * (size - 1) + 1 for step, size in zip(dilations, kernel.shape[2:], strict=True)]
    sides = padding_sides(padding, span, strides, one_for_all=True)
    unbatched = input.ndim == ndim + 1
    if unbatched:
        input = input.unsqueeze(0)
    if padding == "same":
        # The operator pads both sides alike: what one side has more is padded here.
        more = [zeros for before, behind in reversed(sides) for zeros in (0, behind - before)]
        input = F.pad(input, more) if any(more) else input
    output: Tensor = _ops.direct_conv(
        input, kernel, bias, support, strides, [before for before, _ in sides], dilations, groups
    )
    return output.squeeze(0) if unbatched else output


def _im2col_arguments(
    input: Tensor,
    dilated_kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    version: Version,
    sigma_min: float | None,
) -> tuple[list[int], list[int], list[int], str, float]:
    """Returns what the operators of im2col take behind the tensors."""
    sigma_min = resolve_sigma_min(check_version(version), sigma_min)
    check_input(input)
    size = ints("dilated_kernel_size", dilated_kernel_size, input.ndim - 2)
    strides = ints("stride", stride, input.ndim - 2)
    sides = padding_sides(padding, size, strides)
    return size, strides, [zeros for pair in sides for zeros in pair], version, sigma_min


@traceable
def im2col(
    input: Tensor,
    P: Tensor,
    SIG: Tensor | None = None,
    *,
    dilated_kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    version: Version = "gauss",
    sigma_min: float | None = None,
) -> Tensor:
    """Samples the input at the real-valued offsets of kernel elements.

        columns[n, i, k, o] = sum_x phi_{i,k}(x) * input[n, i, o * stride - padding + x]

    where ``phi_{i,k}`` is an element of weight 1 on the grid of a kernel of
    ``dilated_kernel_size``, as ``construct_kernel`` defines it, and zeros surround the
    input. A convolution is the product of its weights with these columns. ``im2col_conv``
    computes it piece by piece, without holding all columns.

    Differentiable in ``input``, ``P`` and ``SIG``, twice, and in forward mode (second and forward
    derivatives come from torch expressions and cost accordingly). Under autocast ``input``
    becomes autocast's dtype and ``P`` and ``SIG`` become float32.

    Args:
        input: ``(N, I, *spatial)`` with D = 1, 2 or 3 spatial axes. float32, float64, float16 or
            bfloat16; the last two are computed in float32.
        P: positions in grid steps, ``(D, I, K)``: of K elements for each channel. ``P[d]`` belongs
            to axis ``d``, 0 is the centre ``dilated_kernel_size[d] // 2``. Of input's dtype, or
            float32 for an input of 16 bits. The columns of a non-finite position are NaN.
        SIG: widths of the shape and dtype of ``P``; None if the version has no width.
        dilated_kernel_size: grid points on each axis, from 1 to ``2**24``; an int for all.
        stride: input steps between outputs, at least 1; an int for all axes.
        padding: zeros before and behind each axis, an int for all; ``same`` for as many outputs as
            inputs (stride 1 only), ``valid`` for none.
        version: the interpolation, one of ``DCLS.VERSIONS``.
        sigma_min: what is added to ``abs(SIG)``, finite and positive. None for the version's own.

    Returns:
        The columns, ``(N, I, K, *output_spatial)``, of input's dtype, contiguous, with as many
        outputs as a convolution with a kernel of ``dilated_kernel_size`` has.

    Raises:
        TypeError: a dtype or the type of an argument is not one that is listed here.
        ValueError: a shape, a device, a size, the version, or whether SIG is given does not fit.
        RuntimeError: the tensors are on a GPU that this build or machine cannot serve; says why.
    """
    check_tensors(input=input, P=P)
    check_tensors(or_none=True, SIG=SIG)
    rest = _im2col_arguments(input, dilated_kernel_size, stride, padding, version, sigma_min)
    columns: Tensor = _ops.im2col(input, P, SIG, *rest)
    return columns


def _default_workspace(input: Tensor, weight: Tensor) -> int:
    default = DEFAULT_WORKSPACE.get(input.device.type, DEFAULT_WORKSPACE["cpu"])
    if weight.ndim != 3 or not input.is_floating_point():
        return default  # the operator says what is wrong
    return max(default, least_workspace(weight.shape[1], weight.shape[2], input.dtype))


@traceable
def im2col_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    P: Tensor,
    SIG: Tensor | None = None,
    *,
    dilated_kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    groups: int = 1,
    version: Version = "gauss",
    sigma_min: float | None = None,
    workspace: int | None = None,
) -> Tensor:
    """Convolves with learnable spacings without ever building a kernel.

        output[n, o] = bias[o] + sum_{i,k} weight[o, i, k] * columns[n, i, k]

    with the columns of ``im2col``. It is the convolution with the kernel that
    ``construct_kernel`` builds from positions shared by all output channels, and for ``v0`` the
    deformable convolution (arXiv 1703.06211) whose offsets are constant over space.

    A value of the input that is infinite or NaN reaches the outputs whose elements touch its point:
    those with a tap there that is not zero, or a derivative of one.

    The columns exist only piece by piece: each piece is computed, multiplied and dropped, and the
    backward pass computes it again. Memory does not grow with K or ``dilated_kernel_size``.

    Differentiable in all tensors, twice, and in forward mode (second and forward derivatives come
    from the plain torch reference, which does build the kernel). Under autocast ``input``,
    ``weight`` and ``bias`` become autocast's dtype and ``P`` and ``SIG`` become float32.

    Args:
        input: ``(N, I, *spatial)`` with D = 1, 2 or 3 spatial axes. float32, float64, float16 or
            bfloat16.
        weight: ``(O, I // groups, K)`` of input's dtype.
        bias: ``(O,)`` of input's dtype, or None.
        P: positions, ``(D, I, K)``, as ``im2col`` takes them.
        SIG: widths, as ``im2col`` takes them.
        dilated_kernel_size: grid points on each axis; an int for all.
        stride: input steps between outputs, at least 1; an int for all axes.
        padding: zeros before and behind each axis, an int for all; or ``same`` or ``valid``.
        groups: number of groups, which divides I and O.
        version: the interpolation, one of ``DCLS.VERSIONS``.
        sigma_min: what is added to ``abs(SIG)``, finite and positive. None for the version's own.
        workspace: most bytes of columns held at a time, at least those of a group at one output.
            None for 8 MiB on a CPU and 256 MiB on a GPU, or for more where one output needs more.

    Returns:
        The output, ``(N, O, *output_spatial)``, of input's dtype, contiguous.

    Raises:
        TypeError: a dtype or the type of an argument is not one that is listed here.
        ValueError: a shape, a device, a size, the version, or whether SIG is given does not fit, or
            ``workspace`` is too small.
        RuntimeError: the tensors are on a GPU that this build or machine cannot serve; says why.
    """
    check_tensors(input=input, weight=weight, P=P)
    check_tensors(or_none=True, bias=bias, SIG=SIG)
    rest = _im2col_arguments(input, dilated_kernel_size, stride, padding, version, sigma_min)
    check_int("groups", groups)
    check_int("workspace", workspace, or_none=True)
    if workspace is None:
        workspace = _default_workspace(input, weight)
    output: Tensor = _ops.im2col_conv(input, weight, bias, P, SIG, *rest, groups, workspace)
    return output
