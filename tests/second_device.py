"""A second device of torch, ``elsewhere``, in Python: behind each tensor stands one of the CPU.

Every operator of torch runs on these. Importing this registers the device. It knows no views:
writing to one does not reach what it is a view of.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "elsewhere"
_setup_privateuseone_for_python_backend(NAME)

aten = torch.ops.aten

#: By the address of a tensor's storage: the storage, so that no other gets its address, and what
#: stands behind.
_behind: dict[int, tuple[Any, torch.Tensor]] = {}


def _make(value: torch.Tensor) -> torch.Tensor:
    value = value.detach().contiguous()
    tensor: torch.Tensor = torch._C._acc.create_empty_tensor(value.shape, value.dtype)
    storage = tensor.untyped_storage()
    _behind[storage._cdata] = (storage, value)
    return tensor


def _out(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.device.type == NAME:
        return _behind[value.untyped_storage()._cdata][1]
    return value


def _copy_from(source: torch.Tensor, target: torch.Tensor, _: bool = False) -> torch.Tensor:
    return target.copy_(source)


def _convolution_backward(*args: Any) -> Any:
    grad_output, input, weight, *geometry, mask = args
    channels = weight.shape[1] * geometry[5] if geometry[3] else weight.shape[0]
    return aten.convolution_backward(grad_output, input, weight, [channels], *geometry, mask)


#: What torch asks a foreign device for under another name.
_OTHER_NAMES = {
    aten._copy_from.default: _copy_from,
    aten.convolution_overrideable.default: aten.convolution,
    aten.convolution_backward_overrideable.default: _convolution_backward,
}


def _on_the_cpu(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """What all operators do."""
    given = {id(_out(t)): t for t in pytree.tree_leaves((args, kwargs)) if _out(t) is not t}
    args, kwargs = pytree.tree_map(_out, (args, kwargs))
    device = kwargs.get("device")
    if device is not None:
        kwargs["device"] = "cpu"
    result = _OTHER_NAMES.get(operator, operator)(*args, **kwargs)
    if device is not None and torch.device(device).type == "cpu":
        return result

    def back(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        same = given.get(id(value))
        return _make(value) if same is None else same

    return pytree.tree_map(back, result)


# Torch has kernels of its own for these. They resize an empty tensor, or make a view, without
# asking the device.
_NOT_ASKED = (
    *(aten.abs.default, aten.arange.default, aten.arange.start, aten.arange.start_step),
    *(aten._unsafe_view.default, aten.select_backward.default, *_OTHER_NAMES),
)
fallback = torch.library.Library("_", "IMPL", "PrivateUse1")
fallback.fallback(_on_the_cpu, "PrivateUse1")
of_torch = torch.library.Library("aten", "IMPL", "PrivateUse1")
for operator in _NOT_ASKED:
    of_torch.impl(operator, functools.partial(_on_the_cpu, operator))
