"""A whole layer: its tensors' addresses, and one call of the native library each way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from DCLS import _backend
from DCLS._native.dense import _address, _execution, _problem, memory_format
from DCLS._spec import DTYPES

if TYPE_CHECKING:
    from DCLS import _C
else:
    _C = _backend.native

_FORWARD, _BACKWARD = 0, 1


class Spec(NamedTuple):
    """What a layer computes, beside its tensors."""

    #: Grid points of the learnable axes.
    dilated_kernel_size: Sequence[int]
    #: Row ``i`` of P and SIG belongs to the learnable axis ``axis_order[i]``.
    axis_order: Sequence[int]
    version: str
    sigma_min: float
    #: Points of the whole kernel, dense axes included, on each axis of the convolution.
    kernel_size: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    groups: int


class Layer:
    """The native problem of checked arguments, whose tensors it keeps alive."""

    def __init__(
        self,
        input: Tensor,
        weight: Tensor,
        P: Tensor,
        SIG: Tensor | None,
        output_size: Sequence[int],
        spec: Spec,
        for_input: bool,
        for_parameters: bool,
        allow_tf32: bool = False,
    ) -> None:
        self.layout = memory_format(input)
        self.input = input.contiguous(memory_format=self.layout)
        self.weight, self.P = weight.contiguous(), P.contiguous()
        self.SIG = None if SIG is None else SIG.contiguous()
        self.where = _execution(input.device)
        ndim = input.ndim - 2
        construct = _problem(
            self.weight,
            self.P,
            self.SIG,
            spec.dilated_kernel_size,
            spec.version,
            spec.sigma_min,
            spec.axis_order,
        )
        conv = _C.ConvProblem(
            DTYPES[input.dtype],
            int(self.layout != torch.contiguous_format),
            input.shape[0],
            input.shape[1],
            weight.shape[0],
            spec.groups,
            list(input.shape[2:]),
            list(output_size),
            list(spec.kernel_size),
            list(spec.stride),
            list(spec.padding),
            [1] * ndim,
            allow_tf32,
        )
        self.problem = _C.LayerProblem(construct, conv, for_input, for_parameters)

    def _workspace(self, layer_pass: int) -> Tensor | None:
        if not self.input.is_cuda:  # a CPU needs none
            return None
        size = _C.layer_workspace(self.problem, layer_pass, self.where)
        return torch.empty(size, dtype=torch.uint8, device=self.input.device) if size else None

    def saved_bytes(self) -> int:
        """Bytes that the forward pass leaves for the backward pass."""
        return _C.layer_saved(self.problem, self.where)

    def new_saved(self) -> Tensor:
        """Memory for them."""
        return torch.empty(self.saved_bytes(), dtype=torch.uint8, device=self.input.device)

    def forward(self, bias: Tensor | None, output: Tensor, saved: Tensor) -> None:
        """Writes ``output``, whose layout is that of the input, and ``saved``."""
        bias = None if bias is None else bias.contiguous()
        _C.layer_forward(
            self.problem,
            _address(self.input),
            _address(bias),
            _address(output),
            _address(saved),
            _address(self._workspace(_FORWARD)),
            self.where,
        )

    def backward(self, grad_output: Tensor, saved: Tensor, grads: Sequence[Tensor | None]) -> None:
        """Writes the gradients of input, weight, P, SIG and bias; None skips one."""
        grad_output = grad_output.contiguous(memory_format=self.layout)
        grad_input, grad_weight, grad_P, grad_SIG, grad_bias = grads
        _C.layer_backward(
            self.problem,
            _address(grad_output),
            _address(self.input),
            _address(grad_input),
            _address(grad_bias),
            _address(grad_weight),
            _address(grad_P),
            _address(grad_SIG),
            _address(saved),
            _address(self._workspace(_BACKWARD)),
            self.where,
        )


def output_size(input_size: Sequence[int], spec: Spec) -> list[int]:
    """Points of the output on each axis; negative where the kernel does not fit the input."""
    sizes = zip(input_size, spec.padding, spec.kernel_size, strict=True)
    room = [length + 2 * padding - kernel for length, padding, kernel in sizes]
    return [
        space // max(1, step) + 1 if space >= 0 else -1
        for space, step in zip(room, spec.stride, strict=True)
    ]
