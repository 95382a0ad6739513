"""The namespace ``dcls`` of torch's operators: one library for all modules that define some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from DCLS import _backend
from DCLS._checks import check_memory, is_plain

library = torch.library.Library("dcls", "DEF")

#: What tensors of other layouts dispatch to. All of them are refused, by name of the argument.
_OTHER_LAYOUTS = (
    *("MkldnnCPU", "SparseCPU", "SparseCUDA", "SparseMeta", "SparseCsrCPU", "SparseCsrCUDA"),
    *("SparseCsrMeta", "QuantizedCPU", "QuantizedCUDA", "NestedTensorCPU", "NestedTensorCUDA"),
)


def _any_requires_grad(*args: Any) -> bool:
    return any(isinstance(value, Tensor) and value.requires_grad for value in args)


#: Whether one of the arguments is a tensor that requires a gradient. torch 2.5 does not have it.
any_requires_grad: Callable[..., bool] = getattr(torch._C, "_any_requires_grad", _any_requires_grad)


def transforms_active() -> bool:
    """Whether torch.func transforms what is called now, or forward mode is on."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_watched(device: torch.device) -> bool:
    """Whether something between the caller and the kernel wants to see or change the operator."""
    return bool(
        transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._autograd._profiler_enabled()
        or torch.is_autocast_enabled(device.type)
    )


def results_of(output: Any) -> Sequence[Any]:
    """Returns the results of an operator, which are one or several."""
    return output if isinstance(output, (tuple, list)) else (output,)


