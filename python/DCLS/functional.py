"""The operators of DCLS as functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch.nn.functional as F
from torch import Tensor

from DCLS import _ops
from DCLS._im2col_functional import im2col, im2col_conv
from DCLS._padding import check_padding_name, same_padding
from DCLS._spec import check_version, is_int, resolve_sigma_min

__all__ = ["construct_kernel", "construct_support", "direct_conv", "im2col", "im2col_conv"]


def _check_tensors(optional: bool = False, **tensors: object) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) and not (optional and tensor is None):
            takes = "a Tensor or None" if optional else "a Tensor"
            raise TypeError(f"{name} must be {takes}, got {type(tensor).__name__}")


def _check_size(dilated_kernel_size: int | Sequence[int]) -> list[int]:
    if is_int(dilated_kernel_size):
        return [dilated_kernel_size]  # type: ignore[list-item]
    if not isinstance(dilated_kernel_size, Sequence) or isinstance(dilated_kernel_size, str):
        raise TypeError(
            "dilated_kernel_size must be an int or a sequence of ints, "
            f"got {type(dilated_kernel_size).__name__}"
        )
    for length in dilated_kernel_size:
        if not is_int(length):
            raise TypeError(
                f"dilated_kernel_size must hold ints, got {tuple(dilated_kernel_size)!r}"
            )
    return list(dilated_kernel_size)


@overload
def construct_kernel(
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None = ...,
    *,
    dilated_kernel_size: int | Sequence[int],
    version: str = ...,
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
    version: str = ...,
    sigma_min: float | None = ...,
    return_support: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def construct_kernel(
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None = None,
    *,
    dilated_kernel_size: int | Sequence[int],
    version: str = "gauss",
    sigma_min: float | None = None,
    return_support: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Builds the dense kernel from weights with real-valued positions.

        kernel[..., x] = sum_k weight[..., k] * phi_k(x)

    where ``phi_k`` is the product over the axes of a tap around ``p = P[d, ..., k] + S_d // 2``,
    with the width ``sigma = abs(SIG[d, ..., k]) + sigma_min`` if the version has one. The guide has
    a table of the versions: their taps, their widths, and whether ``phi_k`` is normalised.

    A normalised ``phi_k`` is divided by its sum over the grid plus 1e-7. Taps outside the grid
    are dropped, and so are, on each axis, the taps of ``gauss`` that are below 1e-10 of the
    element's largest one on the grid (3e-20 in float64): with their derivatives they are less than
    the rounding of the others. The kernel has no subnormal numbers.

    Differentiable in ``weight``, ``P`` and ``SIG``, twice, and in forward mode (second and forward
    derivatives come from the plain torch reference and cost accordingly). At the kinks the
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
    size = _check_size(dilated_kernel_size)
    sigma_min = resolve_sigma_min(check_version(version), sigma_min)
    _check_tensors(weight=weight, P=P)
    _check_tensors(optional=True, SIG=SIG)
    kernel: Tensor = _ops.construct_kernel(weight, P, SIG, size, version, sigma_min)
    if not return_support:
        return kernel
    return kernel, _ops.construct_support(P, SIG, size, version, sigma_min)


def construct_support(
    P: Tensor,
    SIG: Tensor | None = None,
    *,
    dilated_kernel_size: int | Sequence[int],
    version: str = "gauss",
    sigma_min: float | None = None,
) -> Tensor:
    """Marks the cells of a dense kernel that can weigh or move an element.

    It is what ``construct_kernel`` returns with ``return_support``, without the kernel.

    Args:
        P: positions, as ``construct_kernel`` takes them, of shape ``(D, *lead, K)``.
        SIG: widths of the shape of ``P``; None if the version has no width.
        dilated_kernel_size: grid points along each of the D axes; an int for D = 1.
        version: the interpolation, one of ``DCLS.VERSIONS``.
        sigma_min: what is added to ``abs(SIG)``; None for the version's own.

    Returns:
        A bool tensor of shape ``(*lead, *dilated_kernel_size)``, without a gradient.

    Raises:
        TypeError: a dtype or the type of an argument is not one that construct_kernel takes.
        ValueError: a shape, a device, a size, the version, or whether SIG is given does not fit.
        RuntimeError: the tensors are on a GPU that this build or machine cannot serve; says why.
    """
    size = _check_size(dilated_kernel_size)
    sigma_min = resolve_sigma_min(check_version(version), sigma_min)
    _check_tensors(P=P)
    _check_tensors(optional=True, SIG=SIG)
    support: Tensor = _ops.construct_support(P, SIG, size, version, sigma_min)
    return support


def _per_axis(name: str, value: int | Sequence[int], ndim: int) -> list[int]:
    """An int for all axes, or an int for each."""
    if is_int(value):
        return [value] * ndim  # type: ignore[list-item]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{name} must be an int or a sequence of ints, got {value!r}")
    if not all(is_int(entry) for entry in value):
        raise TypeError(f"{name} must hold ints, got {tuple(value)!r}")
    if len(value) not in (1, ndim):
        raise ValueError(f"{name} must have 1 or {ndim} entries, got {len(value)}")
    return list(value) * (ndim if len(value) == 1 else 1)


def _resolve_padding(
    input: Tensor,
    kernel: Tensor,
    stride: Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: Sequence[int],
) -> tuple[Tensor, list[int]]:
    """Padding as numbers; what is to be padded on one side only is padded here."""
    ndim = len(stride)
    if not isinstance(padding, str):
        return input, _per_axis("padding", padding, ndim)
    if check_padding_name(padding, stride) == "valid":
        return input, [0] * ndim
    sides = same_padding([dilation[d] * (kernel.shape[2 + d] - 1) + 1 for d in range(ndim)])
    extra = [amount for begin, end in reversed(sides) for amount in (0, end - begin)]
    if any(extra):
        input = F.pad(input, extra)
    return input, [begin for begin, _ in sides]


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
    """Convolves with a kernel most of whose cells are zero, as constructed kernels are.

        output[n, o, y] = bias[o] + sum_{i,r} kernel[o, i, r]
                          * input[n, i, stride * y - padding + dilation * r]

    It is ``torch.nn.functional.conv1d``, ``conv2d`` or ``conv3d``, computed directly: only
    non-zero cells are visited, and only the cells in ``support`` get a gradient. Its cost is that
    of the cells that are visited, so it suits large depthwise kernels and kernels with few elements
    between many channels. An infinite input beside a zero cell gives no NaN, unlike a
    multiplication by zero.

    Differentiable in ``input``, ``kernel`` and ``bias``, any number of times, in reverse and in
    forward mode; a cell outside of ``support`` counts as a constant in both. Under autocast it
    computes in autocast's dtype, as torch's convolutions do. Results do not depend on the number of
    threads.

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
        groups: into how many groups the channels fall, each convolved by itself.
        support: which cells of the kernel get a gradient, a bool tensor of kernel's shape; the
            gradient of the others is zero. None for all. ``construct_kernel`` returns it.

    Returns:
        The output, of shape ``(batch, out_channels, *output_size)``, or without ``batch`` if input
        had none, with ``output_size = (size + 2 * padding - dilation * (kernel_size - 1) - 1) //
        stride + 1``.

    Raises:
        TypeError: a dtype or the type of an argument is not one that is listed here.
        ValueError: a shape, a device or a number does not fit.
        RuntimeError: the tensors are on a GPU that this build or machine cannot serve; says why.
    """
    _check_tensors(input=input, kernel=kernel)
    _check_tensors(optional=True, bias=bias, support=support)
    ndim = kernel.ndim - 2
    if not 1 <= ndim <= 3:
        raise ValueError(
            "kernel must have shape (out_channels, in_channels // groups, *kernel_size) with 1 to "
            f"3 axes, got {tuple(kernel.shape)}"
        )
    if not is_int(groups):
        raise TypeError(f"groups must be an int, got {groups!r}")
    strides = _per_axis("stride", stride, ndim)
    dilations = _per_axis("dilation", dilation, ndim)
    unbatched = input.ndim == ndim + 1
    if unbatched:
        input = input.unsqueeze(0)
    input, paddings = _resolve_padding(input, kernel, strides, padding, dilations)
    output: Tensor = _ops.direct_conv(
        input, kernel, bias, support, strides, paddings, dilations, groups
    )
    return output.squeeze(0) if unbatched else output
