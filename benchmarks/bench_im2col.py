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

Memory is the extra peak, see :mod:`peak_memory`: all that is returned counts, the tensors that
exist before do not. "returned" is what the step hands back, "beyond" the rest of the peak. The
budget of im2col, its ``workspace``, is set by --workspace.

The JSON file is written anew after each case; "complete" says whether it has them all.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import peak_memory
import torch
import torch.nn.functional as F
from torch import Tensor

from DCLS._spec import SIGMA_VERSIONS, VERSIONS
from DCLS.functional import (
    DEFAULT_WORKSPACE,
    construct_kernel,
    construct_support,
    direct_conv,
    im2col_conv,
)
from DCLS.method import expected_cells, prefers_direct

try:
    from torchvision.ops import deform_conv2d
except ModuleNotFoundError:
    deform_conv2d = None

PASSES = ("forward", "forward+backward")
IM2COL, CONSTRUCT, CONV, DEFORM = METHODS = ("im2col", "construct", "conv", "deform")

#: Largest norm-wise difference of float32 outputs.
AGREEMENT = 1e-4


class DisagreementError(RuntimeError):
    """Two methods compute different things, so that comparing their times means nothing."""


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

    @property
    def text(self) -> str:
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


def is_direct(problem: Problem, kernel: Tensor) -> bool:
    """Whether a construct module would convolve directly."""
    size = problem.options["dilated_kernel_size"]
    cells = expected_cells(problem.version, problem.case.kernel_count, (), size)
    return prefers_direct(problem.input, kernel, cells)


def run_construct(problem: Problem, may_be_direct: bool) -> Callable[[], Tensor]:
    """The dense kernel and a convolution: the one that a module would take, or torch's."""
    case = problem.case
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(case.input) - 1]
    options = {"padding": case.size // 2, "groups": case.groups}

    def run() -> Tensor:
        P, SIG = shared(problem, problem.P), shared(problem, problem.SIG)
        kernel = construct_kernel(problem.weight, P, SIG, **problem.options)
        if not (may_be_direct and is_direct(problem, kernel)):
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


def measure(
    name: str, version: str, options: argparse.Namespace, with_memory: bool
) -> list[dict[str, Any]]:
    """Returns the results of both passes of a case and version."""
    case = CASES[name]
    workspace = options.workspace or DEFAULT_WORKSPACE[options.device]
    problem = Problem(case, version, options.device)
    every_method = {
        method: runs_of(problem, method, workspace)
        for method in methods_of(case, version, options.methods)
    }
    harness.progress(f"{case.text} {version}: outputs")
    outputs = {}
    with torch.no_grad():
        for method, (run, _) in every_method.items():
            outputs[method] = run()
    for method, output in outputs.items():
        want = outputs[IM2COL]
        error = ((output - want).norm() / want.norm()).item()
        if not error <= AGREEMENT:
            raise DisagreementError(f"the output of {method} differs by {error:.1e} from im2col's")
    del outputs

    results = []
    for which in PASSES:
        with torch.set_grad_enabled(which == PASSES[1]):
            P, SIG = shared(problem, problem.P), shared(problem, problem.SIG)
            way = is_direct(problem, construct_kernel(problem.weight, P, SIG, **problem.options))
        methods = {method: run for method, run in every_method.items() if method != CONV or way}
        memory = {}
        if with_memory:
            harness.progress(f"{case.text} {version} {which}: memory")
            for method, (_, tensors) in methods.items():
                common = {"case": name, "version": version, "which": which, "name": method}
                common |= {"device": options.device, "workspace": workspace}
                (peak,) = peak_memory.extra_peaks(
                    Path(__file__),
                    memory_step.__name__,
                    [common],
                    device=options.device,
                    threads=options.threads,
                )
                extra = peak.extra_bytes // peak.scale
                returned = returned_bytes(problem, tensors, which)
                memory[method] = {
                    "extra_bytes": extra,
                    "scale": peak.scale,
                    "returned_bytes": returned,
                    "beyond_bytes": extra - returned,
                }
        harness.progress(f"{case.text} {version} {which}: time")
        timings = harness.time_steps(
            {
                method: make_step(run, tensors, problem.cotangent, which)
                for method, (run, tensors) in methods.items()
            },
            options,
        )
        results.append(
            {
                "case": name,
                "sizes": case.text,
                "version": version,
                "pass": which,
                "workspace": workspace,
                "construct": "direct" if way else "conv",
                "output_bytes": case.output_bytes,
                "load_average": round(os.getloadavg()[0], 2),
                "seconds": {method: timing.as_json() for method, timing in timings.items()},
                "over_im2col": {
                    method: harness.ratios(timing, timings[IM2COL]).as_json()
                    for method, timing in timings.items()
                    if method != IM2COL
                },
                "memory": memory,
            }
        )
    return results


# ------------------------------------------------------------------------------------------ output


def spread(entry: dict[str, float], digits: int, factor: float = 1.0) -> str:
    """Text of the median and range in a result."""
    return harness.Summary(entry["median"], entry["min"], entry["max"]).show(digits, factor)


def table(results: Sequence[dict[str, Any]], upstream: str) -> str:  # noqa: ARG001
    """Lays out the results; "-" where a method was not measured."""
    others = (CONSTRUCT, CONV, DEFORM)
    headers = ["case", "version", "pass", "construct is", "im2col ms"]
    headers += [text for method in others for text in (f"{method} ms", "ratio")]
    headers += [f"{method} MB" for method in METHODS]
    rows = []
    for result in results:
        row = [result["sizes"], result["version"], result["pass"], result["construct"]]
        row.append(spread(result["seconds"][IM2COL], 1, 1e3))
        for method in others:
            seconds = result["seconds"].get(method)
            row.append(f"{seconds['median'] * 1e3:.1f}" if seconds else "-")
            row.append(spread(result["over_im2col"][method], 2) if seconds else "-")
        for method in METHODS:
            entry = result["memory"].get(method)
            row.append(f"{entry['extra_bytes'] / 1e6:.1f}" if entry else "-")
        rows.append(row)
    return harness.format_table(headers, rows, text_columns=4)


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = harness.make_parser("Time and memory of the im2col convolution.")
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=tuple(CASES),
        default=["2d", "3d"],
        metavar="CASE",
        help="; ".join(f"{name}: {case.text}" for name, case in CASES.items()),
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
    options.methods = list(dict.fromkeys([IM2COL, *options.methods]))

    reason = peak_memory.unavailable(options.device)
    asked = [(c, v) for c in dict.fromkeys(options.cases) for v in dict.fromkeys(options.versions)]
    results: list[dict[str, Any]] = []
    for name, version in asked:
        try:
            results += measure(name, version, options, with_memory=not reason)
        except DisagreementError as error:
            print(f"{parser.prog}: error: {error}", file=sys.stderr)
            return 1
        complete = (name, version) == asked[-1]
        content = {**harness.report("im2col", options, results), "complete": complete}
        if options.json is not None:  # at once: a run takes long, and may be stopped
            harness.write_json(options.json, content)

    print(table(results, ""))
    print(
        "Times: median [lowest-highest] of the rounds. Ratios: over im2col. Memory: extra peak "
        "over the\ninputs; what the step returns counts."
    )
    if deform_conv2d is None and DEFORM in options.methods:
        print("torchvision's deform_conv2d was not measured: it is not installed.")
    if reason:
        print(f"Memory was not measured: {reason}.")
    if options.json is not None:
        print(f"written: {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
