"""What the operators share: autocast by argument, and derivatives by plain torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._functorch.eager_transforms import enable_inplace_requires_grad
from torch.autograd import forward_ad

from DCLS._ops._library import any_requires_grad, library, results_of

Given = ParamSpec("Given")
Grads = TypeVar("Grads")

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


def without_autocast(backward: Callable[Given, Grads]) -> Callable[Given, Grads]:
    """Returns a backward pass in the dtypes of its forward pass, whatever surrounds it."""

    @functools.wraps(backward)
    def exact(*args: Given.args, **more: Given.kwargs) -> Grads:
        with torch._C._DisableAutocast():
            return backward(*args, **more)

    return exact


# ----------------------------------------------------------------------- derivatives by plain torch
#
# Forward mode calls these within the kernel of one level of torch.func's transforms, where another
# transform cannot start: so they are made of torch's operators, dual tensors and autograd.grad.

#: The same as an operator, in operators that have derivatives themselves.
Plain = Callable[..., Any]


def computed_wide(build: Plain) -> Plain:
    """Returns ``build`` with tensors of 16 bits computed in float32, as the operators do.

    The first argument, a tensor, has the result's dtype.
    """

    def wide(*args: Any) -> Tensor:
        # Within a level of torch.func, autocast cannot be turned off for the levels below. It
        # leaves float64 alone.
        nested = torch._C._functorch.peek_interpreter_stack() is not None
        least = torch.float64 if nested else torch.float32
        result: Tensor = build(
            *(
                arg.to(torch.promote_types(arg.dtype, least)) if isinstance(arg, Tensor) else arg
                for arg in args
            )
        )
        return result.to(args[0].dtype)

    return wide


def _branch(tensor: Tensor) -> Tensor:
    """Returns a view of its own.

    Derivatives by it are partial ones, even where the tensors of an operator depend on each other.
    """
    view = tensor.view_as(tensor)
    if not view.requires_grad:
        with enable_inplace_requires_grad(True):
            view.requires_grad_()
    return view


def gradients_of(build: Plain, count: int) -> Plain:
    """Returns what computes the gradients of ``build``, with derivatives of its own.

    It takes the gradient of the result of ``build``, the arguments of ``build``, and a mask. It
    returns the gradients of the first ``count`` arguments; empty where the mask or the argument
    says that there is none.
    """

    def gradients(grad_output: Tensor, *args: Any) -> tuple[Tensor, ...]:
        *args_of_build, mask = args
        primals = args_of_build[:count]
        # Under torch.func a level with gradients off has them off in all levels below.
        create_graph = torch.is_grad_enabled() and (
            torch._C._functorch.peek_interpreter_stack() is not None
            or any_requires_grad(grad_output, *primals)
        )
        with torch.enable_grad():
            branches = [
                _branch(tensor) if tensor is not None and wanted else tensor
                for tensor, wanted in zip(primals, mask, strict=True)
            ]
            by = [b for b, wanted in zip(branches, mask, strict=True) if wanted and b is not None]
            result = build(*branches, *args_of_build[count:])
            grads = iter(_grad((result,), by, (grad_output,), create_graph))
        return tuple(
            next(grads) if wanted and tensor is not None else grad_output.new_empty(0)
            for tensor, wanted in zip(primals, mask, strict=True)
        )

    return gradients


def _grad(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    create_graph: bool,
) -> Sequence[Tensor]:
    """As torch.autograd.grad, with zeros where nothing depends on an input."""
    pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    if not inputs or not pairs:
        return [torch.zeros_like(tensor) for tensor in inputs]
    outputs, cotangents = zip(*pairs, strict=True)
    return torch.autograd.grad(
        outputs, inputs, cotangents, create_graph=create_graph, materialize_grads=True
    )


def derivatives_by(plain: Plain) -> dict[str, Any]:
    """Returns what ``register`` takes for an operator whose derivatives are those of ``plain``.

    Rare, so simple before fast. ``plain`` returns what the operator returns, or None for a result
    without derivatives.
    """

    def setup_context(ctx: Any, inputs: Sequence[Any], output: Any) -> None:  # noqa: ARG001
        ctx.save_for_backward(*(arg if isinstance(arg, Tensor) else None for arg in inputs))
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad(), torch._C._DisableAutocast():
            args = [
                other if tensor is None else tensor
                for tensor, other in zip(ctx.saved_tensors, ctx.others, strict=True)
            ]
            needs = ctx.needs_input_grad[: len(args)]
            args = [_branch(a) if need else a for a, need in zip(args, needs, strict=True)]
            pairs = [
                (result, cotangent.to(result.dtype))
                for result, cotangent in zip(results_of(plain(*args)), cotangents, strict=True)
                if result is not None and cotangent is not None
            ]
            by = [arg for arg, need in zip(args, needs, strict=True) if need]
            grads = iter(
                _grad(
                    [r for r, _ in pairs], by, [cotangent for _, cotangent in pairs], create_graph
                )
            )
        return tuple(next(grads) if need else None for need in needs)

    return {"setup_context": setup_context, "backward": backward, "jvp": tangents_by(plain)}


def tangents_by(plain: Plain) -> Callable[[Sequence[Any], Sequence[Any]], Any]:
    """Returns the ``jvp`` that ``register`` takes, whose tangents are those of ``plain``."""

    def dual(primal: Any, tangent: Tensor | None) -> Any:
        if tangent is None or not primal.is_floating_point():
            return primal
        # Torch gives the tangent the strides of the primal, which must then not be expanded.
        return forward_ad.make_dual(primal.contiguous(), tangent, level=0)

    def jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
        with torch._C._DisableAutocast():
            results = plain(*map(dual, primals, tangents))
        pushed = tuple(
            None if result is None else forward_ad.unpack_dual(result, level=0).tangent
            for result in results_of(results)
        )
        return pushed if isinstance(results, (tuple, list)) else pushed[0]

    return jvp
