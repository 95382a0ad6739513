"""The operators ``dcls::im2col_conv`` and ``dcls::im2col_conv_backward``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from DCLS import reference
from DCLS._checks import check_like
from DCLS._native import im2col as _im2col_kernels
from DCLS._native import im2col_conv as _kernels
from DCLS._ops import _expressions
from DCLS._ops._batching import Batching, batching_rule
from DCLS._ops._library import library as _library
from DCLS._ops._library import register, sum_of_channels
from DCLS._ops._transforms import (
    computed_wide,
    derivatives_by,
    gradients_of,
    register_autocast,
    tangents_by,
)
from DCLS._ops.im2col import check_gradient, check_spec

__all__ = ["im2col_conv", "im2col_conv_backward"]

_REST = (
    "SymInt[] dilated_kernel_size, SymInt[] stride, SymInt[] padding, str version, "
    "float sigma_min, SymInt groups, int workspace"
)
_library.define(
    "im2col_conv(Tensor input, Tensor weight, Tensor? bias, Tensor P, Tensor? SIG, "
    f"{_REST}) -> Tensor"
)
_library.define(
    "im2col_conv_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor P, Tensor? SIG, "
    f"{_REST}, bool[4] output_mask) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _check_conv(
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
    least = _im2col_kernels.least_workspace(*expected, input.dtype)
    if workspace < least:
        raise ValueError(
            f"workspace must be at least {least} bytes, what the columns at one output take here, "
            f"got {workspace}"
        )


# ---------------------------------------------------------------------------------- kernels, fakes


def _checked(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    P: Tensor,
    SIG: Tensor | None,
    rest: Sequence[Any],
) -> tuple[_im2col_kernels.Spec, int, int]:
    *rest_of_spec, groups, workspace = rest
    spec = check_spec(input, P, SIG, *rest_of_spec)
    _check_conv(input, weight, bias, P, groups, workspace)
    return spec, groups, workspace


def _im2col_conv(
    input: Tensor, weight: Tensor, bias: Tensor | None, P: Tensor, SIG: Tensor | None, *rest: Any
) -> Tensor:
    checked = _checked(input, weight, bias, P, SIG, rest)
    return _kernels.im2col_conv(input, weight, bias, P, SIG, *checked)


def _im2col_conv_fake(
    input: Tensor, weight: Tensor, bias: Tensor | None, P: Tensor, SIG: Tensor | None, *rest: Any
) -> Tensor:
    spec, *_ = _checked(input, weight, bias, P, SIG, rest)
    return input.new_empty((input.shape[0], weight.shape[0], *spec.output_size))


def _checked_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    rest: Sequence[Any],
) -> tuple[_im2col_kernels.Spec, int, int]:
    spec, groups, workspace = _checked(input, weight, None, P, SIG, rest)
    expected = (input.shape[0], weight.shape[0], *spec.output_size)
    check_gradient("grad_output", grad_output, expected, input)
    return spec, groups, workspace


def _im2col_conv_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, P: Tensor, SIG: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    *rest_, mask = rest
    checked = _checked_backward(grad_output, input, weight, P, SIG, rest_)
    grads = _kernels.im2col_conv_backward(
        grad_output, input, weight, P, SIG, *checked, output_mask=mask
    )
    return tuple(input.new_empty(0) if grad is None else grad for grad in grads)


def _im2col_conv_backward_fake(
    grad_output: Tensor, input: Tensor, weight: Tensor, P: Tensor, SIG: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    *rest_, mask = rest
    _checked_backward(grad_output, input, weight, P, SIG, rest_)
    return tuple(
        input.new_empty(0) if tensor is None or not wanted else tensor.new_empty(tensor.shape)
        for tensor, wanted in zip((input, weight, P, SIG), mask, strict=True)
    )


def _im2col_conv_by_torch(
    input: Tensor, weight: Tensor, bias: Tensor | None, P: Tensor, SIG: Tensor | None, *rest: Any
) -> Tensor:
    _checked(input, weight, bias, P, SIG, rest)
    return _expressions.im2col_conv(input, weight, bias, P, SIG, *rest)


def _im2col_conv_backward_by_torch(grad_output: Tensor, *args: Any) -> tuple[Tensor, ...]:
    input, weight, P, SIG, *rest, mask = args
    _checked_backward(grad_output, input, weight, P, SIG, rest)

    def convolve(input: Tensor, weight: Tensor, P: Tensor, SIG: Tensor | None) -> Tensor:
        return _expressions.im2col_conv(input, weight, None, P, SIG, *rest)

    gradients: tuple[Tensor, ...] = gradients_of(convolve, 4)(
        grad_output, input, weight, P, SIG, mask
    )
    return gradients


# ---------------------------------------------------------------------------------------- autograd


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:2], *inputs[3:5])  # not the bias
    ctx.rest = inputs[5:]


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    mask = [needs[0], needs[1], needs[3], needs[4]]
    grads: Sequence[Tensor | None] = (None,) * 4
    if any(mask):
        grads = im2col_conv_backward(grad_output, *ctx.saved_tensors, *ctx.rest, mask)
    wanted = [grad if needed else None for grad, needed in zip(grads, mask, strict=True)]
    bias = sum_of_channels(grad_output) if needs[2] else None
    return (*wanted[:2], bias, *wanted[2:], *(None for _ in ctx.rest))


def _plain(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    P: Tensor,
    SIG: Tensor | None,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    version: str,
    sigma_min: float,
    groups: int,
    workspace: int,  # noqa: ARG001
) -> Tensor:
    return reference.im2col_conv(
        input,
        weight,
        bias,
        P,
        SIG,
        dilated_kernel_size=size,
        stride=stride,
        padding=padding,
        groups=groups,
        version=version,
        sigma_min=None if SIG is None else sigma_min,
    )


def _plain_without_bias(
    input: Tensor, weight: Tensor, P: Tensor, SIG: Tensor | None, *spec: Any
) -> Tensor:
    """What has the gradients of ``dcls::im2col_conv_backward``."""
    return _plain(input, weight, None, P, SIG, *spec)


# ------------------------------------------------------------------------------------ registration

im2col_conv = torch.ops.dcls.im2col_conv
im2col_conv_backward = torch.ops.dcls.im2col_conv_backward

# The copies are groups of one convolution.
register(
    "im2col_conv",
    kernel=_im2col_conv,
    fake=_im2col_conv_fake,
    expression=_im2col_conv_by_torch,
    vmap=batching_rule(im2col_conv, Batching((1, 0, 0, 1, 1), (1,), groups=10, items=(0,))),
    setup_context=_setup_context,
    backward=_backward,
    jvp=tangents_by(computed_wide(_plain)),
)
register(
    "im2col_conv_backward",
    kernel=_im2col_conv_backward,
    fake=_im2col_conv_backward_fake,
    expression=_im2col_conv_backward_by_torch,
    vmap=batching_rule(
        im2col_conv_backward,
        Batching((1, 1, 0, 1, 1), (1, 0, 1, 1), (1, 2, 3, 4), groups=10, items=(0, 1)),
    ),
    **derivatives_by(gradients_of(computed_wide(_plain_without_bias), 4)),
)
register_autocast("im2col_conv", low=(0, 1, 2), full=(3, 4))
register_autocast("im2col_conv_backward")
