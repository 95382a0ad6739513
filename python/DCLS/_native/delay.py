"""Tensors to addresses for steps of whole delays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter

from DCLS import _backend
from DCLS._ops._library import transforms_active
from DCLS._spec import DTYPES
from DCLS.method import is_tracing

if TYPE_CHECKING:
    from DCLS import _C
else:
    _C = _backend.native

_PLAIN = (Tensor, Parameter)


class WholeDelays:
    """Connections with whole delays, sorted for the native library at the first step."""

    def __init__(
        self, delays: Tensor, items: Tensor, weight: Tensor, inputs: int, steps: int
    ) -> None:
        """Takes the connections.

        Args:
            delays: of each connection, ``(rows, elements)``, int64.
            items: the inputs that they read, as ``delays``.
            weight: their weights, as ``delays``.
            inputs: number of inputs.
            steps: the longest delay + 1.
        """
        self.delays, self.items, self.weight = delays, items, weight
        self.inputs, self.steps = inputs, steps
        self._native: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles sort again."""
        return {**self.__dict__, "_native": None}

    def takes(self, state: Tensor, values: Tensor) -> bool:
        """Whether the library can take this step: plain memory of a CPU, and no gradient."""
        weight = self.weight
        return (
            _backend.native is not None
            and not is_tracing()
            and type(state) in _PLAIN
            and type(values) in _PLAIN
            and state.is_cpu
            and values.is_cpu
            and weight.is_cpu
            and not transforms_active()
            and not torch._C._len_torch_dispatch_stack()
            and not (
                torch.is_grad_enabled()
                and (state.requires_grad or values.requires_grad or weight.requires_grad)
            )
            and state.dtype is weight.dtype
            and values.dtype is weight.dtype
            and weight.dtype in DTYPES
            and state.shape == (self.steps - 1, len(weight), values.shape[1])
            and len(values) == self.inputs
            and values.layout is torch.strided
            and state.is_contiguous()
            and not (state.is_neg() or values.is_neg())
        )

    def onto(self, state: Tensor, values: Tensor, in_place: bool) -> tuple[Tensor, Tensor]:
        """Returns what arrives now, ``(rows, batch)``, and the state, as the torch forms do."""
        native = self._native
        if native is None:
            native = self._native = self._sorted()
        arriving = values.new_empty((len(self.weight), values.shape[1]))
        rest = state if in_place else torch.empty_like(state)
        native(
            values.shape[1],
            values.data_ptr(),
            *values.stride(),
            state.data_ptr(),
            arriving.data_ptr(),
            rest.data_ptr(),
            torch.get_num_threads(),
        )
        return arriving, rest

    def _sorted(self) -> _C.DelayStep:
        delays, items, weight = (t.contiguous() for t in (self.delays, self.items, self.weight))
        rows, elements = weight.shape
        dtype = DTYPES[weight.dtype]
        addresses = delays.data_ptr(), items.data_ptr(), weight.data_ptr()
        return _C.DelayStep(dtype, self.steps, rows, elements, self.inputs, *addresses)
