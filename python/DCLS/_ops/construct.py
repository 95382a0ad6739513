"""The operators ``dcls::construct_kernel``, its ``_backward``, and ``dcls::construct_support``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from DCLS import _kernels, reference
from DCLS._ops._library import library, register
from DCLS._spec import SIGMA_VERSIONS, check_version, resolve_sigma_min

__all__ = ["construct_kernel", "construct_kernel_backward", "construct_support"]

_MAX_AXIS_SIZE = 1 << 24

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
        if not 1 <= length <= _MAX_AXIS_SIZE:
            raise ValueError(
                f"dilated_kernel_size must have entries between 1 and 2**24, got {tuple(size)}"
            )
    if tensor.dtype not in _kernels.DTYPES:
        takes = ", ".join(sorted(str(dtype) for dtype in _kernels.DTYPES))
        raise TypeError(f"{name} must have a dtype out of {takes}, got {tensor.dtype}")
    has_sigma = version in SIGMA_VERSIONS
    if has_sigma and SIG is None:
        raise ValueError(f"SIG must be given for version {version!r}, got None")
    if not has_sigma and SIG is not None:
        raise ValueError(f"SIG must be None for version {version!r}, which has no widths")
    if has_sigma:
        resolve_sigma_min(version, sigma_min)


def _check_like(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.dtype != other.dtype:
        raise TypeError(
            f"{name} must have the dtype of {other_name}, {other.dtype}, got {tensor.dtype}"
        )
    if tensor.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name}, {other.device}, got {tensor.device}"
        )


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
        _check_like(name, tensor, "weight", weight)


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
        _check_like("SIG", SIG, "P", P)


def _check_backward(grad_kernel: Tensor, weight: Tensor, size: Sequence[int]) -> None:
    expected = (*weight.shape[:-1], *size)
    if tuple(grad_kernel.shape) != expected:
        raise ValueError(
            f"grad_kernel must have shape (*weight.shape[:-1], *dilated_kernel_size) = {expected}, "
            f"got {tuple(grad_kernel.shape)}"
        )
    _check_like("grad_kernel", grad_kernel, "weight", weight)


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


def _double_backward(ctx: Any, *grad_grads: Tensor) -> tuple[Tensor | None, ...]:
    """Second derivatives, by differentiating the reference: rare, so simple before fast."""
    size, version, sigma_min, mask = ctx.rest
    grad_kernel, *primals = ctx.saved_tensors
    present = [tensor is not None for tensor in primals]

    def first_gradients(grad_kernel: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        def build(*tensors: Tensor) -> Tensor:
            given = iter(tensors)
            weight, P, SIG = (next(given) if p else None for p in present)
            assert weight is not None
            assert P is not None
            return reference.construct_kernel(
                weight,
                P,
                SIG,
                dilated_kernel_size=size,
                version=version,
                sigma_min=sigma_min if SIG is not None else None,
            )

        grads = iter(torch.func.vjp(build, *tensors)[1](grad_kernel))
        every = [next(grads) if p else None for p in present]
        return tuple(g for g, wanted in zip(every, mask, strict=True) if wanted and g is not None)

    tensors = [tensor for tensor in primals if tensor is not None]
    cotangents = tuple(
        g for g, wanted, p in zip(grad_grads, mask, present, strict=True) if wanted and p
    )
    pullback: Any = torch.func.vjp(first_gradients, grad_kernel, *tensors)[1]
    second = iter(pullback(cotangents))
    grads = [next(second), *(next(second) if p else None for p in present)]
    return (*grads, None, None, None, None)


# -------------------------------------------------------------------------------------------- vmap


def _to_front(tensor: Tensor | None, dim: int | None, batch: int, at: int) -> Tensor | None:
    """Moves the batch dimension to ``at``, or makes one."""
    if tensor is None:
        return None
    if dim is None:
        return tensor.unsqueeze(at).expand(*tensor.shape[:at], batch, *tensor.shape[at:])
    return tensor.movedim(dim, at)


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
        _to_front(tensor, dim, info.batch_size, at)
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
        _to_front(tensor, dim, info.batch_size, at)
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
        _to_front(tensor, dim, info.batch_size, 1)
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
)
construct_kernel_backward = register(
    "construct_kernel_backward",
    kernel=_construct_backward,
    fake=_construct_backward_fake,
    vmap=_construct_backward_vmap,
    setup_context=_setup_double_context,
    backward=_double_backward,
)
_construct_support = register(
    "construct_support", kernel=_support, fake=_support_fake, vmap=_support_vmap
)
# Positions need float32: bfloat16 resolves a position of 8 grid steps to 1/16 of a step only.
for _device in ("cpu", "cuda"):
    for _name in ("construct_kernel", "construct_support"):
        torch.library.register_autocast(f"dcls::{_name}", _device, torch.float32, lib=library)


def construct_support(P: Tensor | None, SIG: Tensor | None, *rest: Any) -> Any:
    """Calls ``dcls::construct_support``, which has no gradient: marks do not move by degrees."""
    P, SIG = (None if tensor is None else tensor.detach() for tensor in (P, SIG))
    return _construct_support(P, SIG, *rest)
