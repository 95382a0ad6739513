"""The operators ``dcls::construct_kernel``, its ``_backward``, and ``dcls::construct_support``."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from DCLS._backend import is_native, report
from DCLS._checks import (
    MAX_AXIS_SIZE,
    check_dtype,
    check_like,
    check_version,
    check_widths,
    is_plain,
)
from DCLS._native import dense as _kernels
from DCLS._ops import _expressions
from DCLS._ops._batching import Batching, batching_rule
from DCLS._ops._library import is_watched, library, register
from DCLS._ops._transforms import (
    computed_wide,
    derivatives_by,
    gradients_of,
    register_autocast,
    tangents_by,
)

__all__ = ["call_construct", "construct_kernel", "construct_kernel_backward", "construct_support"]

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
    if len(weight.shape) < 1:
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


def _construct_by_torch(weight: Tensor, *rest: Any) -> Tensor:
    _check_construct(weight, *rest)
    return _expressions.construct_kernel(weight, *rest)


def _construct_backward_by_torch(
    grad_kernel: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    _check_construct(weight, *rest[:-1])
    _check_backward(grad_kernel, weight, rest[2])
    gradients: tuple[Tensor, ...] = gradients_of(_expressions.construct_kernel, 3)(
        grad_kernel, weight, *rest
    )
    return gradients


def _support_by_torch(*args: Any) -> Tensor:
    _check_support(*args)
    return _expressions.construct_support(*args)


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


_wide = computed_wide(_expressions.construct_kernel)

# ------------------------------------------------------------------------------------ registration

construct_kernel = torch.ops.dcls.construct_kernel
construct_kernel_backward = torch.ops.dcls.construct_kernel_backward
#: It has no derivatives: marks do not move by degrees.
construct_support = torch.ops.dcls.construct_support

# A batch is one more leading dimension of the rows.
register(
    "construct_kernel",
    kernel=_construct,
    fake=_construct_fake,
    expression=_construct_by_torch,
    vmap=batching_rule(construct_kernel, Batching((0, 1, 1), (0,), merged=False)),
    setup_context=_setup_context,
    backward=_backward,
    jvp=tangents_by(_wide),
)
register(
    "construct_kernel_backward",
    kernel=_construct_backward,
    fake=_construct_backward_fake,
    expression=_construct_backward_by_torch,
    vmap=batching_rule(
        construct_kernel_backward, Batching((0, 0, 1, 1), (0, 1, 1), (1, 2, 3), merged=False)
    ),
    **derivatives_by(gradients_of(_wide, 3)),
)
register(
    "construct_support",
    kernel=_support,
    fake=_support_fake,
    expression=_support_by_torch,
    vmap=batching_rule(construct_support, Batching((1, 1), (0,), merged=False)),
)
register_autocast("construct_kernel", full=(0, 1, 2))
register_autocast("construct_support", full=(0, 1))


class _Form(NamedTuple):
    """What the checks read of a tensor, so that they can be remembered."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


@functools.lru_cache(maxsize=1024)  # a layer is built with the same few shapes over and over
def _check_once(
    weight: tuple[Any, ...], P: tuple[Any, ...], SIG: tuple[Any, ...] | None, *rest: Any
) -> None:
    check: Any = _check_construct  # it reads no more of a tensor than a form has
    check(*(None if form is None else _Form(*form) for form in (weight, P, SIG)), *rest)


def call_construct(weight: Tensor, P: Tensor, SIG: Tensor | None, *rest: Any) -> Tensor:
    """Calls ``dcls::construct_kernel``.

    Torch expressions do without torch's dispatcher, where nothing else watches it: it costs as much
    as a few of their calls.
    """
    device = weight.device
    if (
        is_native(device.type)
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or not (is_plain(weight) and weight.data_ptr() and is_plain(P) and P.data_ptr())
        or not (SIG is None or (is_plain(SIG) and SIG.data_ptr()))
        or is_watched(device)
    ):
        kernel: Tensor = construct_kernel(weight, P, SIG, *rest)
        return kernel
    report(device.type)
    size, *numbers = rest
    widths = None if SIG is None else (SIG.shape, SIG.dtype, SIG.device)
    _check_once(
        (weight.shape, weight.dtype, device),
        (P.shape, P.dtype, P.device),
        widths,
        tuple(size),
        *numbers,
    )
    return _expressions.construct_kernel_without_autocast(weight, P, SIG, *rest)
