"""The operators ``dcls::im2col`` and ``dcls::im2col_backward``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from DCLS import reference
from DCLS._checks import (
    MAX_AXIS_SIZE,
    check_device,
    check_dtype,
    check_like,
    check_version,
    check_widths,
)
from DCLS._native import im2col as _im2col_kernels
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
