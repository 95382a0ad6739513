"""Checks of a layer's arguments that the native library cannot make. Errors name the argument."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from DCLS._checks import check_device, check_dtype, check_version, check_widths
from DCLS._native.layer import Spec, output_size


def make_spec(numbers: Sequence[Any]) -> Spec:
    """Returns the operator's arguments behind the tensors, lists as tuples."""
    values: list[Any] = [tuple(n) if isinstance(n, (list, tuple)) else n for n in numbers]
    return Spec(*values)


class _Form(NamedTuple):
    """Shape and dtype of a tensor: what the checks look at, so that they can be remembered."""

    shape: torch.Size
    dtype: torch.dtype


def _form(tensor: Tensor | None) -> _Form | None:
    return None if tensor is None else _Form(tensor.shape, tensor.dtype)


def check_layer(
    input: Tensor,
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    bias: Tensor | None,
    spec: Spec,
    symbolic: bool = False,
) -> list[int]:
    """Checks what the native library cannot see; returns the shape of the output.

    ``symbolic`` says that sizes may be symbols, as while torch compiles: these are not remembered.
    """
    check_dtype("input", input)
    check_dtype("weight", weight)
    device = input.device
    for name, tensor in (("weight", weight), ("P", P), ("SIG", SIG), ("bias", bias)):
        if tensor is not None and tensor.device != device:
            check_device(name, tensor, "input", input)
    forms = (_form(input), _form(weight), _form(P), _form(SIG), _form(bias))
    function = _output_shape if symbolic else _remembered_output_shape
    return list(function(*forms, spec))  # type: ignore[arg-type]


def _output_shape(
    input: _Form, weight: _Form, P: _Form, SIG: _Form | None, bias: _Form | None, spec: Spec
) -> tuple[int, ...]:
    """Checks shapes, dtypes and numbers; returns the shape of the output."""
    check_version(spec.version)
    check_widths(SIG, spec.version, spec.sigma_min)
    ndim, learnable = len(input.shape) - 2, len(spec.dilated_kernel_size)
    if not 1 <= ndim <= 3:
        raise ValueError(
            f"input must have shape (N, I, *spatial) with 1 to 3 axes, got {tuple(input.shape)}"
        )
    for name in ("kernel_size", "stride", "padding"):
        if len(getattr(spec, name)) != ndim:
            raise ValueError(f"{name} must have {ndim} entries, got {tuple(getattr(spec, name))}")
    if sorted(spec.axis_order) != list(range(learnable)):
        raise ValueError(
            f"axis_order must be a permutation of the {learnable} learnable axes, "
            f"got {tuple(spec.axis_order)}"
        )
    if len(weight.shape) < 3 or input.shape[1] != weight.shape[1] * spec.groups:
        raise ValueError(
            f"input must have {spec.groups} groups of as many channels as weight has in its second "
            f"axis, got input {tuple(input.shape)} and weight {tuple(weight.shape)}"
        )
    if input.dtype != weight.dtype and (
        weight.dtype != torch.float32 or input.dtype not in (torch.float16, torch.bfloat16)
    ):
        raise TypeError(
            "weight must have the dtype of input, or float32 where that has 16 bits, "
            f"got {weight.dtype} for {input.dtype}"
        )
    shapes = {
        "P": (P, (learnable, *weight.shape), weight.dtype),
        "SIG": (SIG, (learnable, *weight.shape), weight.dtype),
        "bias": (bias, (weight.shape[0],), input.dtype),
    }
    for name, (form, shape, dtype) in shapes.items():
        if form is not None and tuple(form.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(form.shape)}")
        if form is not None and form.dtype != dtype:
            raise TypeError(f"{name} must have dtype {dtype}, got {form.dtype}")
    size = output_size(input.shape[2:], spec)
    if any(points < 0 for points in size):
        raise ValueError(
            f"kernel_size must fit the padded input, got {tuple(spec.kernel_size)} for an input of "
            f"{tuple(input.shape[2:])} with padding {tuple(spec.padding)}"
        )
    return (input.shape[0], weight.shape[0], *size)


#: A layer is called with the same few shapes over and over.
_remembered_output_shape = functools.lru_cache(maxsize=1024)(_output_shape)
