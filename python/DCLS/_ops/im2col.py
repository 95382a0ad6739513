"""The operators ``dcls::im2col`` and ``dcls::im2col_backward``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from DCLS import reference
from DCLS._native import im2col as _im2col_kernels
from DCLS._ops._im2col_checks import check_gradient, check_spec
from DCLS._ops._library import library as _library
from DCLS._ops._library import register
from DCLS._ops._transforms import (
    merge,
    register_autocast,
    second_gradients,
    split,
    tangent,
    tangents_of_gradients,
    to_front,
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


# As unfold: columns serve a matrix product in autocast's dtype.
register_autocast("im2col", low=(0,), full=(1, 2))
register_autocast("im2col_backward")


# ---------------------------------------------------------------------------------------- autograd


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:3])
    ctx.rest = inputs[3:]


def _backward(ctx: Any, grad_columns: Tensor) -> tuple[Tensor | None, ...]:
    mask = list(ctx.needs_input_grad[:3])
    grads = im2col_backward(grad_columns, *ctx.saved_tensors, *ctx.rest, mask)
    wanted = (grad if needed else None for grad, needed in zip(grads, mask, strict=True))
    return (*wanted, *(None for _ in ctx.rest))


def _setup_double_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:4])
    ctx.rest = inputs[4:]


def _plain(
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    version: str,
    sigma_min: float,
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Returns the same in plain torch, as a function of the tensors."""

    def build(input: Tensor, P: Tensor, SIG: Tensor | None) -> Tensor:
        return reference.im2col(
            input,
            P,
            SIG,
            dilated_kernel_size=size,
            stride=stride,
            padding=padding,
            version=version,
            sigma_min=None if SIG is None else sigma_min,
        )

    return build


def _double_backward(ctx: Any, *grad_grads: Tensor) -> tuple[Tensor | None, ...]:
    *spec, mask = ctx.rest
    grad_columns, *primals = ctx.saved_tensors
    grads = second_gradients(_plain(*spec), primals, mask, grad_columns, grad_grads)
    return (*grads, *(None for _ in ctx.rest))


def _jvp(args: Sequence[Any], tangents: Sequence[Tensor | None]) -> Tensor:
    return tangent(_plain(*args[3:]), args[:3], tangents[:3])


def _backward_jvp(args: Sequence[Any], tangents: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    grad_columns, *primals = args[:4]
    *spec, mask = args[4:]
    return tangents_of_gradients(_plain(*spec), primals, mask, grad_columns, tangents[:4])


# -------------------------------------------------------------------------------------------- vmap


def _im2col_vmap(
    info: Any,
    in_dims: tuple[int | None, ...],
    input: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, int]:
    """The copies are channels of one problem."""
    batch = info.batch_size
    tensors = (
        merge(to_front(tensor, dim, batch), 1)
        for tensor, dim in zip((input, P, SIG), in_dims[:3], strict=True)
    )
    return split(im2col(*tensors, *rest), 1, batch), 0


def _im2col_backward_vmap(
    info: Any, in_dims: tuple[int | None, ...], *args: Any
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    batch = info.batch_size
    tensors = (
        merge(to_front(tensor, dim, batch), 1)
        for tensor, dim in zip(args[:4], in_dims[:4], strict=True)
    )
    grads = im2col_backward(*tensors, *args[4:])
    mask = [
        wanted and tensor is not None for wanted, tensor in zip(args[-1], args[1:4], strict=True)
    ]
    return (
        tuple(split(g, 1, batch) if wanted else g for g, wanted in zip(grads, mask, strict=True)),
        tuple(0 if wanted else None for wanted in mask),
    )


im2col = register(
    "im2col",
    kernel=_im2col,
    fake=_im2col_fake,
    vmap=_im2col_vmap,
    setup_context=_setup_context,
    backward=_backward,
    jvp=_jvp,
)
im2col_backward = register(
    "im2col_backward",
    kernel=_im2col_backward,
    fake=_im2col_backward_fake,
    vmap=_im2col_backward_vmap,
    setup_context=_setup_double_context,
    backward=_double_backward,
    jvp=_backward_jvp,
)
