"""What a layer keeps from one forward to the next: the kernel, if it is frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.modules import module as hooks_of_all

from DCLS import _backend
from DCLS.method import may_wait_for

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
    if has_global_hook() or not may_wait_for(tensors):
        return False
    # The operators say so where a storage was freed. A kernel that is kept has no tangents.
    freed = any([t.data_ptr() == 0 and t.numel() != 0 for t in tensors])  # noqa: C419
    return not freed and forward_ad._current_level < 0
