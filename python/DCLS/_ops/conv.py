"""The operators ``dcls::direct_conv`` and ``dcls::direct_conv_backward``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from DCLS._checks import MAX_AXIS_SIZE, check_device, check_dtype, check_like
from DCLS._native import dense as _kernels
from DCLS._ops._library import library, register
from DCLS._ops._transforms import merge, register_autocast, split, to_front

__all__ = ["direct_conv", "direct_conv_backward"]

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
        torch.sum(grad_output, dim=(0, *range(2, input.ndim)), out=grad_bias)
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


def _tangent(
    input: Tensor,
    kernel: Tensor,
    of_input: Tensor | None,
    of_kernel: Tensor | None,
    of_bias: Tensor | None,
    geometry: Sequence[Any],
) -> Tensor | None:
    """The convolution is linear in input and in kernel: its tangent is a sum of convolutions.

    None stands for zero. A tangent of the bias alone has still to be expanded to the output.
    """
    result = None
    if of_input is not None:
        result = direct_conv(of_input, kernel, None, None, *geometry)
    if of_kernel is not None:
        result = _add(result, direct_conv(input, of_kernel, None, None, *geometry))
    if of_bias is not None:
        result = _add(result, of_bias.view(-1, *(1,) * (input.ndim - 2)))
    return result


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
    if has_kernel and support is not None:
        kernel_grad = kernel_grad * support
    second: list[Tensor | None] = [None, None, None]
    if needs_output:
        of_output = _tangent(
            input,
            kernel,
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
    # As in reverse mode: a cell outside of the support counts as a constant.
    of_kernel = of_kernel if support is None else of_kernel * support
    return _tangent(input, kernel, of_input, of_kernel, of_bias, geometry)


def _backward_jvp(args: Sequence[Any], tangents: Sequence[Any]) -> tuple[Tensor, ...]:
    """The gradients are bilinear, too: of grad_output and kernel, and of grad_output and input."""
    grad_output, input, kernel, support, *geometry, mask = args
    of_output, of_input, of_kernel = tangents[:3]
    results = list(direct_conv_backward(of_output, input, kernel, support, *geometry, mask))
    for i, (x, k) in enumerate(((input, of_kernel), (of_input, kernel))):
        if mask[i]:
            only = [i == 0, i == 1, False]
            more = direct_conv_backward(grad_output, x, k, support, *geometry, only)
            results[i] = results[i] + more[i]
    return tuple(results)


# -------------------------------------------------------------------------------------------- vmap


def _fold(
    tensors: Sequence[Tensor | None], in_dims: Sequence[int | None], batch: int, at: int
) -> list[Tensor | None]:
    """Merges the copies into the dimension ``at``."""
    return [
        merge(to_front(tensor, dim, batch), at)
        for tensor, dim in zip(tensors, in_dims, strict=True)
    ]


def _conv_vmap(
    info: Any, in_dims: tuple[int | None, ...], input: Tensor, *rest: Any
) -> tuple[Tensor, int]:
    kernel, bias, support, *sizes, groups = rest
    batch = info.batch_size
    if in_dims[1] is None and in_dims[2] is None:  # a batch of inputs only
        (folded,) = _fold([input], in_dims[:1], batch, 0)
        return split(direct_conv(folded, *rest), 0, batch), 0
    # A batch of kernels: one more level of groups.
    (folded,) = _fold([input], in_dims[:1], batch, 1)
    rows = _fold([kernel, bias, support], in_dims[1:4], batch, 0)
    return split(direct_conv(folded, *rows, *sizes, batch * groups), 1, batch), 0


def _conv_backward_vmap(
    info: Any, in_dims: tuple[int | None, ...], grad_output: Tensor, input: Tensor, *rest: Any
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    kernel, support, *sizes, groups, mask = rest
    batch = info.batch_size
    channels = _fold([grad_output, input], in_dims[:2], batch, 1)
    rows = _fold([kernel, support], in_dims[2:4], batch, 0)
    grads = direct_conv_backward(*channels, *rows, *sizes, batch * groups, mask)
    return (
        tuple(
            split(grad, at, batch) if wanted else grad
            for grad, wanted, at in zip(grads, mask, (1, 0, 0), strict=True)
        ),
        tuple(0 if wanted else None for wanted in mask),
    )


# ------------------------------------------------------------------------- registration, autocast

direct_conv = register(
    "direct_conv",
    kernel=_conv,
    fake=_conv_fake,
    vmap=_conv_vmap,
    setup_context=_setup_context,
    backward=_backward,
    jvp=_jvp,
)
direct_conv_backward = register(
    "direct_conv_backward",
    kernel=_conv_backward,
    fake=_conv_backward_fake,
    vmap=_conv_backward_vmap,
    setup_context=_setup_double_context,
    backward=_double_backward,
    jvp=_backward_jvp,
)
# As torch's own convolutions.
register_autocast("direct_conv", low=(0, 1, 2))
