"""Checks of the arguments that im2col's operators share. Errors name the argument."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from DCLS._native.im2col import Spec, compute_dtype
from DCLS._ops._checks import MAX_AXIS_SIZE, check_device, check_dtype, check_like, check_widths
from DCLS._spec import check_version

_MAX_PLACE = 1 << 30


def _check_lists(
    ndim: int, size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> None:
    for name, values, count, least, most in (
        ("dilated_kernel_size", size, ndim, 1, MAX_AXIS_SIZE),
        ("stride", stride, ndim, 1, _MAX_PLACE),
        ("padding", padding, 2 * ndim, 0, _MAX_PLACE),
    ):
        if len(values) != count:
            raise ValueError(
                f"{name} must have {count} entries for an input with {ndim} spatial axes, "
                f"got {tuple(values)}"
            )
        for value in values:
            if not least <= value <= most:
                raise ValueError(
                    f"{name} must have entries between {least} and {most}, got {tuple(values)}"
                )


def check_input(input: Tensor) -> None:
    """Checks dtype and number of axes of the input."""
    check_dtype("input", input)
    if not 3 <= input.ndim <= 5:
        raise ValueError(
            f"input must have shape (N, I, *spatial) with 1 to 3 spatial axes, "
            f"got {tuple(input.shape)}"
        )


def check_spec(
    input: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    version: str,
    sigma_min: float,
) -> Spec:
    """Checks all that im2col takes, and returns it with the size of the output."""
    check_version(version)
    check_input(input)
    ndim = input.ndim - 2
    _check_lists(ndim, size, stride, padding)
    check_widths(SIG, version, sigma_min)
    allowed = {input.dtype, compute_dtype(input.dtype)}
    for name, tensor in (("P", P), ("SIG", SIG)):
        if tensor is None:
            continue
        if tensor.ndim != 3 or tuple(tensor.shape[:2]) != (ndim, input.shape[1]):
            raise ValueError(
                f"{name} must have shape (axes, in_channels, kernel_count), here ({ndim}, "
                f"{input.shape[1]}, K), got {tuple(tensor.shape)}"
            )
        if tensor.dtype not in allowed:
            takes = " or ".join(sorted(str(dtype) for dtype in allowed))
            raise TypeError(
                f"{name} must have dtype {takes} for an input of {input.dtype}, got {tensor.dtype}"
            )
        check_device(name, tensor, "input", input)
    if SIG is not None and (SIG.shape != P.shape or SIG.dtype != P.dtype):
        raise ValueError(
            f"SIG must have shape and dtype of P, {tuple(P.shape)} and {P.dtype}, "
            f"got {tuple(SIG.shape)} and {SIG.dtype}"
        )
    output_size = []
    for axis, length in enumerate(input.shape[2:]):
        padded = length + padding[2 * axis] + padding[2 * axis + 1]
        if padded < size[axis]:
            raise ValueError(
                f"dilated_kernel_size must not exceed the padded input, got {tuple(size)} for an "
                f"input of {tuple(input.shape[2:])} with padding {tuple(padding)} (begin and end "
                "of each axis)"
            )
        output_size.append((padded - size[axis]) // stride[axis] + 1)
    return Spec(size, stride, padding[::2], output_size, version, sigma_min)


def check_gradient(name: str, grad: Tensor, expected: Sequence[int], input: Tensor) -> None:
    """Checks shape, dtype and device of the gradient of a result."""
    if tuple(grad.shape) != tuple(expected):
        raise ValueError(f"{name} must have shape {tuple(expected)}, got {tuple(grad.shape)}")
    check_like(name, grad, "input", input)


def check_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    P: Tensor,
    groups: int,
    workspace: int,
) -> None:
    """Checks what the convolution takes beyond what im2col takes; to be called after that."""
    if groups < 1 or input.shape[1] % groups != 0:
        raise ValueError(
            f"groups must be positive and divide the {input.shape[1]} channels of input, "
            f"got {groups}"
        )
    expected = (input.shape[1] // groups, P.shape[2])
    if weight.ndim != 3 or tuple(weight.shape[1:]) != expected:
        raise ValueError(
            f"weight must have shape (out_channels, in_channels // groups, kernel_count), here "
            f"(O, {expected[0]}, {expected[1]}), got {tuple(weight.shape)}"
        )
    if weight.shape[0] % groups != 0:
        raise ValueError(
            f"weight must have a number of out_channels that groups={groups} divides, "
            f"got {weight.shape[0]}"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(
            f"bias must have shape (out_channels,) = {(weight.shape[0],)}, got {tuple(bias.shape)}"
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            check_like(name, tensor, "input", input)
    if workspace < 1:
        raise ValueError(f"workspace must be a positive number of bytes, got {workspace}")
