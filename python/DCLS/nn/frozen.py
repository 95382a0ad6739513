"""What a layer keeps from one forward to the next: the kernel, if it is frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules import module as hooks_of_all

from DCLS import _backend
from DCLS._checks import flag
from DCLS.method import may_wait_for

__all__ = ["freeze"]

Built = TypeVar("Built")


@dataclass(frozen=True)
class _Kept(Generic[Built]):
    settings: tuple[Any, ...]
    tensors: list[Tensor]
    built: Built


class KernelCache(Generic[Built]):
    """The last kernel, or another thing that was built, and the values that it was built from.

    It compares values. Version counters miss edits by ``.data`` and numpy, and addresses and
    identities are used again.
    """

    def __init__(self) -> None:
        self._kept: _Kept[Built] | None = None

    def __reduce__(self) -> tuple[type[KernelCache[Built]], tuple[()]]:
        """Copies and pickles are empty: a kernel is built faster than it is saved."""
        return type(self), ()

    def __call__(
        self, build: Callable[[], Built], settings: tuple[Any, ...], tensors: Sequence[Tensor]
    ) -> Built:
        """Returns what ``build`` made for these settings and values, or makes it now."""
        kept = self._kept
        if kept is None or kept.settings != settings or not _are_equal(kept.tensors, tensors):
            # A kernel of inference mode could serve nothing else later.
            with torch.inference_mode(False), torch.no_grad():
                copies = [t.detach().clone() for t in tensors]
                self._kept = kept = _Kept(settings, copies, build())
        return kept.built


def _are_equal(kept: Sequence[Tensor], tensors: Sequence[Tensor]) -> bool:
    return len(kept) == len(tensors) and all(
        a.dtype is b.dtype and a.shape == b.shape and a.device == b.device and _same_values(a, b)
        for a, b in zip(kept, tensors, strict=True)
    )


def _same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape, dtype and device have the same values."""
    dense = a.is_contiguous() and b.is_contiguous() and not (a.is_neg() or b.is_neg())
    if _backend.native is None or not a.is_cpu or not dense:
        return torch.equal(a, b)
    # Bytes are compared several times faster, and NaN is the same as itself.
    same: bool = _backend.native.same_bytes(a.data_ptr(), b.data_ptr(), a.nbytes)
    return same


def has_global_hook() -> bool:
    """Whether a hook of all modules would see a layer's parts. torch 2.5 has no such question."""
    return bool(
        hooks_of_all._global_forward_hooks
        or hooks_of_all._global_forward_pre_hooks
        or hooks_of_all._global_backward_hooks
        or hooks_of_all._global_backward_pre_hooks
    )


def may_keep(tensors: Sequence[Tensor]) -> bool:
    """Whether the host may compare the values of ``tensors``, and a kernel may outlive a call."""
    return not has_global_hook() and may_wait_for(tensors)


def freeze(model: Module, enabled: bool = True) -> Module:
    """Lets the DCLS layers of a model keep their kernels between forwards, for inference.

    The layers stay as they are, with positions that can be trained or edited later. A layer keeps
    its kernel while no gradient of its parameters is wanted: under ``torch.no_grad`` or
    ``torch.inference_mode``, or with ``requires_grad_(False)``. Before each use it compares the
    values of its parameters with those that the kernel was built from, so that no edit is missed:
    neither an assignment, nor ``.data``, nor ``load_state_dict``, nor another ``version``. On a GPU
    the comparison waits for the device. What torch traces or compiles, and layers whose ``DCK`` has
    hooks or a ``forward`` of the user, build their kernels each time.

    On a CPU the direct convolution also keeps the lists of the kernel's cells, for the size of the
    last input: on small maps they are a good part of a forward.

    A kernel needs as much memory as a dense convolution has for its weight, and the lists about
    twice as much. Im2col layers have no kernel and stay as they are. For a model that needs no
    positions any more see ``DCLS.fold``.

    Args:
        model: any module, which may itself be a DCLS layer.
        enabled: False drops the kernels and builds them at each forward again; default True.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is no module, or ``enabled`` is no bool.
        ValueError: ``model`` has no DCLS layer.
    """
    if not isinstance(model, Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    enabled = flag("enabled", enabled)
    from DCLS.nn.base import _DclsModule

    layers = [module for module in model.modules() if isinstance(module, _DclsModule)]
    if not layers:
        raise ValueError("model must have a DCLS layer")
    for layer in layers:
        layer._kernel_cache = KernelCache() if enabled else None
    return model
