"""Time and memory of the im2col convolution, beside three other ways to compute the same.

    python benchmarks/bench_im2col.py --threads 2 --slow-repeats 2

*construct* builds the kernel with positions shared by all output channels and convolves as a
construct module does by itself (``method="auto"``); the results say which way that was. *conv*
gives the kernel to torch's convolution, and is left out where construct does so too. *deform* is
torchvision's ``deform_conv2d``, where it is installed: ``v0`` in 2-D only, with offsets for each
input channel that are constant over space. All compute the same output, which is checked before
anything is timed, and the same gradients but that deform's are those of its offsets, one for each
output: the others' are their sums.

Inputs are float32: input and weight normal, positions uniform over the grid, widths SIG 0.23.
``forward`` runs without gradients; ``forward+backward`` returns the output and the gradients of
input, weight, P and SIG for a given incoming gradient.

Columns: ``way``, how *construct* convolves; ``over im2col``, how many times longer a method takes;
``MiB``, the extra peak of :mod:`peak_memory`, and ``returned MiB``, what the step hands back of it.
The budget of im2col, its ``workspace``, is set by --workspace.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import harness
import torch
import torch.nn.functional as F
from harness import PASSES, Row
from torch import Tensor

from DCLS._spec import SIGMA_VERSIONS, VERSIONS
from DCLS.functional import (
    DEFAULT_WORKSPACE,
    construct_kernel,
    construct_support,
    direct_conv,
    im2col_conv,
)

try:
    from torchvision.ops import deform_conv2d
except (ImportError, RuntimeError):  # RuntimeError: it was built for another torch
    deform_conv2d = None

IM2COL, CONSTRUCT, CONV, DEFORM = METHODS = ("im2col", "construct", "conv", "deform")

#: Largest norm-wise difference of float32 outputs.
AGREEMENT = 1e-4


@dataclass(frozen=True)
class Case:
    """The sizes of a convolution that leaves the size of its input."""

    batch: int
    in_channels: int
    out_channels: int
    input: tuple[int, ...]
    kernel_count: int
    size: int  #: grid points on each axis, odd
    groups: int = 1

    def __str__(self) -> str:
        """Such as ``8x64x56x56 to 64, 9 in 31``."""
        shape = "x".join(map(str, (self.batch, self.in_channels, *self.input)))
        groups = f", {self.groups} groups" if self.groups > 1 else ""
        return f"{shape} to {self.out_channels}, {self.kernel_count} in {self.size}{groups}"

    @property
    def output_bytes(self) -> int:
        return 4 * self.batch * self.out_channels * torch.Size(self.input).numel()


CASES = {
    "2d": Case(8, 64, 64, (56, 56), 9, 31),
    "3d": Case(4, 64, 64, (8, 24, 24), 9, 31),
    "1d": Case(8, 64, 64, (4096,), 9, 257),
    # Over kernel size, elements and channels.
    "2d-7": Case(8, 64, 64, (56, 56), 9, 7),
    "2d-15": Case(8, 64, 64, (56, 56), 9, 15),
    "2d-k3": Case(8, 64, 64, (56, 56), 3, 31),
    "2d-k34": Case(8, 64, 64, (56, 56), 34, 31),
    "2d-16": Case(8, 16, 16, (56, 56), 9, 31),
    "2d-256": Case(2, 256, 256, (56, 56), 9, 31),
    "depthwise": Case(8, 96, 96, (56, 56), 34, 17, groups=96),
}


class Problem:
    """Tensors of a case."""

    def __init__(self, case: Case, version: str, device: str, scale: int = 1) -> None:
        self.case, self.version = case, version
        generator = torch.Generator().manual_seed(0)
        ndim = len(case.input)

        def leaf(tensor: Tensor) -> Tensor:
            return tensor.to(device).requires_grad_()

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        batch = case.batch * scale
        self.input = leaf(normal(batch, case.in_channels, *case.input))
        per_group = case.in_channels // case.groups
        self.weight = leaf(normal(case.out_channels, per_group, case.kernel_count))
        rows = (ndim, case.in_channels, case.kernel_count)
        self.P = leaf((torch.rand(rows, generator=generator) - 0.5) * (case.size - 1))
        self.SIG = leaf(torch.full(rows, 0.23)) if version in SIGMA_VERSIONS else None
        self.deform_tensors: list[Tensor] = []
        self.cotangent = normal(batch, case.out_channels, *case.input).to(device)

    @property
    def tensors(self) -> list[Tensor]:
        every = (self.input, self.weight, self.P, self.SIG)
        return [tensor for tensor in every if tensor is not None]

    @property
    def options(self) -> dict[str, Any]:
        size = (self.case.size,) * len(self.case.input)
        return {"dilated_kernel_size": size, "version": self.version}


def run_im2col(problem: Problem, workspace: int) -> Callable[[], Tensor]:
    """The convolution of this package."""
    tensors = (problem.input, problem.weight, None, problem.P, problem.SIG)
    options = {**problem.options, "groups": problem.case.groups, "workspace": workspace}
    return lambda: im2col_conv(*tensors, padding=problem.case.size // 2, **options)


def shared(problem: Problem, rows: Tensor | None) -> Tensor | None:
    """Positions or widths as construct takes them: the same for all output channels of a group."""
    if rows is None:
        return None
    case = problem.case
    of_groups = rows.unflatten(1, (case.groups, 1, case.in_channels // case.groups))
    every = of_groups.expand(-1, -1, case.out_channels // case.groups, -1, -1)
    return every.flatten(1, 2)


def is_direct(case: Case, version: str, which: str, device: str) -> bool:
    """Whether a construct module would convolve directly."""
    chosen = harness.chosen_method(
        input_shape=(case.batch, case.in_channels, *case.input),
        dtype=torch.float32,
        layout="channels_first",
        device_type=device,
        out_channels=case.out_channels,
        groups=case.groups,
        dilated_kernel_size=(case.size,) * len(case.input),
        kernel_count=case.kernel_count,
        version=version,
        training=which != PASSES[0],
    )
    return chosen == "direct"


def run_construct(problem: Problem, may_be_direct: bool) -> Callable[[], Tensor]:
    """The dense kernel and a convolution: the one that a module would take, or torch's."""
    ways = {
        which: may_be_direct
        and is_direct(problem.case, problem.version, which, problem.input.device.type)
        for which in PASSES
    }
    case = problem.case
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(case.input) - 1]
    options = {"padding": case.size // 2, "groups": case.groups}

    def run() -> Tensor:
        P, SIG = shared(problem, problem.P), shared(problem, problem.SIG)
        kernel = construct_kernel(problem.weight, P, SIG, **problem.options)
        if not ways[PASSES[kernel.requires_grad]]:
            return convolve(problem.input, kernel, **options)
        support = construct_support(P, SIG, **problem.options) if kernel.requires_grad else None
        return direct_conv(problem.input, kernel, **options, support=support)

    return run


def run_deform(problem: Problem) -> Callable[[], Tensor]:
    """torchvision's, whose own kernel is a row of elements at columns 0, 1, 2, ..."""
    case = problem.case
    row = torch.arange(case.kernel_count, device=problem.P.device)
    points = torch.Size(case.input).numel()
    weight = problem.weight.detach().unsqueeze(2).requires_grad_()
    # Output o of its own grid is at o - (0, 0) + (0, k): moved to ours, o + P.
    both = torch.stack([problem.P[0], problem.P[1] - row], -1).detach().flatten()
    # Its outputs are fewer by the length of the row: zeros are put behind the input.
    padded = F.pad(problem.input.detach(), (0, case.kernel_count - 1)).requires_grad_()
    offset = both.reshape(1, -1, 1).expand(problem.input.shape[0], -1, points)
    offset = offset.reshape(problem.input.shape[0], -1, *case.input).requires_grad_()
    problem.deform_tensors = [padded, weight, offset]
    return lambda: deform_conv2d(padded, offset, weight)


def runs_of(
    problem: Problem, name: str, workspace: int
) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """A way to compute the output, and the tensors of which it gives gradients."""
    if name == IM2COL:
        return run_im2col(problem, workspace), problem.tensors
    if name in (CONSTRUCT, CONV):
        return run_construct(problem, may_be_direct=name == CONSTRUCT), problem.tensors
    return run_deform(problem), problem.deform_tensors


def make_step(run: Callable[[], Tensor], tensors: list[Tensor], cotangent: Tensor, which: str):
    """A step that returns the output, with the gradients if asked to."""

    def forward() -> object:
        with torch.no_grad():
            return run()

    def both() -> object:
        output = run()
        return output.detach(), torch.autograd.grad(output, tensors, cotangent)

    return forward if which == PASSES[0] else both


def memory_step(
    scale: int, case: str, version: str, name: str, which: str, device: str, workspace: int
) -> harness.Step:
    """A step for :mod:`peak_memory`."""
    problem = Problem(CASES[case], version, device, scale)
    run, tensors = runs_of(problem, name, workspace)
    return make_step(run, tensors, problem.cotangent, which)


def returned_bytes(problem: Problem, tensors: list[Tensor], which: str) -> int:
    """What a step hands back."""
    gradients = sum(t.nbytes for t in tensors) if which == PASSES[1] else 0
    return problem.case.output_bytes + gradients


def methods_of(case: Case, version: str, wanted: Sequence[str]) -> list[str]:
    """Those that can compute the case."""
    can_deform = deform_conv2d is not None and version == "v0" and len(case.input) == 2
    return [n for n in wanted if n != DEFORM or can_deform]


def measure(name: str, version: str, options: argparse.Namespace) -> list[Row]:
    """Returns the rows of both passes of a case and version."""
    case = CASES[name]
    problem = Problem(case, version, options.device)
    every_method = {
        method: runs_of(problem, method, options.workspace)
        for method in methods_of(case, version, options.methods)
    }
    with torch.no_grad():
        expected = every_method[IM2COL][0]()
        for method, (run, _) in every_method.items():
            what = f"the output of {method} differs from im2col's"
            harness.check_agreement(what, run(), expected, AGREEMENT)
    rows = []
    for which in PASSES:
        direct = is_direct(case, version, which, options.device)
        methods = {m: runs for m, runs in every_method.items() if m != CONV or direct}
        memory: dict[str, Any] = {}
        common = {"case": name, "version": version, "which": which}
        common |= {"workspace": options.workspace}
        for method in methods:  # each in a process of its own
            memory |= harness.extra_peaks(
                memory_step, {method: {**common, "name": method}}, options
            )
        steps = {
            method: make_step(run, tensors, problem.cotangent, which)
            for method, (run, tensors) in methods.items()
        }
        timings = harness.time_steps(steps, options)
        for method, seconds in timings.items():
            row: Row = {"case": str(case), "version": version, "pass": which, "method": method}
            row["way"] = ("direct" if direct else "conv") if method == CONSTRUCT else "-"
            row["ms"] = harness.milliseconds(seconds)
            row["over im2col"] = harness.ratio(seconds, timings[IM2COL])
            if method in memory:
                returned = returned_bytes(problem, methods[method][1], which) / 2**20
                row |= {
                    "MiB": harness.rounded(memory[method].mebibytes),
                    "returned MiB": harness.rounded(returned),
                }
            rows.append(row)
    return rows


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = harness.make_parser("Time and memory of the im2col convolution.", memory=True)
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=tuple(CASES),
        default=["2d", "3d"],
        metavar="CASE",
        help="; ".join(f"{name}: {case}" for name, case in CASES.items()),
    )
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=["v0", "gauss"])
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(METHODS),
        help="im2col is always measured",
    )
    parser.add_argument(
        "--workspace", type=harness.positive_int, metavar="BYTES", help="of im2col (its default)"
    )
    options = parser.parse_args()
    harness.apply_options(parser, options)
    options.workspace = options.workspace or DEFAULT_WORKSPACE[options.device]
    options.methods = list(dict.fromkeys([IM2COL, *options.methods]))
    if deform_conv2d is None and DEFORM in options.methods:
        harness.progress("torchvision's deform_conv2d is left out: it is not installed")
    asked = [(c, v) for c in dict.fromkeys(options.cases) for v in dict.fromkeys(options.versions)]
    return harness.run(
        "im2col",
        parser,
        options,
        asked,
        lambda point: measure(*point, options),
        workspace=options.workspace,
    )


if __name__ == "__main__":
    sys.exit(main())
