"""A forward pass that leaves no trace in the model."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restores what code inside changes: buffers, attributes, training flags, random numbers.

    What is written in place into other tensors or objects than buffers stays.
    """
    random_state, numpy_state = random.getstate(), _numpy_state()
    torch_state = torch.get_rng_state()
    cuda = torch.cuda.is_initialized()
    cuda_states = torch.cuda.get_rng_state_all() if cuda else []
    attributes = [_Attributes(module) for module in model.modules()]
    values = [(buffer, buffer.clone()) for buffer in model.buffers() if not _is_empty(buffer)]
    try:
        yield
    finally:
        for kept in attributes:
            kept.restore()
        for buffer, value in values:
            # Without a trace in the version counter, which saved tensors are checked by.
            with torch.inference_mode(buffer.is_inference()):
                buffer.data.copy_(value)
        random.setstate(random_state)
        torch.set_rng_state(torch_state)
        if cuda:
            torch.cuda.set_rng_state_all(cuda_states)
        if numpy_state is not None:
            sys.modules["numpy"].random.set_state(numpy_state)


class _Attributes:
    """The attributes of a module, and its tables of buffers and modules.

    Parameters are left alone: FSDP keeps an account of those that it puts in their place.
    """

    _TABLES = ("_buffers", "_modules")

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._class = type(module)
        self._values = dict(module.__dict__)
        self._tables = {name: dict(module.__dict__[name]) for name in self._TABLES}

    def restore(self) -> None:
        if type(self._module) is not self._class:
            return  # a lazy module that has got its sizes: half of them would not fit
        own = self._module.__dict__
        for name in own.keys() - self._values.keys():
            del own[name]
        own.update(self._values)
        for name, values in self._tables.items():
            table = own[name]
            if not _are_same(table, values):
                table.clear()
                table.update(values)


def _are_same(table: dict[str, Any], values: dict[str, Any]) -> bool:
    return table.keys() == values.keys() and all(table[name] is values[name] for name in values)


def _is_empty(buffer: Tensor) -> bool:
    """Whether a buffer has no values to keep: it has no size yet, or no memory."""
    return nn.parameter.is_lazy(buffer) or buffer.is_meta


def _numpy_state() -> Any:
    """The state of NumPy's global generator, where something has imported it."""
    numpy = sys.modules.get("numpy")
    return None if numpy is None else numpy.random.get_state()
