"""Tensors to addresses for the dense kernel and the direct convolution; the others build on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from DCLS import _backend
from DCLS._native import first_use
from DCLS._precision import allows_tf32
from DCLS._spec import DTYPES, VERSIONS

if TYPE_CHECKING:
    from DCLS import _C
else:
    _C = _backend.native

_VERSION_INDEX = {version: index for index, version in enumerate(VERSIONS)}
_CPU, _CUDA = 0, 1


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _execution(device: torch.device) -> _C.Execution:
    if device.type == "cuda":
        if first_use.pending:
            first_use.before_use(device, construct)
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
    axis_order: Sequence[int] | None = None,
) -> _C.ConstructProblem:
    order = range(len(size)) if axis_order is None else axis_order
    # From P, because a support has no weight.
    return _C.ConstructProblem(
        _VERSION_INDEX[version],
        DTYPES[P.dtype],
        list(size),
        [order.index(axis) for axis in range(len(size))],
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


_FORWARD, _BACKWARD_INPUT, _BACKWARD_KERNEL = 0, 1, 2
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_channels_last(input: Tensor) -> bool:
    """Whether a convolution of ``input`` runs in the channels-last layout.

    Under torch.func's transforms this counts as no: vmap does not know other layouts.
    """
    transforms = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
    return not transforms and memory_format(input) != torch.contiguous_format


def memory_format(input: Tensor) -> torch.memory_format:
    """The layout in which a convolution of ``input`` runs, and in which it leaves its output."""
    channels_last = _CHANNELS_LAST.get(input.ndim)
    if channels_last is None or input.is_contiguous():
        return torch.contiguous_format
    if input.is_contiguous(memory_format=channels_last):
        return channels_last
    return torch.contiguous_format


class _KeptLists:
    """The lists of a kernel's cells, for the sizes of the last input that it was convolved with."""

    def __init__(self) -> None:
        self._kept: tuple[tuple[Any, ...], _C.PreparedConv] | None = None

    def __call__(
        self,
        input_shape: Sequence[int],
        output_shape: Sequence[int],
        kernel: Tensor,
        layout: torch.memory_format,
        *geometry: Any,
    ) -> _C.PreparedConv:
        """Returns the lists of ``kernel``, made again if it or a size is another one."""
        sizes = tuple(input_shape), tuple(output_shape)
        steps = (a if isinstance(a, int) else tuple(a) for a in geometry)
        key = (*sizes, layout, *steps, kernel.data_ptr(), kernel._version)
        kept = self._kept  # another thread may put others there
        if kept is None or kept[0] != key:
            problem = _conv_problem(*sizes, kernel, layout, *geometry)
            made = _C.PreparedConv(problem, _address(kernel), _execution(kernel.device))
            self._kept = kept = key, made
        return kept[1]


def keep_lists(kernel: Tensor) -> Tensor:
    """Returns a contiguous kernel whose lists ``direct_conv`` keeps on the CPU.

    For a kernel that is used again: the lists are kept as long as it is.
    """
    kernel = kernel.contiguous()
    kernel._dcls_lists = _KeptLists()  # type: ignore[attr-defined]
    return kernel


def _conv_problem(
    input_shape: Sequence[int],
    output_shape: Sequence[int],
    kernel: Tensor,
    layout: torch.memory_format,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> _C.ConvProblem:
    return _C.ConvProblem(
        DTYPES[kernel.dtype],
        int(layout != torch.contiguous_format),
        input_shape[0],
        input_shape[1],
        output_shape[1],
        groups,
        list(input_shape[2:]),
        list(output_shape[2:]),
        list(kernel.shape[2:]),
        list(stride),
        list(padding),
        list(dilation),
        allows_tf32(kernel.device),
    )


def _run_conv(
    run: Callable[..., None],
    conv_pass: int,
    input_shape: Sequence[int],
    output_shape: Sequence[int],
    kernel: Tensor,
    layout: torch.memory_format,
    tensors: Sequence[Tensor | None],
    *geometry: Any,
) -> None:
    """Runs one pass on contiguous ``tensors``, in the order in which it takes them."""
    problem = _conv_problem(input_shape, output_shape, kernel, layout, *geometry)
    where = _execution(kernel.device)
    workspace = None
    if kernel.is_cuda:  # a CPU needs none
        size = _C.direct_conv_workspace(problem, conv_pass, where)
        workspace = torch.empty(size, dtype=torch.uint8, device=kernel.device) if size > 0 else None
    run(problem, *(_address(tensor) for tensor in tensors), _address(workspace), where)


def direct_conv(
    input: Tensor, kernel: Tensor, bias: Tensor | None, output: Tensor, *geometry: Any
) -> None:
    """Writes the convolution of checked arguments to ``output``, whose layout is that of input.

    ``geometry`` is stride, padding and dilation, an int for each axis, and the number of groups.
    """
    layout = memory_format(input)
    bias = None if bias is None else bias.contiguous()
    lists: _KeptLists | None = getattr(kernel, "_dcls_lists", None)
    if lists is not None and kernel.is_cpu and kernel.is_contiguous():
        prepared = lists(input.shape, output.shape, kernel, layout, *geometry)
        input = input.contiguous(memory_format=layout)
        where = _execution(kernel.device)
        prepared.forward(_address(input), _address(bias), _address(output), where)
        return
    input, kernel = input.contiguous(memory_format=layout), kernel.contiguous()
    shapes = (input.shape, output.shape, kernel, layout)
    _run_conv(_C.direct_conv, _FORWARD, *shapes, (input, kernel, bias, output), *geometry)


def direct_conv_backward_input(
    grad_output: Tensor, kernel: Tensor, grad_input: Tensor, *geometry: Any
) -> None:
    """Writes the gradient of the input, in whose layout the gradient of the output is read."""
    layout = memory_format(grad_input)
    grad_output, kernel = grad_output.contiguous(memory_format=layout), kernel.contiguous()
    shapes = (grad_input.shape, grad_output.shape, kernel, layout)
    tensors = (grad_output, kernel, grad_input)
    _run_conv(_C.direct_conv_backward_input, _BACKWARD_INPUT, *shapes, tensors, *geometry)


def direct_conv_backward_kernel(
    grad_output: Tensor,
    input: Tensor,
    support: Tensor | None,
    grad_kernel: Tensor,
    *geometry: Any,
) -> None:
    """Writes the gradient of the kernel where ``support`` is True, zero elsewhere."""
    layout = memory_format(input)
    input = input.contiguous(memory_format=layout)
    grad_output = grad_output.contiguous(memory_format=layout)
    support = None if support is None else support.contiguous()
    shapes = (input.shape, grad_output.shape, grad_kernel, layout)
    tensors = (grad_output, input, support, grad_kernel)
    _run_conv(_C.direct_conv_backward_kernel, _BACKWARD_KERNEL, *shapes, tensors, *geometry)
