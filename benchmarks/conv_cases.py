"""The layers and inputs of the benchmarks of one layer, and the steps that are timed on them.

A case is one DCLS layer and its input. The stride is 1, and the padding keeps the size of the
input. Inputs and incoming gradients are normal. All is as a new layer has it, except for the
positions where they are :data:`harness.UNIFORM`.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import harness
import machine
import torch
from harness import PASSES, UNIFORM
from torch import Tensor, nn

import DCLS
from DCLS._spec import VERSIONS

LAYOUTS = ("contiguous", "channels_last")
#: The layer as it is; with either of its methods; a plain 7x7 one; that of DCLS 0.1.1; the same
#: kernel by the FFTs of subquadratic-ops-torch.
DCLS_LAYER, DIRECT, CONV, PLAIN, UPSTREAM = "dcls", "direct", "conv", "plain", "upstream"
FFT, FFT_PACKAGE = "fft", "subquadratic_ops_torch"
PLAIN_SIZE = 7

DTYPES = {
    "float32": torch.float32,
    harness.TF32: torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
#: Largest norm-wise error of an output or gradient. That of a position is a difference of
#: neighbouring cells, in which the rounding of 16-bit kernels weighs more.
AGREEMENT = {
    "float32": 2e-5,
    harness.TF32: 5e-3,
    "float64": 1e-10,
    "float16": 2e-2,
    "bfloat16": 1e-1,
}


# ---------------------------------------------------------------------------------------- the cases


@dataclass(frozen=True)
class Case:
    """A layer, of as many output as input channels, and the size of its input."""

    batch: int
    channels: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    elements: int
    version: str
    groups: int
    cuda_batch: int = 0  #: on CUDA, where a small problem would measure the launch; 0: as on CPU

    @classmethod
    def parse(cls, text: str) -> Case:
        """A type for argparse: a name, or sizes such as ``8x96x56x56:17x17:34:v1``."""
        if text in CASES:
            return CASES[text]
        versions = "|".join(VERSIONS)
        found = re.fullmatch(
            rf"(\d+)x(\d+)((?:x\d+){{1,3}}):(\d+(?:x\d+){{0,2}}):(\d+):({versions})(?::(\d+))?",
            text,
        )
        if found:
            batch, channels, _, _, elements, version, groups = found.groups(default="0")
            size, kernel = (tuple(map(int, re.findall(r"\d+", found[at]))) for at in (3, 4))
            case = cls(int(batch), int(channels), size, kernel, int(elements), version, int(groups))
            if not groups or case.groups == 0:
                case = replace(case, groups=case.channels)
            least = min(case.batch, case.channels, *size, *kernel, case.elements)
            if least >= 1 and len(size) == len(kernel) and case.channels % case.groups == 0:
                return case
        raise argparse.ArgumentTypeError(
            f"takes {', '.join(CASES)}, or sizes BATCHxCHANNELSxSIZE:KERNEL:ELEMENTS:VERSION"
            f"[:GROUPS] such as 8x96x56x56:17x17:34:v1, got {text!r}"
        )

    def __str__(self) -> str:
        return self.spec

    @property
    def spec(self) -> str:
        """The sizes, as :meth:`parse` reads them."""
        size, kernel = ("x".join(map(str, axes)) for axes in (self.size, self.kernel))
        text = f"{self.batch}x{self.channels}x{size}:{kernel}:{self.elements}:{self.version}"
        return text if self.groups == self.channels else f"{text}:{self.groups}"

    def on(self, device: str) -> Case:
        """The case in the size for a device."""
        return (
            replace(self, batch=self.cuda_batch) if device == "cuda" and self.cuda_batch else self
        )

    @property
    def layouts(self) -> tuple[str, ...]:
        """Those that torch has for the number of axes."""
        return LAYOUTS if len(self.size) > 1 else LAYOUTS[:1]

    @property
    def has_plain(self) -> bool:
        """Whether a plain 7x7 depthwise layer could stand in its place."""
        return len(self.size) == 2 and self.groups == self.channels


CASES = {
    "17x17": Case(8, 96, (56, 56), (17, 17), 34, "v1", 96, cuda_batch=128),
    "23x23": Case(8, 96, (56, 56), (23, 23), 26, "gauss", 96, cuda_batch=128),
    "1d": Case(8, 256, (4096,), (129,), 16, "v1", 256, cuda_batch=64),
    "3d": Case(2, 32, (16, 32, 32), (9, 9, 9), 20, "v1", 32, cuda_batch=32),
    "delays": Case(32, 256, (100,), (25,), 1, "v1", 1, cuda_batch=256),
    "delays-gauss": Case(32, 256, (100,), (25,), 1, "gauss", 1, cuda_batch=256),
}


# --------------------------------------------------------------------------------------- the layers


class FftLayer(nn.Module):
    """A depthwise 2-D layer whose kernel is applied by subquadratic-ops-torch.

    It takes a kernel of the size of the input, and float32. Its convolution begins at the kernel's
    first cell, not at its middle: it takes as long, and computes a shifted output.
    """

    def __init__(self, layer: Any, size: tuple[int, ...]) -> None:
        super().__init__()
        from subquadratic_ops_torch.fft_conv2d import fft_conv2d

        self.layer, self.size, self.convolve = layer, size, fft_conv2d

    def forward(self, input: Tensor) -> Tensor:
        layer = self.layer
        kernel = layer._dense_kernel(layer.weight, layer.P, layer.SIG)[:, 0].float()
        rest = [n - k for n, k in zip(self.size, kernel.shape[1:], strict=True)]
        padded = nn.functional.pad(kernel, (0, rest[1], 0, rest[0]))
        output = self.convolve(input.float().contiguous(), padded)
        return output.to(input.dtype) + layer.bias.view(-1, 1, 1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what 0.1.1 logs for each layer about an extension that it would rather use."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)


def make_layer(modules: ModuleType, case: Case, **more: Any) -> Any:
    """Returns a ``Dcls1d``, ``2d`` or ``3d`` out of ours or 0.1.1's modules."""
    kind = getattr(modules, f"Dcls{len(case.size)}d")
    with _quiet():
        return kind(
            case.channels,
            case.channels,
            case.elements,
            padding=tuple(length // 2 for length in case.kernel),
            dilated_kernel_size=case.kernel,
            groups=case.groups,
            version=case.version,
            **more,
        )


def spread_positions(layer: Any) -> None:
    """Draws the positions uniformly over the kernel."""
    with torch.no_grad():
        for row, (low, high) in zip(layer.P, layer._position_limits(), strict=True):
            row.uniform_(low, high)


def make_layers(
    case: Case,
    methods: list[str],
    device: str,
    dtype: str,
    upstream: str,
    positions: str = UNIFORM,
) -> dict[str, nn.Module]:
    """Returns the layers to compare, all but the plain one with the same parameters.

    Args:
        case: the sizes.
        methods: which layers, in this order.
        device: where.
        dtype: a key of :data:`DTYPES`.
        upstream: the folder of DCLS 0.1.1, for the method ``upstream``.
        positions: one of ``harness.POSITIONS``.
    """
    torch.manual_seed(0)
    first = make_layer(DCLS, case).to(device, DTYPES[dtype])
    if positions == UNIFORM:
        spread_positions(first)
    layers: dict[str, nn.Module] = {}
    for method in methods:
        if method == PLAIN:
            if not case.has_plain:
                continue
            layer = nn.Conv2d(
                case.channels,
                case.channels,
                PLAIN_SIZE,
                padding=PLAIN_SIZE // 2,
                groups=case.groups,
            ).to(device, DTYPES[dtype])
        elif method == FFT:
            if not case.has_plain or device == "cpu" or find_spec(FFT_PACKAGE) is None:
                harness.progress(
                    f"fft is left out: it takes 2-D depthwise layers, and {FFT_PACKAGE}"
                )
                continue
            layer = FftLayer(copy.deepcopy(first), case.size)
        elif method == UPSTREAM:
            layer = make_layer(machine.load_upstream(Path(upstream)), case)
            layer.to(device, DTYPES[dtype]).load_state_dict(first.state_dict())
        else:
            layer = copy.deepcopy(first)
            layer.method = "auto" if method == DCLS_LAYER else method
        layers[method] = layer
    return layers


@dataclass
class Problem:
    """The input of a layer and the gradient that comes back to it, in one layout."""

    input: Tensor
    grad_output: Tensor

    @classmethod
    def random(cls, case: Case, layout: str, device: str, dtype: str) -> Problem:
        # On the device: on the CPU it would take longer than a GPU's steps do.
        generator = torch.Generator(device).manual_seed(1)
        # What the padding keeps of the size: an even kernel makes the output one longer.
        sizes = case.size, [n + 1 - k % 2 for n, k in zip(case.size, case.kernel, strict=True)]
        tensors = (
            torch.randn(case.batch, case.channels, *size, generator=generator, device=device).to(
                DTYPES[dtype], memory_format=memory_format(layout, len(size))
            )
            for size in sizes
        )
        return cls(next(tensors).requires_grad_(), next(tensors))


def memory_format(layout: str, ndim: int) -> torch.memory_format:
    """What torch calls a layout."""
    if layout == LAYOUTS[0]:
        return torch.contiguous_format
    return torch.channels_last if ndim == 2 else torch.channels_last_3d


def results_of(layer: nn.Module, problem: Problem) -> dict[str, Tensor]:
    """The output, and the gradients of the input and of the parameters."""
    names, parameters = zip(*layer.named_parameters(), strict=True)
    output = layer(problem.input)
    grad_output = problem.grad_output
    if output.shape != grad_output.shape:  # of the plain layer beside one of an even size
        grad_output = torch.ones_like(output)
    grads = torch.autograd.grad(output, [problem.input, *parameters], grad_output)
    return {"output": output, **dict(zip(["gradient of input", *names], grads, strict=True))}


def make_step(layer: nn.Module, problem: Problem, which: str) -> harness.Step:
    """Returns a step of inference or training."""

    def forward() -> object:
        with torch.no_grad():
            return layer(problem.input)

    return forward if which == PASSES[0] else lambda: results_of(layer, problem)


def way(layer: nn.Module, problem: Problem, which: str) -> str:
    """How a DCLS layer convolves by itself: ``direct`` or ``conv``."""
    with torch.set_grad_enabled(which != PASSES[0]):
        return str(layer.explain(problem.input).method)  # type: ignore[operator]  # it has one


def check_agreement(
    case: Case, layers: dict[str, nn.Module], device: str, dtype: str, upstream: str
) -> None:
    """Compares layers with F.conv in float64, on the first of the batch; else DisagreementError."""
    case = replace(case, batch=1)
    truth: dict[str, Tensor] | None = None
    for method, layer in layers.items():
        if method in (PLAIN, FFT, CONV):  # two compute something else, one is the yardstick
            continue
        for layout in case.layouts if method != UPSTREAM else case.layouts[:1]:
            problem = Problem.random(case, layout, device, dtype)
            if truth is None:
                exact = make_layers(case, [CONV], device, dtype, upstream)[CONV].double()
                doubled = Problem(
                    problem.input.detach().double().requires_grad_(), problem.grad_output.double()
                )
                truth = results_of(exact, doubled)
            for name, got in results_of(layer, problem).items():
                what = f"{case.spec}: the {name} of {method} ({layout}) differs from that of "
                what += "F.conv in float64"
                harness.check_agreement(what, got, truth[name], AGREEMENT[dtype])


def memory_step(
    scale: int,
    spec: str,
    method: str,
    layout: str,
    which: str,
    dtype: str,
    device: str,
    upstream: str,
) -> harness.Step:
    """A step for :mod:`peak_memory`."""
    case = Case.parse(spec)
    case = replace(case, batch=case.batch * scale)
    layer = make_layers(case, [method], device, dtype, upstream)[method]
    return make_step(layer, Problem.random(case, layout, device, dtype), which)


# ------------------------------------------------------------------------------ what it has to take


def valid_outputs(size: int, kernel: int) -> Tensor:
    """For each cell along an axis, how many outputs see the input, not the padding, through it."""
    cells = torch.arange(kernel, dtype=torch.float64)
    first = (kernel // 2 - cells).clamp(min=0)
    outputs = size + 1 - kernel % 2
    last = (size - 1 + kernel // 2 - cells).clamp(max=outputs - 1)
    return (last - first + 1).clamp(min=0)


def multiply_adds(case: Case, cells: Tensor) -> float:
    """Multiply-adds of one convolution with the ``cells`` of a kernel, leaving out the padding.

    Args:
        case: the sizes.
        cells: which cells count, a bool tensor of the shape of the kernel.
    """
    counts = torch.ones((), dtype=torch.float64)
    for size, kernel in zip(case.size, case.kernel, strict=True):
        counts = counts.unsqueeze(-1) * valid_outputs(size, kernel)
    return case.batch * float((cells.sum((0, 1)).cpu() * counts).sum())


def floor_of(
    case: Case, kernel: Tensor, which: str, dtype: str, rates: dict[str, float]
) -> tuple[float, str]:
    """The least seconds that a pass can take on a machine, and the rate that sets them.

    What has to be moved, at the least: input and output for the forward pass; for a training step
    the incoming gradient, the input again and the input's gradient as well. A kernel is small
    beside them. What has to be computed: one multiply-add for each output and non-zero cell of its
    kernel that lies on the input and not on its padding; in a training step three times as many.

    Args:
        case: the sizes.
        kernel: the dense kernel of the layer.
        which: the pass.
        dtype: of input and output.
        rates: what ``bench_device.best_rates`` measured.

    Returns:
        Seconds, and ``copy`` or ``multiply-add``.
    """
    tensor_bytes = case.batch * case.channels * math.prod(case.size) * DTYPES[dtype].itemsize
    tensors, products = (2, 1) if which == PASSES[0] else (5, 3)
    seconds = {
        "copy": tensors * tensor_bytes / rates["bytes_per_s"],
        "multiply-add": products * multiply_adds(case, kernel != 0) / rates["multiply_adds_per_s"],
    }
    bound = max(seconds, key=lambda rate: seconds[rate])
    return seconds[bound], bound