def with_checked_memory(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a kernel of the operator ``name`` that first looks whether tensors have memory."""
    arguments = getattr(torch.ops.dcls, name).default._schema.arguments
    places = [(i, a.name) for i, a in enumerate(arguments) if "Tensor" in str(a.type)]

    def checked(*args: Any) -> Any:
        for place, argument in places:
            tensor = args[place]
            if tensor is not None:
                check_memory(argument, tensor)
        return kernel(*args)

    return checked


def register(
    name: str,
    *,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    expression: Callable[..., Any],
    vmap: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    jvp: Callable[[Sequence[Any], Sequence[Any]], Any] | None = None,
) -> Any:
    """Implements a defined operator: by a kernel on native devices, by torch on others.

    Args:
        name: the operator, without the namespace.
        kernel: the implementation. It is called with arguments whose memory has been checked.
        fake: the same for tensors without data.
        expression: the same by differentiable functions of torch, on any device; called as
            ``kernel`` is.
        vmap: the batching rule, as ``torch.library.register_vmap`` takes it.
        setup_context: what to save for ``backward``.
        backward: the gradients of the arguments; None for an operator without derivatives.
        jvp: takes the arguments and their tangents, None among them, and returns the tangents of
            the results; given where ``backward`` is.

    Returns:
        The operator.
    """
    qualified = f"dcls::{name}"
    operator: Any = getattr(torch.ops.dcls, name)
    kernel = with_checked_memory(name, kernel)
    kernel, fake = (_checking_arguments(name, function) for function in (kernel, fake))
    by_torch = _checking_arguments(name, _by_torch(name, expression))
    native = [key for key in ("CPU", "CUDA") if _backend.is_native(key.lower())]
    for key in (*native, *_OTHER_LAYOUTS):
        library.impl(name, kernel, key)
    library.impl(name, by_torch, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=library)
    torch.library.register_vmap(qualified, vmap, lib=library)
    autograd = _autograd_kernel(name, operator.default, by_torch, setup_context, backward, jvp)
    library.impl(name, autograd, "Autograd", with_keyset=True)
    return operator


def _checking_arguments(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Checks what torch does not: None for a tensor, the length of lists such as ``bool[3]``."""
    arguments = getattr(torch.ops.dcls, name).default._schema.arguments
    tensors = [(i, a.name) for i, a in enumerate(arguments) if str(a.type) == "Tensor"]
    masks = [(i, a.name, a.N) for i, a in enumerate(arguments) if str(a.type) == "List[bool]"]

    def call(*args: Any) -> Any:
        for place, tensor in tensors:
            if args[place] is None:
                raise TypeError(f"{tensor} must be a Tensor, got None")
        for place, mask, length in masks:
            if len(args[place]) != length:
                raise ValueError(f"{mask} must have {length} entries, got {len(args[place])}")
        return function(*args)

    return call


def _by_torch(name: str, expression: Callable[..., Any]) -> Callable[..., Any]:
    """Returns what computes an operator where there is no native kernel."""
    checked = with_checked_memory(name, expression)

    def compute(*args: Any) -> Any:
        _backend.report(args[0].device.type)
        # Tensors that a compiler or a transform made up have no memory.
        real = all(is_plain(arg) for arg in args if isinstance(arg, Tensor))
        return (checked if real else expression)(*args)

    return compute


def _autograd_kernel(
    name: str,
    operator: Any,
    by_torch: Callable[..., Any],
    setup_context: Callable[..., None] | None,
    backward: Callable[..., Any] | None,
    jvp: Callable[[Sequence[Any], Sequence[Any]], Any] | None,
) -> Callable[..., Any]:
    """Makes what records derivatives of an operator, reverse and forward, at one level.

    torch.library.register_autograd knows no forward mode. Like the operators of torch this kernel
    serves one level: torch.func's transforms call it once for each, from the innermost outwards.
    """

    def below_autograd(keyset: Any, args: Sequence[Any]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    def is_foreign(args: Sequence[Any]) -> bool:
        first = args[0]  # the first argument of each operator is a tensor
        return isinstance(first, Tensor) and not _backend.is_native(first.device.type)

    if setup_context is None or backward is None or jvp is None:
        return lambda keyset, *args: (
            by_torch(*args) if is_foreign(args) else below_autograd(keyset, args)
        )

    # Behind the operator's arguments, a Function takes how to call the operator.
    def forward(ctx: Any, *args_and_call: Any) -> Any:
        *args, call = args_and_call
        output = call(args)
        setup_context(ctx, args, output)
        ctx.save_for_forward(*(arg if isinstance(arg, Tensor) else None for arg in args))
        ctx.others = [None if isinstance(arg, Tensor) else arg for arg in args]
        results = results_of(output)
        ctx.mark_non_differentiable(*(r for r in results if not r.is_floating_point()))
        ctx.results = [(r.shape, r.dtype, r.device) for r in results]
        return output

    def pull_back(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return (*backward(ctx, *grads), None)

    def push_forward(ctx: Any, *tangents: Any) -> Any:
        # Torch turns forward mode off here, and a jvp of this jvp would silently lose a term. With
        # the tangents of this level off the tensors it can be on.
        with forward_ad._set_fwd_grad_enabled(True):
            primals = [
                other if tensor is None else forward_ad.unpack_dual(tensor, level=0).primal
                for tensor, other in zip(ctx.saved_tensors, ctx.others, strict=True)
            ]
            pushed = jvp(primals, tangents[:-1])
        # For torch, None is no tangent of a result that may have one.
        every = tuple(
            torch.zeros(shape, dtype=dtype, device=device)
            if tangent is None and dtype.is_floating_point
            else tangent
            for tangent, (shape, dtype, device) in zip(results_of(pushed), ctx.results, strict=True)
        )
        return every if isinstance(pushed, (tuple, list)) else every[0]

    members = {"forward": forward, "backward": pull_back, "jvp": push_forward}
    function: Any = type(
        name,
        (_SingleLevelFunction,),
        {key: staticmethod(member) for key, member in members.items()},
    )

    def kernel(keyset: Any, *args: Any) -> Any:
        if is_foreign(args):
            return by_torch(*args)  # torch differentiates what it is made of
        grad = torch.is_grad_enabled()
        # A compiled graph enters forward mode by torch.func's stack, without the other mark.
        nested = torch._C._functorch.peek_interpreter_stack() is not None
        if not (nested or forward_ad._current_level >= 0 or (grad and any_requires_grad(*args))):
            return below_autograd(keyset, args)
        forward_mode = forward_ad._is_fwd_grad_enabled()

        def call(args: Sequence[Any]) -> Any:
            if not nested:
                return below_autograd(keyset, args)
            # A Function turns both off, but the levels below have derivatives of their own.
            with torch.set_grad_enabled(grad), forward_ad._set_fwd_grad_enabled(forward_mode):
                return below_autograd(keyset, args)

        with enable_single_level_autograd_function():
            return function.apply(*args, call)

    return kernel


def sum_of_channels(grad_output: Tensor) -> Tensor:
    """Returns the gradient of a bias: the sum over batch and space.

    Of a single channel torch would cut the sum among its threads, and add in another order with
    another number of them. Of two it does not.
    """
    axes = (0, *range(2, grad_output.ndim))
    if grad_output.shape[1] != 1 or not grad_output.is_cpu:
        return grad_output.sum(axes)
    return grad_output.expand(-1, 2, *grad_output.shape[2:]).sum(axes)[:1]
