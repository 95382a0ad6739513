"""Which way a layer convolves, and why: the choice behind ``method="auto"``."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from DCLS import _backend, _checks, _cpu_rule, _cuda_model
from DCLS._spec import DTYPES, INITIAL_SIG, MOST_TAPS, SIGMA_MIN

__all__ = ["METHODS", "Choice", "choose", "expected_cells"]

#: At level DEBUG it reports each choice that a layer makes.
logger: Final = logging.getLogger("DCLS")

METHODS: Final[tuple[str, ...]] = ("auto", "direct", "conv")

#: Grid points that an element covers along one axis, except for gaussians: its taps, or as many as
#: the width of a new layer gives in ``max``.
_REACH: Final[dict[str, int]] = {v: taps for v, taps in MOST_TAPS.items() if taps} | {"max": 3}

#: The same of a gaussian, for each unit of its width: it ends where it cannot change a float32 sum.
_GAUSS_REACH: Final = 14

# Before torch 2.7 the compiler cannot be told from export: its graphs are then chosen alike.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def _has_wide_vectors() -> bool:
    if _backend.native is None:
        return False
    try:
        return str(_backend.native.build_info()["simd"]).startswith("avx512")
    except ValueError:  # DCLS_SIMD has a wrong value. The first call of the library says so.
        return False


#: Asked once: the answer does not change, and the compiler cannot look into the library.
_WIDE_VECTORS: Final = _has_wide_vectors()

#: Of the vectors; 0: those of this processor. Results of other processors are judged by theirs.
_VECTOR_BYTES: Final = 0


class Choice(NamedTuple):
    """How a layer convolves.

    Attributes:
        method: ``direct`` (``DCLS.functional.direct_conv``), ``conv`` (torch's convolution with
            the dense kernel) or ``im2col``.
        reason: why, in words.
        source: what the reason rests on: ``asked`` (the layer's ``method``), ``layer`` (its kind
            leaves no choice), ``measured here`` (in this process), ``cache`` (measured before, on
            such a device with these versions), ``rank 0`` (by the first process), ``CPU rule``
            (measured on one machine, see docs/performance.md), ``model`` (of GPUs: computed, not
            measured) or ``default`` (nothing is known there).
    """

    method: str
    reason: str
    source: str


def check_method(method: object) -> str:
    """Returns ``method`` if it names one, else raises.

    Raises:
        TypeError: ``method`` is not a string.
        ValueError: ``method`` is not one of ``METHODS``.
    """
    return _checks.choice("method", method, METHODS)


def asked(method: str, device_type: str) -> Choice:
    """Returns the choice of a layer that leaves none."""
    reason = f"the layer's method is {method!r}"
    if not _backend.is_native(device_type):
        reason += f"; torch expressions compute: {_backend.why_not_native(device_type)}"
    return Choice(method, reason, "asked")


def expected_cells(
    version: str,
    kernel_count: int,
    dense_kernel_size: Sequence[int],
    dilated_kernel_size: Sequence[int],
    sigma_min: float | None = None,
    width: float | None = None,
) -> int:
    """Non-zero cells of a kernel if no two elements met, from the shapes alone.

    That is what the choice goes by where it may not look at positions and widths: it would wait for
    a device, and the graph of a compiled layer would depend on them. In eager mode on a CPU a layer
    counts its cells instead.

    Args:
        version: the interpolation.
        kernel_count: elements of a kernel, at each point of the dense axes.
        dense_kernel_size: grid points of the dense axes.
        dilated_kernel_size: grid points of the learnable axes.
        sigma_min: the layer's smallest width; None for the version's own.
        width: ``abs(SIG)``, where the host knows it; None for that of a new layer.

    Returns:
        A number of cells, at most all of them.
    """
    if _checks.check_version(version) in INITIAL_SIG:
        smallest = SIGMA_MIN[version] if sigma_min is None else sigma_min
        sigma = smallest + (INITIAL_SIG[version] if width is None else width)
    if version == "gauss":
        along = round(_GAUSS_REACH * sigma)
    elif version == "max" and width is not None:
        along = max(1, math.ceil(2 * sigma))
    else:
        along = _REACH[version]
    # A list: torch.compile cannot take a generator here.
    reach = math.prod([min(along, size) for size in dilated_kernel_size])
    learnable = min(kernel_count * reach, math.prod(dilated_kernel_size))
    return math.prod(dense_kernel_size) * learnable


#: A layer asks about the same sizes at each call. Not for the compiler, which cannot look into it.
expected_cells_again = functools.lru_cache(maxsize=1024)(expected_cells)


def choose(
    *,
    input_shape: Sequence[int],
    out_channels: int,
    groups: int,
    kernel_size: Sequence[int],
    cells: int | Callable[[], int],
    training: bool,
    dtype: torch.dtype = torch.float32,
    stride: Sequence[int] | None = None,
    padding: Sequence[int] | None = None,
    channels_last: bool = False,
    device_type: str = "cpu",
    method: str = "auto",
) -> Choice:
    """Decides how a layer convolves, from sizes and flags alone, before a kernel is built.

    On a CPU ``auto`` is a written rule of named terms (``DCLS._cpu_rule``). On a GPU it is a model
    (``DCLS._cuda_model``), which no measurement backs: a layer asks it only where it may not
    measure, see ``DCLS.tune``. On other devices it is torch's convolution. While torch exports,
    the sizes of the input are not looked at, and while it compiles the batch is not: the graph
    serves other sizes, too.

    Args:
        input_shape: ``(N, I, *spatial)``, with what a padding mode other than zeros adds.
        out_channels: number of output channels.
        groups: number of groups.
        kernel_size: points of the dense kernel on each axis of the convolution.
        cells: non-zero cells of the kernel of one pair of channels, counted or expected
            (``expected_cells``); or a function that returns them, which is called only if the
            choice depends on them.
        training: whether a gradient of weights, positions or widths is wanted.
        dtype: the dtype in which the convolution runs, under autocast that of autocast.
        stride: steps of the output on the input, one for each axis; None for 1.
        padding: zeros before and behind each axis, one number each; None for 0.
        channels_last: whether input and output lie in the channels-last layout.
        device_type: of the input, as ``torch.device`` names it.
        method: what the layer is set to.

    Returns:
        The method, the reason and its source.

    Raises:
        TypeError: ``method`` is not a string.
        ValueError: ``method`` is not one of ``METHODS``.
    """
    if check_method(method) != "auto":
        return asked(method, device_type)
    if not _backend.is_native(device_type):
        return Choice("conv", f"on {device_type} torch computes", "default")
    if device_type == "meta":
        return Choice("conv", "nothing has been measured on meta", "default")
    ndim, size = len(kernel_size), math.prod(kernel_size)
    per_group = input_shape[1] // groups
    if per_group == 0 or out_channels == 0 or size == 0:
        return Choice("conv", "the kernel is empty", "default")
    margins = padding or (0,) * ndim
    if device_type == "cuda":
        points = _cpu_rule.LARGE_MAP
        if not _is_exporting():
            points = _cuda_model.output_points(
                input_shape[2:], kernel_size, stride or (1,) * ndim, margins
            )
        count = cells() if callable(cells) else cells
        return _by_model(
            input_shape[0], input_shape[1], out_channels, groups, points, size, count, dtype
        )
    traces = is_tracing()
    # The graph of an export serves inputs of other sizes too; a question about one restricts them.
    exports = traces and _is_exporting()
    points = _cpu_rule.LARGE_MAP if exports else math.prod(input_shape[2:])
    # So does one about the batch, while torch compiles or traces.
    values = math.inf if traces else math.prod(input_shape)
    asks = training and not exports
    if asks and _cpu_rule.torch_errs(kernel_size, input_shape[2:], margins, dtype):
        return Choice("direct", _cpu_rule.TORCH_ERRS, "CPU rule")
    if per_group == 1 and _cpu_rule.torch_hangs(input_shape[1], kernel_size, channels_last, dtype):
        return Choice("direct", _cpu_rule.TORCH_HANGS, "CPU rule")
    channels: _cpu_rule.Channels = "one" if per_group == 1 else "many"
    if 1 < per_group <= _cpu_rule.FEW_CHANNELS:
        channels = "few"
    fills = False
    if ndim == 1 and channels == "many":
        step = stride[0] if stride else 1
        output = (input_shape[2] + 2 * margins[0] - kernel_size[0]) // step + 1
        fills = _batch_fills_vectors(input_shape, out_channels, groups, output, step, dtype)
    padded = any(margins)
    find = _cpu_rule.candidates if traces else _cpu_rule.candidates_again
    facts = _cpu_rule.Facts(
        ndim, channels, size, points, channels_last, training, values, fills, padded, _WIDE_VECTORS
    )
    counted: int | None = None if callable(cells) else cells
    for term in find(facts):
        if term.filled < 1 and counted is None:
            counted = cells()  # type: ignore[operator]
        if term.filled >= 1 or counted <= term.filled * size:  # type: ignore[operator]
            return Choice("direct", f"{term.name} ({_describe(size, counted)})", "CPU rule")
    return Choice("conv", f"no term of the rule holds ({_describe(size, counted)})", "CPU rule")


#: Images that the model assumes where a graph serves any number of them.
_GRAPH_BATCH: Final = 64

#: Points of an output that it assumes where they are few: 7 x 7.
_FEW_POINTS: Final = 49


def _by_model(
    batch: int,
    in_channels: int,
    out_channels: int,
    groups: int,
    points: int,
    size: int,
    cells: int,
    dtype: torch.dtype,
) -> Choice:
    """Chooses on a GPU by the model."""
    serves_others = is_tracing() or not (type(batch) is type(points) is int)
    if serves_others:
        # The graph depends on the part of the model, and on no size.
        batch, points = _GRAPH_BATCH, max(_FEW_POINTS, _cuda_model.part_of(points).points)
    if batch == 0 or points == 0:
        return Choice("conv", "the output is empty", "default")
    seconds = _cuda_model.estimate(
        batch=batch,
        in_channels=in_channels,
        out_channels=out_channels,
        groups=groups,
        points=points,
        kernel_points=size,
        cells=cells,
        dtype=dtype,
    )
    what = _describe(size, cells)
    if serves_others:
        return Choice(seconds.method, f"a model, not a measurement ({what})", "model")
    return Choice(
        seconds.method,
        f"a model, not a measurement: direct {seconds.direct * 1e3:.2g} ms, "
        f"conv {seconds.conv * 1e3:.2g} ms ({what})",
        "model",
    )


def _describe(size: int, cells: int | None) -> str:
    """Says how large a kernel is, and how many of its cells are not zero if anybody asked."""
    what = f"{size} grid points"
    return what if cells is None else f"{what}, about {cells} of them not zero"


def _batch_fills_vectors(
    input_shape: Sequence[int],
    out_channels: int,
    groups: int,
    output: int,
    stride: int,
    dtype: torch.dtype,
) -> bool:
    """Whether the library takes the images of the batch as the lanes of its vectors.

    While torch compiles this counts as no: the answer would bind the graph to the batch.
    """
    if is_tracing() or output < 0:
        return False
    batch, in_channels, _ = input_shape
    takes: bool = _backend.native.takes_batch_as_lanes(
        DTYPES[dtype], batch, in_channels, out_channels, groups, output, stride, _VECTOR_BYTES
    )
    return takes


def is_tracing() -> bool:
    """Whether torch compiles, exports or traces: a graph is made that serves other calls, too."""
    return bool(torch.compiler.is_compiling() or torch._C._get_tracing_state())


def _are_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether no trace, transform, mode or subclass stands between the caller and the values."""
    return (
        not is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and all(type(t) in (Tensor, Parameter) for t in tensors)
    )


def may_read(tensors: Sequence[Tensor]) -> bool:
    """Whether a choice may depend on the values of ``tensors``.

    They must be plain, and on the CPU, where nobody waits for them.
    """
    return _are_plain(tensors) and all(t.device.type == "cpu" for t in tensors)


def may_wait_for(tensors: Sequence[Tensor]) -> bool:
    """Whether the host may read the values of ``tensors``, and wait for their device."""
    if not _are_plain(tensors) or any(t.is_meta for t in tensors):
        return False
    return not (any(t.is_cuda for t in tensors) and torch.cuda.is_current_stream_capturing())


def convolution_dtype(input: Tensor, weight: Tensor) -> torch.dtype | None:
    """The dtype in which both meet in a convolution, perhaps autocast's; None if they do not."""
    device = input.device.type
    # Of the usual devices torch is not asked: 2.5 cannot compile the question.
    has_autocast = device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)
    casts = has_autocast and torch.is_autocast_enabled(device)
    if casts and torch.float64 not in (input.dtype, weight.dtype):
        return torch.get_autocast_dtype(device)
    return input.dtype if input.dtype == weight.dtype else None
