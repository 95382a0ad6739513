"""What the operators share: autocast by argument, derivatives by plain torch, batching."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from DCLS._ops._library import casts, library

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

    def cast(args: Sequence[Any]) -> list[Any]:
        return [
            arg.to(torch.get_autocast_dtype(arg.device.type) if place in low else torch.float32)
            if (place in low or place in full)
            and isinstance(arg, Tensor)
            and arg.is_floating_point()
            and arg.device.type in _AUTOCAST
            and torch.is_autocast_enabled(arg.device.type)
            and arg.dtype != torch.float64
            else arg
            for place, arg in enumerate(args)
        ]

    def register(device: str, key: torch._C.DispatchKey) -> None:
        def kernel(*args: Any) -> Any:
            cast_args = cast(args)
            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
                return operator(*cast_args)

        library.impl(name, kernel, f"Autocast{device.upper()}")

    for device, key in _AUTOCAST.items():
        register(device, key)
    if low or full:
        casts[name] = cast


def _of_present(build: Callable[..., Tensor], present: Sequence[bool]) -> Callable[..., Tensor]:
    """Returns ``build`` as a function of the arguments that are present.

    Like the operators, it computes tensors of 16 bits in float32; the first has the result's dtype.
    """

    def of_present(*tensors: Tensor) -> Tensor:
        given = (tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors)
        return build(*(next(given) if p else None for p in present)).to(tensors[0].dtype)

    return of_present


def _gradients(
    build: Callable[..., Tensor], present: Sequence[bool], mask: Sequence[bool]
) -> Callable[..., tuple[Tensor, ...]]:
    """Returns what computes the gradients of ``build`` that ``mask`` asks for.

    It takes the gradient of the result of ``build`` and those of its arguments that are present.
    """

    def gradients(grad_output: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        pullback = torch.func.vjp(_of_present(build, present), *tensors)[1]
        grads = iter(pullback(grad_output))
        every = [next(grads) if p else None for p in present]
        return tuple(g for g, wanted in zip(every, mask, strict=True) if wanted and g is not None)

    return gradients


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
    tensors = [tensor for tensor in primals if tensor is not None]
    pullback: Any
    outputs: Any
    with torch._C._DisableAutocast():
        outputs, pullback, *_ = torch.func.vjp(
            _gradients(build, present, mask), grad_output, *tensors
        )
        chosen = [g for g, wanted, p in zip(grad_grads, mask, present, strict=True) if wanted and p]
        cotangents = tuple(
            torch.zeros_like(out) if g is None else g.to(out.dtype)
            for g, out in zip(chosen, outputs, strict=True)
        )
        second = iter(pullback(cotangents))
    grads: list[Tensor | None] = [next(second), *(next(second) if p else None for p in present)]
    return tuple(grads)


def tangent(
    build: Callable[..., Tensor],
    primals: Sequence[Tensor | None],
    tangents: Sequence[Tensor | None],
) -> Tensor:
    """Pushes tangents forward through ``build``, a function in plain torch.

    Args:
        build: takes the primals, None among them.
        primals: arguments of ``build``.
        tangents: those of the primals; None where these are.

    Returns:
        The tangent of the result of ``build``.
    """
    plain = _of_present(build, [tensor is not None for tensor in primals])
    return _push_forward(lambda *tensors: (plain(*tensors),), primals, tangents)[0]


def tangents_of_gradients(
    build: Callable[..., Tensor],
    primals: Sequence[Tensor | None],
    mask: Sequence[bool],
    grad_output: Tensor,
    tangents: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:
    """Pushes tangents forward through the gradients of ``build``.

    Args:
        build: takes the primals, None among them.
        primals: arguments of ``build``.
        mask: which of their gradients were asked for.
        grad_output: the gradient of the result of ``build``, which gave those gradients.
        tangents: those of ``grad_output`` and of the primals; None where these are.

    Returns:
        The tangents of the gradients of each primal; empty where there is no such gradient.
    """
    present = [tensor is not None for tensor in primals]
    pushed = iter(
        _push_forward(_gradients(build, present, mask), (grad_output, *primals), tangents)
    )
    return tuple(
        next(pushed) if wanted and p else grad_output.new_empty(0)
        for wanted, p in zip(mask, present, strict=True)
    )


def _push_forward(
    function: Callable[..., tuple[Tensor, ...]],
    primals: Sequence[Tensor | None],
    tangents: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:
    """Returns the tangents of the results of ``function``, which takes the primals not None.

    In reverse mode, since forward modes do not nest: pulling back is linear, and its own pullback,
    wherever it is taken, pushes forward.
    """
    tensors = [tensor for tensor in primals if tensor is not None]

    def pull_back(*cotangents: Tensor) -> tuple[Tensor, ...]:
        pulled: tuple[Tensor, ...] = torch.func.vjp(function, *tensors)[1](cotangents)
        return pulled

    with torch._C._DisableAutocast():
        somewhere = [torch.zeros_like(result) for result in function(*tensors)]
        push: Any = torch.func.vjp(pull_back, *somewhere)[1]
        pushed: tuple[Tensor, ...] = push(tuple(t for t in tangents if t is not None))
    return pushed


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
    """The converse of ``merge``: the copies come first again."""
    copies = (batch, tensor.shape[at] // batch)
    apart = tensor.reshape(*tensor.shape[:at], *copies, *tensor.shape[at + 1 :])
    return apart.movedim(at, 0)
