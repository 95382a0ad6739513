"""What the operators share: autocast by argument, second derivatives, batching."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from DCLS._ops._library import library

_AUTOCAST = {"cpu": torch._C.DispatchKey.AutocastCPU, "cuda": torch._C.DispatchKey.AutocastCUDA}


def register_autocast(name: str, low: Sequence[int] = (), full: Sequence[int] = ()) -> None:
    """Casts the arguments of an operator under autocast, which torch.library can do to all alike.

    Args:
        name: the operator's name within ``dcls``.
        low: places of the arguments that become autocast's dtype.
        full: places of those that become float32: positions. bfloat16 resolves a position of 8 grid
            steps to 1/16 of a step only.

    float64 stays what it is, as torch's own rules have it.
    """
    operator = getattr(torch.ops.dcls, name)

    def register(device: str, key: torch._C.DispatchKey) -> None:
        def kernel(*args: Any) -> Any:
            places = dict.fromkeys(low, torch.get_autocast_dtype(device))
            places |= dict.fromkeys(full, torch.float32)
            cast = [
                arg.to(places[place])
                if place in places
                and isinstance(arg, Tensor)
                and arg.is_floating_point()
                and arg.device.type == device
                and arg.dtype != torch.float64
                else arg
                for place, arg in enumerate(args)
            ]
            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
                return operator(*cast)

        library.impl(name, kernel, f"Autocast{device.upper()}")

    for device, key in _AUTOCAST.items():
        register(device, key)


def second_gradients(
    build: Callable[..., Tensor],
    primals: Sequence[Tensor | None],
    mask: Sequence[bool],
    grad_output: Tensor,
    grad_grads: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Differentiates the gradients of ``build``, a function in plain torch.

    Rare, so simple before fast.

    Args:
        build: takes the primals, None among them.
        primals: arguments of ``build``.
        mask: which of their gradients were asked for.
        grad_output: the gradient of the result of ``build``, which gave those gradients.
        grad_grads: the gradients of those gradients.

    Returns:
        The gradients of ``grad_output`` and of each primal; None where that is None.
    """
    present = [tensor is not None for tensor in primals]

    def first_gradients(grad_output: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        def of_present(*tensors: Tensor) -> Tensor:
            given = iter(tensors)
            return build(*(next(given) if p else None for p in present))

        grads = iter(torch.func.vjp(of_present, *tensors)[1](grad_output))
        every = [next(grads) if p else None for p in present]
        return tuple(g for g, wanted in zip(every, mask, strict=True) if wanted and g is not None)

    tensors = [tensor for tensor in primals if tensor is not None]
    pullback: Any
    outputs: Any
    outputs, pullback, *_ = torch.func.vjp(first_gradients, grad_output, *tensors)
    chosen = [g for g, wanted, p in zip(grad_grads, mask, present, strict=True) if wanted and p]
    cotangents = tuple(
        torch.zeros_like(out) if g is None else g.to(out.dtype)
        for g, out in zip(chosen, outputs, strict=True)
    )
    second = iter(pullback(cotangents))
    grads: list[Tensor | None] = [next(second), *(next(second) if p else None for p in present)]
    return tuple(grads)


def to_front(tensor: Tensor | None, dim: int | None, batch: int, at: int = 0) -> Tensor | None:
    """Moves the dimension that vmap added to the front, or to ``at``, or makes one there."""
    if tensor is None:
        return None
    if dim is None:
        return tensor.unsqueeze(at).expand(*tensor.shape[:at], batch, *tensor.shape[at:])
    return tensor.movedim(dim, at)


def merge(tensor: Tensor | None, at: int) -> Tensor | None:
    """Makes one dimension of the first and the ``at``-th of the others: copies come one by one."""
    return None if tensor is None else tensor.movedim(0, at).flatten(at, at + 1)


def split(tensor: Tensor, at: int, batch: int) -> Tensor:
    """The converse of :func:`merge`: the copies come first again."""
    copies = (batch, tensor.shape[at] // batch)
    apart = tensor.reshape(*tensor.shape[:at], *copies, *tensor.shape[at + 1 :])
    return apart.movedim(at, 0)
