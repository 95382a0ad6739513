"""The namespace ``dcls`` of torch's operators: one library for all modules that define some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

library = torch.library.Library("dcls", "DEF")


#: What casts an operator's arguments under autocast, by the operator's name.
casts: dict[str, Callable[[Sequence[Any]], list[Any]]] = {}


def register(
    name: str,
    *,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    vmap: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    jvp: Callable[[Sequence[Any], Sequence[Any]], Any] | None = None,
) -> Callable[..., Any]:
    """Implements a defined operator for CPU and CUDA.

    Args:
        name: the operator, without the namespace.
        kernel: the implementation.
        fake: the same for tensors without data.
        vmap: the batching rule, as ``torch.library.register_vmap`` takes it.
        setup_context: what to save for ``backward``.
        backward: the gradients of the arguments; None for an operator without gradients.
        jvp: takes the arguments and their tangents, and returns the tangents of the results; given
            where ``backward`` is.

    Returns:
        What calls the operator, under torch.func's transforms and in forward mode too: for these
        torch.library has no means, but an ``torch.autograd.Function`` with a separate
        setup_context does. That serves only there: the operator costs less, and is what the
        compiler sees.
    """
    qualified = f"dcls::{name}"
    kernel, fake = (_checking_masks(name, function) for function in (kernel, fake))
    for key in ("CPU", "CUDA"):
        library.impl(name, kernel, key)
    torch.library.register_fake(qualified, fake, lib=library)
    torch.library.register_vmap(qualified, vmap, lib=library)
    operator: Any = getattr(torch.ops.dcls, name)
    if setup_context is None or backward is None or jvp is None:
        return operator  # type: ignore[no-any-return]
    torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=library)
    function = _function(name, operator, vmap, setup_context, backward, jvp)

    def call(*args: Any) -> Any:
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            # Cast here, not in the operator: derivatives are those at the tensors it computes with.
            cast = casts.get(name)
            return function.apply(*(args if cast is None else cast(args)))
        return operator(*args)

    return call


def _checking_masks(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Checks the length of lists of bools, such as ``bool[3]``: torch does not."""
    arguments = getattr(torch.ops.dcls, name).default._schema.arguments
    masks = [
        (place, argument.name, argument.N)
        for place, argument in enumerate(arguments)
        if str(argument.type) == "List[bool]"
    ]
    if not masks:
        return function

    def call(*args: Any) -> Any:
        for place, mask, length in masks:
            if len(args[place]) != length:
                raise ValueError(f"{mask} must have {length} entries, got {len(args[place])}")
        return function(*args)

    return call


def _function(
    name: str,
    operator: Any,
    vmap: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    jvp: Callable[[Sequence[Any], Sequence[Any]], Any],
) -> Any:
    """Makes the autograd function of an operator."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        setup_context(ctx, inputs, output)
        ctx.save_for_forward(*(arg if isinstance(arg, Tensor) else None for arg in inputs))
        ctx.others = tuple(None if isinstance(arg, Tensor) else arg for arg in inputs)

    def tangents_of_results(ctx: Any, *tangents: Any) -> Any:
        saved = zip(ctx.saved_tensors, ctx.others, strict=True)
        # Torch turns forward mode off here, and a jvp of this jvp would silently lose a term. With
        # the tangents of this level off the tensors it can be on.
        with forward_ad._set_fwd_grad_enabled(True):
            args = [
                other if tensor is None else forward_ad.unpack_dual(tensor, level=0).primal
                for tensor, other in saved
            ]
            return jvp(args, tangents)

    members = {
        "forward": operator,
        "setup_context": setup,
        "backward": backward,
        "jvp": tangents_of_results,
        "vmap": vmap,
    }
    members = {key: staticmethod(member) for key, member in members.items()}
    return type(name, (torch.autograd.Function,), members)
