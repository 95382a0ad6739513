"""The operators ``dcls::im2col`` and ``dcls::im2col_backward``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from DCLS._checks import (
    MAX_AXIS_SIZE,
    check_device,
    check_dtype,
    check_like,
    check_version,
    check_widths,
)
from DCLS._native import im2col as _im2col_kernels
from DCLS._ops import _expressions
from DCLS._ops._batching import Batching, batching_rule
from DCLS._ops._library import library as _library
from DCLS._ops._library import register
from DCLS._ops._transforms import (
    computed_wide,
    derivatives_by,
    gradients_of,
    register_autocast,
    tangents_by,
)

__all__ = ["im2col", "im2col_backward"]

_SPEC = (
    "SymInt[] dilated_kernel_size, SymInt[] stride, SymInt[] padding, str version, float sigma_min"
)
_library.define(f"im2col(Tensor input, Tensor P, Tensor? SIG, {_SPEC}) -> Tensor")
_library.define(
    f"im2col_backward(Tensor grad_columns, Tensor input, Tensor P, Tensor? SIG, {_SPEC}, "
    "bool[3] output_mask) -> (Tensor, Tensor, Tensor)"
)

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
) -> _im2col_kernels.Spec:
    """Checks all that im2col takes, and returns it with the size of the output."""
    check_version(version)
    check_input(input)
    ndim = input.ndim - 2
    _check_lists(ndim, size, stride, padding)
    check_widths(SIG, version, sigma_min)
    allowed = {input.dtype, _im2col_kernels.compute_dtype(input.dtype)}
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
    return _im2col_kernels.Spec(size, stride, padding[::2], output_size, version, sigma_min)


def check_gradient(name: str, grad: Tensor, expected: Sequence[int], input: Tensor) -> None:
    """Checks shape, dtype and device of the gradient of a result."""
    if tuple(grad.shape) != tuple(expected):
        raise ValueError(f"{name} must have shape {tuple(expected)}, got {tuple(grad.shape)}")
    check_like(name, grad, "input", input)


# ---------------------------------------------------------------------------------- kernels, fakes


def _im2col(input: Tensor, P: Tensor, SIG: Tensor | None, *rest: Any) -> Tensor:
    return _im2col_kernels.im2col(input, P, SIG, check_spec(input, P, SIG, *rest))


def _im2col_fake(input: Tensor, P: Tensor, SIG: Tensor | None, *rest: Any) -> Tensor:
    spec = check_spec(input, P, SIG, *rest)
    return input.new_empty((*input.shape[:2], P.shape[2], *spec.output_size))


def _checked(
    grad_columns: Tensor, input: Tensor, P: Tensor, SIG: Tensor | None, rest: Sequence[Any]
) -> _im2col_kernels.Spec:
    spec = check_spec(input, P, SIG, *rest)
    expected = (*input.shape[:2], P.shape[2], *spec.output_size)
    check_gradient("grad_columns", grad_columns, expected, input)
    return spec


def _im2col_backward(
    grad_columns: Tensor, input: Tensor, P: Tensor, SIG: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    *rest_of_spec, mask = rest
    spec = _checked(grad_columns, input, P, SIG, rest_of_spec)
    grads = _im2col_kernels.im2col_backward(grad_columns, input, P, SIG, spec, mask)
    return tuple(input.new_empty(0) if grad is None else grad for grad in grads)


def _im2col_backward_fake(
    grad_columns: Tensor, input: Tensor, P: Tensor, SIG: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    *rest_of_spec, mask = rest
    _checked(grad_columns, input, P, SIG, rest_of_spec)
    return tuple(
        input.new_empty(0) if tensor is None or not wanted else tensor.new_empty(tensor.shape)
        for tensor, wanted in zip((input, P, SIG), mask, strict=True)
    )


def _im2col_by_torch(input: Tensor, P: Tensor, SIG: Tensor | None, *rest: Any) -> Tensor:
    check_spec(input, P, SIG, *rest)
    return _expressions.im2col(input, P, SIG, *rest)


def _im2col_backward_by_torch(grad_columns: Tensor, *args: Any) -> tuple[Tensor, ...]:
    input, P, SIG, *spec, _ = args
    _checked(grad_columns, input, P, SIG, spec)
    gradients: tuple[Tensor, ...] = gradients_of(_expressions.im2col, 3)(grad_columns, *args)
    return gradients


# ---------------------------------------------------------------------------------------- autograd


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:3])
    ctx.rest = inputs[3:]


def _backward(ctx: Any, grad_columns: Tensor) -> tuple[Tensor | None, ...]:
    mask = list(ctx.needs_input_grad[:3])
    grads = im2col_backward(grad_columns, *ctx.saved_tensors, *ctx.rest, mask)
    wanted = (grad if needed else None for grad, needed in zip(grads, mask, strict=True))
    return (*wanted, *(None for _ in ctx.rest))


_wide = computed_wide(_expressions.im2col)

# ------------------------------------------------------------------------------------ registration

im2col = torch.ops.dcls.im2col
im2col_backward = torch.ops.dcls.im2col_backward

# The copies are channels of one problem.
register(
    "im2col",
    kernel=_im2col,
    fake=_im2col_fake,
    expression=_im2col_by_torch,
    vmap=batching_rule(im2col, Batching((1, 1, 1), (1,), items=(0,))),
    setup_context=_setup_context,
    backward=_backward,
    jvp=tangents_by(_wide),
)
register(
    "im2col_backward",
    kernel=_im2col_backward,
    fake=_im2col_backward_fake,
    expression=_im2col_backward_by_torch,
    vmap=batching_rule(im2col_backward, Batching((1, 1, 1, 1), (1, 1, 1), (1, 2, 3), items=(0, 1))),
    **derivatives_by(gradients_of(_wide, 3)),
)
# As unfold: columns serve a matrix product in autocast's dtype.
register_autocast("im2col", low=(0,), full=(1, 2))
register_autocast("im2col_backward")
