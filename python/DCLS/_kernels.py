"""Tensors to addresses: the only place where pointers and streams leave torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from DCLS import _C
from DCLS._spec import VERSIONS

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_VERSION_INDEX = {version: index for index, version in enumerate(VERSIONS)}
_CPU, _CUDA = 0, 1

#: Element types that the native library computes.
DTYPES = frozenset(_DTYPES)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _execution(device: torch.device) -> _C.Execution:
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return _C.Execution(_CUDA, index, torch.cuda.current_stream(device).cuda_stream, 1)
    # Asked for at each call: OpenMP's own setting belongs to a thread, torch's to the process.
    return _C.Execution(_CPU, 0, 0, torch.get_num_threads())


def _problem(
    weight: Tensor | None,
    P: Tensor,
    SIG: Tensor | None,
    size: Sequence[int],
    version: str,
    sigma_min: float,
) -> _C.ConstructProblem:
    # From P, because a support has no weight.
    return _C.ConstructProblem(
        _VERSION_INDEX[version],
        _DTYPES[P.dtype],
        list(size),
        math.prod(P.shape[1:-1]),
        P.shape[-1],
        sigma_min,
        _address(weight),
        _address(P),
        _address(SIG),
    )


def construct(
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    size: Sequence[int],
    version: str,
    sigma_min: float,
) -> Tensor:
    """Builds the dense kernel of checked arguments."""
    weight, P = weight.contiguous(), P.contiguous()
    SIG = None if SIG is None else SIG.contiguous()
    kernel = weight.new_empty((*weight.shape[:-1], *size))
    problem = _problem(weight, P, SIG, size, version, sigma_min)
    _C.construct(problem, _address(kernel), _execution(weight.device))
    return kernel


def construct_backward(
    grad_kernel: Tensor,
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    size: Sequence[int],
    version: str,
    sigma_min: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of weight, P and SIG of checked arguments; None where the mask is False."""
    grad_kernel = grad_kernel.contiguous()
    weight, P = weight.contiguous(), P.contiguous()
    SIG = None if SIG is None else SIG.contiguous()
    grad_weight = torch.empty_like(weight) if output_mask[0] else None
    grad_P = torch.empty_like(P) if output_mask[1] else None
    grad_SIG = torch.empty_like(SIG) if output_mask[2] and SIG is not None else None
    _C.construct_backward(
        _problem(weight, P, SIG, size, version, sigma_min),
        _address(grad_kernel),
        _address(grad_weight),
        _address(grad_P),
        _address(grad_SIG),
        _execution(weight.device),
    )
    return grad_weight, grad_P, grad_SIG


def construct_support(
    P: Tensor, SIG: Tensor | None, size: Sequence[int], version: str, sigma_min: float
) -> Tensor:
    """Marks the cells of the dense kernel that checked arguments can weigh or move."""
    P = P.contiguous()
    SIG = None if SIG is None else SIG.contiguous()
    support = P.new_empty((*P.shape[1:-1], *size), dtype=torch.bool)
    problem = _problem(None, P, SIG, size, version, sigma_min)
    _C.construct_support(problem, _address(support), _execution(P.device))
    return support
