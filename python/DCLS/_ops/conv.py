"""The operators ``dcls::direct_conv`` and ``dcls::direct_conv_backward``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from DCLS._checks import MAX_AXIS_SIZE, check_device, check_dtype, check_like
from DCLS._native import dense as _kernels
from DCLS._ops import _expressions
from DCLS._ops._batching import Batching, batching_rule
from DCLS._ops._library import library, register, sum_of_channels
from DCLS._ops._transforms import gradients_of, register_autocast, without_autocast

__all__ = ["direct_conv", "direct_conv_backward", "keep_lists"]

keep_lists = _kernels.keep_lists

#: As for the native library, which the compiler and meta tensors do not ask.
_MAX_PADDING = 1 << 31

_GEOMETRY = "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups"
library.define(
    "direct_conv(Tensor input, Tensor kernel, Tensor? bias, Tensor? support, "
    f"{_GEOMETRY}) -> Tensor"
)
library.define(
    "direct_conv_backward(Tensor grad_output, Tensor input, Tensor kernel, Tensor? support, "
    f"{_GEOMETRY}, bool[3] output_mask) -> (Tensor, Tensor, Tensor)"
)


def _check_conv(
    input: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    support: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> list[int]:
    """Checks the arguments of a convolution; returns the shape of its output."""
    ndim = kernel.ndim - 2
    if not 1 <= ndim <= 3:
        raise ValueError(
            "kernel must have shape (out_channels, in_channels // groups, *kernel_size) with 1 to "
            f"3 axes, got {tuple(kernel.shape)}"
        )
    if input.ndim != ndim + 2:
        raise ValueError(
            f"input must have shape (batch, in_channels, *size) with {ndim} axes, as kernel, "
            f"got {tuple(input.shape)}"
        )
    check_dtype("input", input)
    check_like("kernel", kernel, "input", input)
    if not all(1 <= size <= MAX_AXIS_SIZE for size in kernel.shape[2:]):
        raise ValueError(
            f"kernel must have from 1 to {MAX_AXIS_SIZE} points on each axis, "
            f"got {tuple(kernel.shape)}"
        )
    for name, sizes, least, most in (
        ("stride", stride, 1, MAX_AXIS_SIZE),
        ("padding", padding, 0, _MAX_PADDING),
        ("dilation", dilation, 1, MAX_AXIS_SIZE),
    ):
        if len(sizes) != ndim or not all(least <= size <= most for size in sizes):
            raise ValueError(
                f"{name} must have {ndim} entries of at least {least} and at most {most}, "
                f"got {tuple(sizes)}"
            )
    if groups < 1 or kernel.shape[0] % groups != 0:
        raise ValueError(
            f"groups must be at least 1 and divide out_channels, {kernel.shape[0]}, got {groups}"
        )
    if input.shape[1] != kernel.shape[1] * groups:
        raise ValueError(
            f"input must have groups * kernel.shape[1] = {kernel.shape[1] * groups} channels, "
            f"got {input.shape[1]}"
        )
    if bias is not None:
        check_like("bias", bias, "input", input)
        if tuple(bias.shape) != (kernel.shape[0],):
            raise ValueError(
                f"bias must have shape (out_channels,) = ({kernel.shape[0]},), "
                f"got {tuple(bias.shape)}"
            )
    if support is not None:
        if support.dtype != torch.bool:
            raise TypeError(f"support must have dtype torch.bool, got {support.dtype}")
        if support.shape != kernel.shape:
            raise ValueError(
                f"support must have the shape of kernel, {tuple(kernel.shape)}, "
                f"got {tuple(support.shape)}"
            )
        check_device("support", support, "input", input)
    shape = [input.shape[0], kernel.shape[0]]
    for d in range(ndim):
        reach = dilation[d] * (kernel.shape[2 + d] - 1) + 1
        room = input.shape[2 + d] + 2 * padding[d]
        if reach > room:
            raise ValueError(
                f"kernel must fit the padded input: on axis {d} it spans {reach} points of {room}"
            )
        shape.append((room - reach) // stride[d] + 1)
    return shape


def _check_backward(
    grad_output: Tensor, input: Tensor, kernel: Tensor, support: Tensor | None, *geometry: Any
) -> None:
    shape = _check_conv(input, kernel, None, support, *geometry)
    check_like("grad_output", grad_output, "input", input)
    if list(grad_output.shape) != shape:
        raise ValueError(f"grad_output must have shape {shape}, got {list(grad_output.shape)}")


def empty_output(input: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns room for an output in the layout in which a convolution of ``input`` runs."""
    layout = _kernels.memory_format(input)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=layout)


