"""The operators ``dcls::construct_kernel``, its ``_backward``, and ``dcls::construct_support``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from DCLS import reference
from DCLS._checks import (
    MAX_AXIS_SIZE,
    check_dtype,
    check_like,
    check_version,
    check_widths,
)
from DCLS._native import dense as _kernels
from DCLS._ops._library import library, register
from DCLS._ops._transforms import (
    register_autocast,
    second_gradients,
    tangent,
    tangents_of_gradients,
    to_front,
)

__all__ = ["construct_kernel", "construct_kernel_backward", "construct_support"]

library.define(
    "construct_kernel(Tensor weight, Tensor P, Tensor? SIG, SymInt[] dilated_kernel_size, "
    "str version, float sigma_min) -> Tensor"
)
library.define(
    "construct_kernel_backward(Tensor grad_kernel, Tensor weight, Tensor P, Tensor? SIG, "
    "SymInt[] dilated_kernel_size, str version, float sigma_min, bool[3] output_mask) "
    "-> (Tensor, Tensor, Tensor)"
)
library.define(
    "construct_support(Tensor P, Tensor? SIG, SymInt[] dilated_kernel_size, str version, "
    "float sigma_min) -> Tensor"
)


def _check_grid(
    name: str,
    tensor: Tensor,
    SIG: Tensor | None,
    size: Sequence[int],
    version: str,
    sigma_min: float,
) -> None:
    """Checks what does not depend on shapes; ``tensor``, called ``name``, sets the dtype."""
    check_version(version)
    if not 1 <= len(size) <= 3:
        raise ValueError(
            f"dilated_kernel_size must have 1 to 3 entries, one a learnable axis, got {len(size)}"
        )
    for length in size:
        if not 1 <= length <= MAX_AXIS_SIZE:
            raise ValueError(
                f"dilated_kernel_size must have entries between 1 and 2**24, got {tuple(size)}"
            )
    check_dtype(name, tensor)
    check_widths(SIG, version, sigma_min)


def _check_construct(
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    size: Sequence[int],
    version: str,
    sigma_min: float,
) -> None:
    _check_grid("weight", weight, SIG, size, version, sigma_min)
    if weight.ndim < 1:
        raise ValueError("weight must have shape (..., kernel_count), got a scalar")
    expected = (len(size), *weight.shape)
    for name, tensor in (("P", P), ("SIG", SIG)):
        if tensor is None:
            continue
        if tuple(tensor.shape) != expected:
            raise ValueError(
                f"{name} must have shape (axes, *weight.shape) = {expected}, "
                f"got {tuple(tensor.shape)}"
            )
        check_like(name, tensor, "weight", weight)


def _check_support(
    P: Tensor, SIG: Tensor | None, size: Sequence[int], version: str, sigma_min: float
) -> None:
    _check_grid("P", P, SIG, size, version, sigma_min)
    if P.ndim < 2 or P.shape[0] != len(size):
        raise ValueError(
            f"P must have shape (axes, ..., kernel_count) with {len(size)} axes, "
            f"got {tuple(P.shape)}"
        )
    if SIG is not None:
        if SIG.shape != P.shape:
            raise ValueError(
                f"SIG must have the shape of P, {tuple(P.shape)}, got {tuple(SIG.shape)}"
            )
        check_like("SIG", SIG, "P", P)


def _check_backward(grad_kernel: Tensor, weight: Tensor, size: Sequence[int]) -> None:
    expected = (*weight.shape[:-1], *size)
    if tuple(grad_kernel.shape) != expected:
        raise ValueError(
            f"grad_kernel must have shape (*weight.shape[:-1], *dilated_kernel_size) = {expected}, "
            f"got {tuple(grad_kernel.shape)}"
        )
    check_like("grad_kernel", grad_kernel, "weight", weight)


# ---------------------------------------------------------------------------------- kernels, fakes


def _construct(
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    dilated_kernel_size: Sequence[int],
    version: str,
    sigma_min: float,
) -> Tensor:
    _check_construct(weight, P, SIG, dilated_kernel_size, version, sigma_min)
    return _kernels.construct(weight, P, SIG, dilated_kernel_size, version, sigma_min)


def _construct_fake(
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    dilated_kernel_size: Sequence[int],
    version: str,
    sigma_min: float,
) -> Tensor:
    _check_construct(weight, P, SIG, dilated_kernel_size, version, sigma_min)
    return weight.new_empty((*weight.shape[:-1], *dilated_kernel_size))


def _construct_backward(
    grad_kernel: Tensor,
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    dilated_kernel_size: Sequence[int],
    version: str,
    sigma_min: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    _check_construct(weight, P, SIG, dilated_kernel_size, version, sigma_min)
    _check_backward(grad_kernel, weight, dilated_kernel_size)
    grads = _kernels.construct_backward(
        grad_kernel, weight, P, SIG, dilated_kernel_size, version, sigma_min, output_mask
    )
    first, second, third = (weight.new_empty(0) if grad is None else grad for grad in grads)
    return first, second, third


def _construct_backward_fake(
    grad_kernel: Tensor,
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    dilated_kernel_size: Sequence[int],
    version: str,
    sigma_min: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    _check_construct(weight, P, SIG, dilated_kernel_size, version, sigma_min)
    _check_backward(grad_kernel, weight, dilated_kernel_size)
    first, second, third = (
        weight.new_empty(tensor.shape if wanted and tensor is not None else 0)
        for tensor, wanted in zip((weight, P, SIG), output_mask, strict=True)
    )
    return first, second, third


def _support(
    P: Tensor,
    SIG: Tensor | None,
    dilated_kernel_size: Sequence[int],
    version: str,
    sigma_min: float,
) -> Tensor:
    _check_support(P, SIG, dilated_kernel_size, version, sigma_min)
    return _kernels.construct_support(P, SIG, dilated_kernel_size, version, sigma_min)


def _support_fake(
    P: Tensor,
    SIG: Tensor | None,
    dilated_kernel_size: Sequence[int],
    version: str,
    sigma_min: float,
) -> Tensor:
    _check_support(P, SIG, dilated_kernel_size, version, sigma_min)
    return P.new_empty((*P.shape[1:-1], *dilated_kernel_size), dtype=torch.bool)


# ---------------------------------------------------------------------------------------- autograd


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    weight, P, SIG, size, version, sigma_min = inputs
    ctx.save_for_backward(weight, P, SIG)
    ctx.rest = (size, version, sigma_min)


def _backward(ctx: Any, grad_kernel: Tensor) -> tuple[Tensor | None, ...]:
    weight, P, SIG = ctx.saved_tensors
    mask = list(ctx.needs_input_grad[:3])
    grads = construct_kernel_backward(grad_kernel, weight, P, SIG, *ctx.rest, mask)
    wanted = (grad if needed else None for grad, needed in zip(grads, mask, strict=True))
    return (*wanted, None, None, None)


def _setup_double_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
    grad_kernel, weight, P, SIG, size, version, sigma_min, mask = inputs
    ctx.save_for_backward(grad_kernel, weight, P, SIG)
    ctx.rest = (size, version, sigma_min, mask)


def _plain(
    size: Sequence[int], version: str, sigma_min: float
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Returns the same in plain torch, as a function of the tensors."""

    def build(weight: Tensor, P: Tensor, SIG: Tensor | None) -> Tensor:
        return reference.construct_kernel(
            weight,
            P,
            SIG,
            dilated_kernel_size=size,
            version=version,
            sigma_min=None if SIG is None else sigma_min,
        )

    return build


