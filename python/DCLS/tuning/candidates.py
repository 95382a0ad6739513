"""The two ways to convolve, on tensors that are like a layer's: whole passes, as a step needs them.

Elements lie spread over the kernel: those of a new layer are close together and touch few cells,
but training spreads them.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from DCLS import _ops
from DCLS._checks import resolve_sigma_min
from DCLS._precision import may_round_float32
from DCLS._spec import INITIAL_SIG
from DCLS.functional import construct_kernel
from DCLS.tuning.decide import Step
from DCLS.tuning.problem import Problem

#: How far results may be from torch's, in norm. Both round; the gradients of positions are
#: differences of sums over the output.
TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}

#: The same of float32 where torch may round its factors to ten bits.
TF32_TOLERANCE = 1e-2

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def output_size(problem: Problem) -> list[int]:
    """Points of the output on each axis; not positive where the kernel does not fit."""
    g = problem.geometry
    sizes = zip(problem.spatial, g.padding, g.kernel_size, g.stride, strict=True)
    return [(length + 2 * pad - size) // step + 1 for length, pad, size, step in sizes]


def bytes_needed(problem: Problem, batch: int) -> int:
    """Returns about how much memory the candidates take together, with the results compared."""
    g = problem.geometry
    values = batch * g.in_channels * math.prod(problem.spatial)
    results = batch * g.out_channels * math.prod(output_size(problem))
    kernel = g.out_channels * g.in_channels // g.groups * math.prod(g.kernel_size)
    copies = 6 if g.grad_input or g.grad_kernel else 3
    # A list of the direct convolution has 12 bytes a cell. Beyond 256 MiB it is made in parts.
    lists = 2 * min(12 * kernel, 256 << 20)
    return copies * g.dtype.itemsize * (values + results) + kernel * 4 * copies + lists


class Synthetic:
    """The tensors of a problem, and the two ways to compute it."""

    def __init__(self, problem: Problem, batch: int, width: float | None = None) -> None:
        """Draws them; the global random numbers stay as they are.

        Args:
            problem: the layer and its input.
            batch: images of the input.
            width: ``abs(SIG)`` of all elements; None for that of a new layer.
        """
        g = self.geometry = problem.geometry
        self.device = g.device
        self._draws = torch.Generator(device=self.device).manual_seed(0)
        layout = torch.contiguous_format
        if g.channels_last and len(problem.spatial) > 1:
            layout = torch.channels_last if len(problem.spatial) == 2 else torch.channels_last_3d
        self.input = self._normal((batch, g.in_channels, *problem.spatial), g.input_dtype)
        self.input = self.input.contiguous(memory_format=layout).requires_grad_(g.grad_input)
        shape = (g.out_channels, g.in_channels // g.groups, *g.dense_kernel_size, g.kernel_count)
        self.weight = self._normal(shape, g.weight_dtype).requires_grad_(g.grad_kernel)
        rows = []
        for size in g.dilated_kernel_size:
            row = self._normal(shape, torch.float32).uniform_(generator=self._draws)
            rows.append(row * (size - 1) - size // 2)
        self.P = torch.stack(rows).to(g.weight_dtype).requires_grad_(g.grad_kernel)
        self.SIG: Tensor | None = None
        if g.version in INITIAL_SIG:
            width = INITIAL_SIG[g.version] if width is None else width
            self.SIG = torch.full_like(self.P, width).requires_grad_(g.grad_kernel)
        self.bias = self._normal((g.out_channels,), g.weight_dtype) if g.bias else None
        if self.bias is not None:
            self.bias.requires_grad_(g.grad_kernel)
        output = output_size(problem)
        # Sums over a channel stay near one: those of float16 must not overflow.
        scale = 1 / math.sqrt(max(1, batch * math.prod(output)))
        grad_output = self._normal((batch, g.out_channels, *output), torch.float32) * scale
        self.grad_output = grad_output.to(g.dtype).contiguous(memory_format=layout)

    def _normal(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        drawn = torch.empty(tuple(shape), dtype=torch.float32, device=self.device)
        return drawn.normal_(generator=self._draws).to(dtype)

    def steps(self) -> dict[str, Step]:
        """Returns the candidates: each gives the output and the gradients that are wanted."""
        return {"conv": self._whole(self._conv), "direct": self._whole(self._direct)}

    def _conv(self) -> Tensor:
        g = self.geometry
        construct: Any = construct_kernel  # for mypy, a version is a literal
        kernel = construct(
            self.weight,
            self.P,
            self.SIG,
            dilated_kernel_size=g.dilated_kernel_size,
            version=g.version,
            sigma_min=g.sigma_min,
        ).reshape(g.out_channels, g.in_channels // g.groups, *g.kernel_size)
        convolve: Any = _CONV[len(g.stride)]
        output: Tensor = convolve(
            self.input, kernel, self.bias, g.stride, g.padding, groups=g.groups
        )
        return output

    def _direct(self) -> Tensor:
        g = self.geometry
        output: Tensor = _ops.layer(
            self.input,
            self.weight,
            self.P,
            self.SIG,
            self.bias,
            g.dilated_kernel_size,
            list(range(len(g.dilated_kernel_size))),
            g.version,
            resolve_sigma_min(g.version, g.sigma_min),
            g.kernel_size,
            g.stride,
            g.padding,
            g.groups,
            [g.grad_input, g.grad_kernel],
        )
        return output

    def _whole(self, forward: Step) -> Step:
        g = self.geometry
        casts = g.input_dtype != g.dtype or g.weight_dtype != g.dtype
        wanted = [
            tensor
            for tensor in (self.input, self.weight, self.P, self.SIG, self.bias)
            if tensor is not None and tensor.requires_grad
        ]

        def step() -> list[Tensor]:
            with torch.autocast(g.device_type, g.dtype) if casts else contextlib.nullcontext():
                output = forward()
            if not wanted:
                return [output]
            grads = torch.autograd.grad(output, wanted, self.grad_output)
            return [output.detach(), *grads]

        return step

    def differs(self, got: Sequence[Tensor], expected: Sequence[Tensor]) -> str:
        """Says how results differ from others by more than rounding explains, else returns ""."""
        dtype = self.geometry.dtype
        tolerance = TOLERANCES[dtype]
        if dtype == torch.float32 and may_round_float32(self.geometry.device_type):
            tolerance = TF32_TOLERANCE
        names = ["output"]
        if self.geometry.grad_input:
            names.append("gradient of the input")
        names += ["gradient of weight", "gradient of P", "gradient of SIG or bias"]
        for index, (one, other) in enumerate(zip(got, expected, strict=True)):
            error = relative_error(one, other)
            if not error <= tolerance:  # NaN, too
                name = names[min(index, len(names) - 1)]
                return f"{name} by {error:.1e} in norm, where {tolerance:.0e} is allowed"
        return ""


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Returns the norm of the difference, over that of ``expected`` unless it is zero."""
    accurate = torch.float64 if expected.dtype == torch.float64 else torch.float32
    norm = float(torch.linalg.vector_norm(expected, dtype=accurate))
    difference = float(torch.linalg.vector_norm(got.to(accurate) - expected.to(accurate)))
    return difference / norm if norm > 0 else difference


class HostClock:
    """The clock of a device that computes while the host waits."""

    def now(self) -> float:
        """Seconds since any moment."""
        return time.perf_counter()

    def time(self, step: Step, calls: int) -> float:
        """Seconds of a call, in the mean over some in a row."""
        started = time.perf_counter()
        for _ in range(calls):
            step()
        return (time.perf_counter() - started) / calls


class CudaClock(HostClock):
    """The clock of a GPU: events before and behind some calls in a row.

    So the time of a call is that of the GPU or of the host that feeds it, whichever is longer.
    """

    def time(self, step: Step, calls: int) -> float:
        """Seconds of a call, in the mean over some in a row."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(calls):
            step()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / calls
