"""The operators ``dcls::layer`` and ``dcls::layer_backward``: a whole layer in one call each way.

They compute what ``construct_kernel`` and ``direct_conv`` compute one after the other. Derivatives
beyond the first, forward mode and torch.func's transforms take that road.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from DCLS._backend import is_native
from DCLS._checks import check_like, is_plain
from DCLS._native import layer as _native
from DCLS._native.layer import Spec
from DCLS._ops._batching import no_copies, one_by_one, one_copy
from DCLS._ops._layer_checks import check_layer, make_spec
from DCLS._ops._library import (
    is_watched,
    library,
    register,
    transforms_active,
    with_checked_memory,
)
from DCLS._ops._rows import to_kernel_axes, to_position_rows
from DCLS._ops._transforms import (
    derivatives_by,
    register_autocast,
    tangents_by,
    without_autocast,
)
from DCLS._ops.construct import (
    construct_kernel,
    construct_kernel_backward,
    construct_support,
)
from DCLS._ops.conv import direct_conv, direct_conv_backward, empty_output
from DCLS._precision import allows_tf32

__all__ = ["layer", "layer_backward"]

_SPEC = (
    "SymInt[] dilated_kernel_size, int[] axis_order, str version, float sigma_min, "
    "SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt groups"
)
library.define(
    "layer(Tensor input, Tensor weight, Tensor P, Tensor? SIG, Tensor? bias, "
    f"{_SPEC}, bool[2] saves) -> (Tensor, Tensor)"
)
library.define(
    "layer_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor P, Tensor? SIG, "
    f"Tensor saved, {_SPEC}, bool[2] saves, bool[5] output_mask) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)

#: Places of the tensors among the arguments of ``layer``.
_TENSORS = 5


# ---------------------------------------------------------------------------------- kernels, fakes


def _layer(
    input: Tensor, weight: Tensor, P: Tensor, SIG: Tensor | None, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    *numbers, saves = rest
    spec = make_spec(numbers)
    shape = check_layer(input, weight, P, SIG, bias, spec)
    passes = (saves[0], saves[1], allows_tf32(input.device))
    problem = _native.Layer(input, weight, P, SIG, shape[2:], spec, *passes)
    output, saved = empty_output(input, shape), problem.new_saved()
    problem.forward(bias, output, saved)
    return output, saved


def _layer_fake(
    input: Tensor, weight: Tensor, P: Tensor, SIG: Tensor | None, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    spec = make_spec(rest[:-1])
    shape = check_layer(input, weight, P, SIG, bias, spec, symbolic=True)
    # How much the library saves is its own affair.
    size = torch.library.get_ctx().new_dynamic_size()
    return empty_output(input, shape), input.new_empty(size, dtype=torch.uint8)


def _new_grads(
    tensors: Sequence[Tensor | None], bias_like: Tensor, mask: Sequence[bool]
) -> list[Tensor]:
    """Makes room for the gradients; those that ``mask`` does not want are empty."""
    input, *elements = tensors
    assert input is not None
    grads = [empty_output(input, input.shape) if mask[0] else input.new_empty(0)]
    for tensor, wanted in zip(elements, mask[1:4], strict=True):
        some = elements[0] if tensor is None else tensor
        assert some is not None
        present = wanted and tensor is not None
        grads.append(some.new_empty(some.shape if present else 0))
    grads.append(input.new_empty(bias_like.shape[0] if mask[4] else 0))
    return grads


def _check_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    spec: Spec,
    symbolic: bool = False,
) -> list[int]:
    shape = check_layer(input, weight, P, SIG, None, spec, symbolic)
    check_like("grad_output", grad_output, "input", input)
    if list(grad_output.shape) != shape:
        raise ValueError(f"grad_output must have shape {shape}, got {list(grad_output.shape)}")
    return shape


def _layer_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    saved: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    *numbers, saves, mask = rest
    spec = make_spec(numbers)
    shape = _check_backward(grad_output, input, weight, P, SIG, spec)
    # The forward pass may have had another setting of torch: the size tells which.
    now = allows_tf32(input.device)
    for allow_tf32 in (now, not now):
        passes = (saves[0], saves[1], allow_tf32)
        problem = _native.Layer(input, weight, P, SIG, shape[2:], spec, *passes)
        expected = problem.saved_bytes()
        if saved.numel() == expected:
            break
    if saved.dtype != torch.uint8 or saved.numel() != expected:
        raise ValueError(
            f"saved must be what layer returned, {expected} bytes, got {saved.numel()} of "
            f"{saved.dtype}"
        )
    grads = _new_grads((input, weight, P, SIG), weight, mask)
    given = [
        grad if wanted and grad.numel() else None for grad, wanted in zip(grads, mask, strict=True)
    ]
    problem.backward(grad_output, saved.contiguous(), given)
    return tuple(grads)


def _layer_backward_fake(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    saved: Tensor,  # noqa: ARG001
    *rest: Any,
) -> tuple[Tensor, ...]:
    *numbers, _, mask = rest
    _check_backward(grad_output, input, weight, P, SIG, make_spec(numbers), symbolic=True)
    return tuple(_new_grads((input, weight, P, SIG), weight, mask))


# --------------------------------------------------------------------------- separate operators


def _rows(P: Tensor, SIG: Tensor | None, spec: Spec) -> tuple[Tensor, Tensor | None]:
    """P and SIG by axis of the kernel."""
    order = spec.axis_order
    return to_kernel_axes(P, order), None if SIG is None else to_kernel_axes(SIG, order)


def _kernel_shape(input: Tensor, weight: Tensor, spec: Spec) -> list[int]:
    return [weight.shape[0], input.shape[1] // spec.groups, *spec.kernel_size]


def _conv_arguments(spec: Spec) -> tuple[Any, ...]:
    return spec.stride, spec.padding, [1] * len(spec.stride), spec.groups


def _separately(
    input: Tensor, weight: Tensor, P: Tensor, SIG: Tensor | None, bias: Tensor | None, *rest: Any
) -> Tensor:
    """The output by ``construct_kernel`` and ``direct_conv``."""
    *numbers, saves = rest
    spec = make_spec(numbers)
    rows = _rows(P, SIG, spec)
    grid = (spec.dilated_kernel_size, spec.version, spec.sigma_min)
    shape = _kernel_shape(input, weight, spec)
    kernel = construct_kernel(weight, *rows, *grid).reshape(shape).to(input.dtype)
    support = construct_support(*rows, *grid).reshape(shape) if saves[1] else None
    output: Tensor = direct_conv(input, kernel, bias, support, *_conv_arguments(spec))
    return output


@without_autocast
def _gradients(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    spec: Spec,
    mask: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of all five tensors by the separate operators, which have derivatives."""
    rows = _rows(P, SIG, spec)
    grid = (spec.dilated_kernel_size, spec.version, spec.sigma_min)
    shape = _kernel_shape(input, weight, spec)
    kernel = construct_kernel(weight, *rows, *grid)
    support = construct_support(*rows, *grid).reshape(shape)
    of_elements = any(mask[1:4])
    grad_input, grad_kernel, grad_bias = direct_conv_backward(
        grad_output,
        input,
        kernel.reshape(shape).to(input.dtype),
        support,
        *_conv_arguments(spec),
        [mask[0], of_elements, mask[4]],
    )
    grads: list[Tensor | None] = [grad_input, None, None, None, grad_bias]
    if of_elements:
        grad_kernel = grad_kernel.reshape(kernel.shape).to(weight.dtype)
        element_mask = [mask[1], mask[2], mask[3] and SIG is not None]
        grads[1:4] = construct_kernel_backward(grad_kernel, weight, *rows, *grid, element_mask)
        for place in (2, 3):
            grad = grads[place]
            if grad is not None and element_mask[place - 1]:
                grads[place] = to_position_rows(grad, spec.axis_order)
    return [grad if wanted else None for grad, wanted in zip(grads, mask, strict=True)]