# ---------------------------------------------------------------------------------- kernels, fakes


def _conv(
    input: Tensor, kernel: Tensor, bias: Tensor | None, support: Tensor | None, *geometry: Any
) -> Tensor:
    output = _conv_fake(input, kernel, bias, support, *geometry)
    _kernels.direct_conv(input, kernel, bias, output, *geometry)
    return output


def _conv_fake(
    input: Tensor, kernel: Tensor, bias: Tensor | None, support: Tensor | None, *geometry: Any
) -> Tensor:
    return empty_output(input, _check_conv(input, kernel, bias, support, *geometry))


def _conv_backward(
    grad_output: Tensor,
    input: Tensor,
    kernel: Tensor,
    support: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    *geometry, output_mask = rest
    grads = _conv_backward_fake(grad_output, input, kernel, support, *rest)
    grad_input, grad_kernel, grad_bias = grads
    if output_mask[0]:
        _kernels.direct_conv_backward_input(grad_output, kernel, grad_input, *geometry)
    if output_mask[1]:
        _kernels.direct_conv_backward_kernel(grad_output, input, support, grad_kernel, *geometry)
    if output_mask[2]:
        grad_bias.copy_(sum_of_channels(grad_output))
    return grads


def _conv_backward_fake(
    grad_output: Tensor,
    input: Tensor,
    kernel: Tensor,
    support: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    *geometry, output_mask = rest
    _check_backward(grad_output, input, kernel, support, *geometry)
    return (
        empty_output(input, input.shape) if output_mask[0] else input.new_empty(0),
        kernel.new_empty(kernel.shape if output_mask[1] else 0),
        kernel.new_empty(kernel.shape[:1] if output_mask[2] else 0),
    )


def _conv_by_torch(*args: Any) -> Tensor:
    _check_conv(*args)
    return _expressions.direct_conv(*args)


def _conv_backward_by_torch(
    grad_output: Tensor, input: Tensor, kernel: Tensor, support: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    *geometry, mask = rest
    _check_backward(grad_output, input, kernel, support, *geometry)

    def convolve(input: Tensor, kernel: Tensor) -> Tensor:
        return _expressions.direct_conv(input, kernel, None, support, *geometry)

    of_both = gradients_of(convolve, 2)(grad_output, input, kernel, mask[:2])
    grad_bias = sum_of_channels(grad_output) if mask[2] else kernel.new_empty(0)
    return (*of_both, grad_bias)


# ---------------------------------------------------------------------------------------- autograd


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    input, kernel, bias, support, *geometry = inputs
    ctx.save_for_backward(input, kernel, support)
    ctx.has_bias = bias is not None
    ctx.geometry = geometry


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    input, kernel, support = ctx.saved_tensors
    mask = [*ctx.needs_input_grad[:2], ctx.has_bias and ctx.needs_input_grad[2]]
    grads = direct_conv_backward(grad_output, input, kernel, support, *ctx.geometry, mask)
    wanted = (grad if needed else None for grad, needed in zip(grads, mask, strict=True))
    return (*wanted, None, None, None, None, None)


def _setup_double_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
    grad_output, input, kernel, support, *geometry, mask = inputs
    ctx.save_for_backward(grad_output, input, kernel, support)
    ctx.geometry = geometry
    ctx.mask = mask


def _add(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second


def _at_support(kernel: Tensor, support: Tensor | None) -> Tensor:
    """A kernel's gradient or tangent without the cells that count as constants."""
    return kernel if support is None else torch.where(support, kernel, 0)


def _tangent(
    input: Tensor,
    kernel: Tensor,
    support: Tensor | None,
    of_input: Tensor | None,
    of_kernel: Tensor | None,
    of_bias: Tensor | None,
    geometry: Sequence[Any],
) -> Tensor | None:
    """The convolution is linear in input and in kernel: its tangent is a sum of convolutions.

    ``of_kernel`` is zero outside of ``support``. None stands for zero. A tangent of the bias alone
    has still to be expanded to the output.
    """
    result = None
    if of_input is not None:
        result = direct_conv(of_input, kernel, None, support, *geometry)
    if of_kernel is not None:
        result = _add(result, direct_conv(input, of_kernel, None, None, *geometry))
    if of_bias is not None:
        result = _add(result, of_bias.view(-1, *(1,) * (input.ndim - 2)))
    return result


@without_autocast
def _double_backward(
    ctx: Any, input_grad: Tensor, kernel_grad: Tensor, bias_grad: Tensor
) -> tuple[Tensor | None, ...]:
    """The convolution is linear in input and in kernel: its second derivatives are convolutions.

    With ``*`` for the convolution, the gradients it gets are those of ``grad_input``,
    ``grad_kernel`` and ``grad_bias``; the last is a sum over ``grad_output``.
    """
    grad_output, input, kernel, support = ctx.saved_tensors
    needs_output, needs_input, needs_kernel = ctx.needs_input_grad[:3]
    has_input, has_kernel, has_bias = ctx.mask
    if has_kernel:
        kernel_grad = _at_support(kernel_grad, support)
    second: list[Tensor | None] = [None, None, None]
    if needs_output:
        of_output = _tangent(
            input,
            kernel,
            support,
            input_grad if has_input else None,
            kernel_grad if has_kernel else None,
            bias_grad if has_bias else None,
            ctx.geometry,
        )
        second[0] = None if of_output is None else of_output.expand_as(grad_output)
    if needs_input and has_kernel:
        mask = [True, False, False]
        second[1] = direct_conv_backward(
            grad_output, input, kernel_grad, None, *ctx.geometry, mask
        )[0]
    if needs_kernel and has_input:
        mask = [False, True, False]
        second[2] = direct_conv_backward(
            grad_output, input_grad, kernel, support, *ctx.geometry, mask
        )[1]
    return (*second, None, None, None, None, None, None)


def _jvp(args: Sequence[Any], tangents: Sequence[Any]) -> Tensor | None:
    input, kernel, _, support, *geometry = args
    of_input, of_kernel, of_bias = tangents[:3]
    if of_kernel is not None:
        of_kernel = _at_support(of_kernel, support)
    tangent = _tangent(input, kernel, support, of_input, of_kernel, of_bias, geometry)
    if tangent is None or tangent.ndim == input.ndim:
        return tangent
    size = _check_conv(input, kernel, None, support, *geometry)
    return tangent.expand(size)


def _backward_jvp(args: Sequence[Any], tangents: Sequence[Any]) -> tuple[Tensor | None, ...]:
    """The gradients are bilinear, too: of grad_output and kernel, and of grad_output and input."""
    grad_output, input, kernel, support, *geometry, mask = args
    of_output, of_input, of_kernel = tangents[:3]
    results: list[Tensor | None] = [None, None, None]
    if of_output is not None:
        every = direct_conv_backward(of_output, input, kernel, support, *geometry, mask)
        results = [grad if wanted else None for grad, wanted in zip(every, mask, strict=True)]
    if mask[0] and of_kernel is not None:
        moved = (grad_output, input, _at_support(of_kernel, support), None)
        more = direct_conv_backward(*moved, *geometry, [True, False, False])
        results[0] = _add(results[0], more[0])
    if mask[1] and of_input is not None:
        moved = (grad_output, of_input, kernel, support)
        more = direct_conv_backward(*moved, *geometry, [False, True, False])
        results[1] = _add(results[1], more[1])
    return tuple(results)


# ------------------------------------------------------------------------- registration, autocast

direct_conv = torch.ops.dcls.direct_conv
direct_conv_backward = torch.ops.dcls.direct_conv_backward

# A batch of kernels is one more level of groups.
register(
    "direct_conv",
    kernel=_conv,
    fake=_conv_fake,
    expression=_conv_by_torch,
    vmap=batching_rule(direct_conv, Batching((1, 0, 0, 0), (1,), groups=7, items=(0,))),
    setup_context=_setup_context,
    backward=_backward,
    jvp=_jvp,
)
register(
    "direct_conv_backward",
    kernel=_conv_backward,
    fake=_conv_backward_fake,
    expression=_conv_backward_by_torch,
    vmap=batching_rule(
        direct_conv_backward,
        Batching((1, 1, 0, 0), (1, 0, 0), (1, 2, None), groups=7, items=(0, 1)),
    ),
    setup_context=_setup_double_context,
    backward=_double_backward,
    jvp=_backward_jvp,
)
# As torch's own convolutions.
register_autocast("direct_conv", low=(0, 1, 2))