def _double_backward(ctx: Any, *grad_grads: Tensor) -> tuple[Tensor | None, ...]:
    *spec, mask = ctx.rest
    grad_kernel, *primals = ctx.saved_tensors
    grads = second_gradients(_plain(*spec), primals, mask, grad_kernel, grad_grads)
    return (*grads, None, None, None, None)


def _jvp(args: Sequence[Any], tangents: Sequence[Tensor | None]) -> Tensor:
    return tangent(_plain(*args[3:]), args[:3], tangents[:3])


def _backward_jvp(args: Sequence[Any], tangents: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    grad_kernel, *primals = args[:4]
    *spec, mask = args[4:]
    return tangents_of_gradients(_plain(*spec), primals, mask, grad_kernel, tangents[:4])


# -------------------------------------------------------------------------------------------- vmap


def _construct_vmap(
    info: Any,
    in_dims: tuple[int | None, ...],
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, int]:
    """A batch is one more leading dimension of the rows."""
    weight_, P_, SIG_ = (
        to_front(tensor, dim, info.batch_size, at)
        for tensor, dim, at in zip((weight, P, SIG), in_dims[:3], (0, 1, 1), strict=True)
    )
    return construct_kernel(weight_, P_, SIG_, *rest), 0


def _construct_backward_vmap(
    info: Any,
    in_dims: tuple[int | None, ...],
    grad_kernel: Tensor,
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    *rest: Any,
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    tensors = (grad_kernel, weight, P, SIG)
    batched = (
        to_front(tensor, dim, info.batch_size, at)
        for tensor, dim, at in zip(tensors, in_dims[:4], (0, 0, 1, 1), strict=True)
    )
    grads = construct_kernel_backward(*batched, *rest)
    return tuple(grads), tuple(
        at if wanted else None for at, wanted in zip((0, 1, 1), rest[-1], strict=True)
    )


def _support_vmap(
    info: Any, in_dims: tuple[int | None, ...], P: Tensor, SIG: Tensor | None, *rest: Any
) -> tuple[Tensor, int]:
    P_, SIG_ = (
        to_front(tensor, dim, info.batch_size, 1)
        for tensor, dim in zip((P, SIG), in_dims[:2], strict=True)
    )
    return construct_support(P_, SIG_, *rest), 0


# ------------------------------------------------------------------------------------ registration

construct_kernel = register(
    "construct_kernel",
    kernel=_construct,
    fake=_construct_fake,
    vmap=_construct_vmap,
    setup_context=_setup_context,
    backward=_backward,
    jvp=_jvp,
)
construct_kernel_backward = register(
    "construct_kernel_backward",
    kernel=_construct_backward,
    fake=_construct_backward_fake,
    vmap=_construct_backward_vmap,
    setup_context=_setup_double_context,
    backward=_double_backward,
    jvp=_backward_jvp,
)
_construct_support = register(
    "construct_support", kernel=_support, fake=_support_fake, vmap=_support_vmap
)
register_autocast("construct_kernel", full=(0, 1, 2))
register_autocast("construct_support", full=(0, 1))


def construct_support(P: Tensor | None, SIG: Tensor | None, *rest: Any) -> Any:
    """Calls ``dcls::construct_support``, which has no gradient: marks do not move by degrees."""
    P, SIG = (None if tensor is None else tensor.detach() for tensor in (P, SIG))
    return _construct_support(P, SIG, *rest)