def _layer_by_torch(
    input: Tensor, weight: Tensor, P: Tensor, SIG: Tensor | None, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    check_layer(input, weight, P, SIG, bias, make_spec(rest[:-1]))
    # Nothing is saved: autograd does that for itself.
    return _separately(input, weight, P, SIG, bias, *rest), input.new_empty(0, dtype=torch.uint8)


def _layer_backward_by_torch(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    saved: Tensor,  # noqa: ARG001
    *rest: Any,
) -> tuple[Tensor, ...]:
    *numbers, _, mask = rest
    spec = make_spec(numbers)
    _check_backward(grad_output, input, weight, P, SIG, spec)
    grads = _gradients(grad_output, input, weight, P, SIG, spec, mask)
    return tuple(input.new_empty(0) if grad is None else grad for grad in grads)


# ---------------------------------------------------------------------------------------- autograd


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, weight, P, SIG, bias, *numbers, saves = inputs
    ctx.save_for_backward(input, weight, P, SIG, output[1])
    ctx.set_materialize_grads(False)
    ctx.has_bias = bias is not None
    ctx.numbers, ctx.saves = numbers, saves


def _backward(ctx: Any, grad_output: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    nothing = (None,) * (len(ctx.numbers) + 1)
    if grad_output is None:
        return (*(None,) * _TENSORS, *nothing)
    input, weight, P, SIG, saved = ctx.saved_tensors
    tensors = (input, weight, P, SIG)
    mask = list(ctx.needs_input_grad[:_TENSORS])
    # A gradient that the forward pass did not know of, or whose own gradient is wanted.
    unsaved = (mask[0] and not ctx.saves[0]) or (any(mask[1:4]) and not ctx.saves[1])
    if unsaved or torch.is_grad_enabled():
        grads = _gradients(grad_output, input, weight, P, SIG, make_spec(ctx.numbers), mask)
        return (*grads, *nothing)
    given = [t for t in (grad_output, *tensors) if t is not None]
    direct = not is_watched(input.device) and all(map(is_plain, given))
    call = _backward_kernel if direct else layer_backward
    results = call(grad_output, *tensors, saved, *ctx.numbers, ctx.saves, mask)
    wanted = (grad if needed else None for grad, needed in zip(results, mask, strict=True))
    return (*wanted, *nothing)


def _plain(*args: Any) -> tuple[Tensor, None]:
    return _separately(*args), None


def _plain_backward(*args: Any) -> list[Tensor | None]:
    grad_output, input, weight, P, SIG, _saved, *numbers, _saves, mask = args
    return _gradients(grad_output, input, weight, P, SIG, make_spec(numbers), mask)


# -------------------------------------------------------------------------------------------- vmap


def _layer_backward_vmap(info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Any, Any]:
    if info.batch_size == 0:  # what the forward pass saves cannot be made up
        _, input, weight, P, SIG, *_ = one_copy(in_dims, args)
        return no_copies(_new_grads((input, weight, P, SIG), weight, args[-1]))
    return one_by_one(layer_backward)(info, in_dims, *args)


# ------------------------------------------------------------------------------------ registration

_layer_op = torch.ops.dcls.layer
layer_backward = torch.ops.dcls.layer_backward

# For calls without torch's dispatcher; ``register`` checks the memory for those with it.
_kernel = with_checked_memory("layer", _layer)
_backward_kernel = with_checked_memory("layer_backward", _layer_backward)
# Layers under vmap take the separate operators instead.
register(
    "layer",
    kernel=_layer,
    fake=_layer_fake,
    expression=_layer_by_torch,
    vmap=one_by_one(_layer_op),
    setup_context=_setup_context,
    backward=_backward,
    jvp=tangents_by(_plain),
)
register(
    "layer_backward",
    kernel=_layer_backward,
    fake=_layer_backward_fake,
    expression=_layer_backward_by_torch,
    vmap=_layer_backward_vmap,
    **derivatives_by(_plain_backward),
)
# As the separate operators: positions need float32, a convolution takes autocast's dtype.
register_autocast("layer", low=(0, 4), full=(1, 2, 3))


class _Eager(torch.autograd.Function):
    """The operator without torch's dispatcher, which costs more than a small layer takes."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        output: Tensor
        output, saved = _kernel(*args)
        _setup_context(ctx, args, (output, saved))
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
        return _backward(ctx, grad_output, None)


def layer(*args: Any) -> Tensor:
    """Calls ``dcls::layer``, or the separate operators.

    Under torch.func, in forward mode, on the meta device, which has no saved data to size, and
    where torch computes.
    """
    if transforms_active() or args[0].is_meta or not is_native(args[0].device.type):
        return _separately(*args)
    output: Tensor
    tensors = [tensor for tensor in args[:_TENSORS] if tensor is not None]
    if is_watched(args[0].device) or not all(map(is_plain, tensors)):
        output = _layer_op(*args)[0]
    elif torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        output = _Eager.apply(*args)  # type: ignore[no-untyped-call]  # of torch
    else:
        output = _kernel(*args)[0]
    return output
