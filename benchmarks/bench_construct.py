"""Time and memory of building the dense kernel, beside DCLS 0.1.1 in the same run.

    pip install --target build/dcls-0.1.1 --no-deps dcls==0.1.1
    python benchmarks/bench_construct.py --upstream build/dcls-0.1.1 --threads 2

Without ``--upstream`` only this package is measured. Three things are timed: our module
``ConstructKernelNd``, which takes the place of 0.1.1's and is compared with it; 0.1.1's; and the
function ``DCLS.functional.construct_kernel``, which our module calls. ``forward`` runs without
gradients; ``forward+backward`` gives the kernel and the gradients of weight, P and SIG for a given
incoming gradient. Before anything is timed, kernel and gradients of both modules must agree.

Inputs are float32: weights normal, positions uniform over the kernel, widths SIG uniform in [0, 1).

Columns: ``over module``, how many times longer a way takes than our module; ``kernels``, the extra
peak memory in multiples of the constructed kernel's size; ``GB/s``, kernel bytes over the time,
beside that of ``Tensor.fill_`` on as many bytes. In ``kernels`` the kernel, which the step returns,
counts as 1, and so do the gradients that it returns; weight, P, SIG and the incoming gradient,
which exist before, do not. See :mod:`peak_memory` for how it is taken.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import harness
import machine
import torch
from harness import PASSES, Row
from torch import Tensor

import DCLS
from DCLS._spec import SIGMA_VERSIONS, VERSIONS
from DCLS.functional import construct_kernel

#: The versions that DCLS 0.1.1 has, too.
COMPARED = ("v0", "v1", "max", "gauss")

MODULE, FUNCTION, UPSTREAM, FILL = "module", "function", "upstream", "fill"

#: Largest norm-wise difference of float32 results between the two modules.
AGREEMENT = 1e-5

#: Positions are multiples of half this part of a grid step.
_OF_A_STEP = 1024

# ------------------------------------------------------------------------------------ the problems


@dataclass(frozen=True)
class Case:
    """The sizes of a kernel."""

    out_channels: int
    in_channels: int  # of a group
    kernel_count: int
    size: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Case:
        """A type for argparse: a name, or sizes such as ``128x128:9:17x17``."""
        if text in CASES:
            return CASES[text]
        found = re.fullmatch(r"(\d+)x(\d+):(\d+):(\d+(?:x\d+){0,2})", text)
        numbers = [int(number) for number in re.findall(r"\d+", text)]
        if found is None or min(numbers) < 1:
            raise argparse.ArgumentTypeError(
                f"takes {', '.join(CASES)}, or sizes OUTxIN:ELEMENTS:S1[xS2[xS3]] of at least 1 "
                f"such as 128x128:9:17x17, got {text!r}"
            )
        out_channels, in_channels, kernel_count, *size = numbers
        return cls(out_channels, in_channels, kernel_count, tuple(size))

    def __str__(self) -> str:
        """The sizes, as :meth:`parse` reads them."""
        size = "x".join(str(length) for length in self.size)
        return f"{self.out_channels}x{self.in_channels}:{self.kernel_count}:{size}"

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels, *self.size)

    @property
    def kernel_bytes(self) -> int:
        return 4 * torch.Size(self.kernel_shape).numel()


CASES = {
    "2d": Case(128, 128, 9, (17, 17)),
    "depthwise": Case(384, 1, 34, (17, 17)),
    "1d": Case(256, 256, 1, (25,)),
    "3d": Case(32, 32, 9, (9, 9, 9)),
}


@dataclass
class Problem:
    """Arguments of a step."""

    weight: Tensor
    P: Tensor
    SIG: Tensor | None
    grad_kernel: Tensor

    @classmethod
    def random(cls, case: Case, version: str, device: str) -> Problem:
        generator = torch.Generator().manual_seed(0)
        lead = (case.out_channels, case.in_channels, case.kernel_count)
        weight = torch.randn(lead, generator=generator)
        P = torch.rand(len(case.size), *lead, generator=generator) - 0.5
        for row, length in zip(P, case.size, strict=True):
            row *= length - 1
        # 0.1.1 counts them from the edge. Of these it rounds none, over a grid point say, where the
        # gradient jumps.
        P.mul_(_OF_A_STEP).floor_().add_(0.5).div_(_OF_A_STEP)
        SIG = torch.rand(P.shape, generator=generator) if version in SIGMA_VERSIONS else None
        grad_kernel = torch.randn(case.kernel_shape, generator=generator)
        return cls(
            weight.to(device).requires_grad_(),
            P.to(device).requires_grad_(),
            None if SIG is None else SIG.to(device).requires_grad_(),
            grad_kernel.to(device),
        )

    @property
    def inputs(self) -> list[Tensor]:
        return [tensor for tensor in (self.weight, self.P, self.SIG) if tensor is not None]


def results_of(build: Any, problem: Problem) -> tuple[Tensor, ...]:
    """The kernel of ``build(weight, P, SIG)``, then the gradients of weight, P and SIG."""
    kernel = build(problem.weight, problem.P, problem.SIG)
    return kernel, *torch.autograd.grad(kernel, problem.inputs, problem.grad_kernel)


def make_step(build: Any, problem: Problem, which: str) -> harness.Step:
    """Returns a step that calls ``build(weight, P, SIG)``, and differentiates it if asked to."""

    def forward() -> object:
        with torch.no_grad():
            return build(problem.weight, problem.P, problem.SIG)

    return forward if which == PASSES[0] else lambda: results_of(build, problem)


def make_module(modules: ModuleType, case: Case, version: str) -> Any:
    """Returns a ``ConstructKernel1d``, ``2d`` or ``3d`` out of ours or 0.1.1's modules."""
    kind = getattr(modules, f"ConstructKernel{len(case.size)}d")
    # The shapes are those of any convolution with as many input channels in a group.
    groups = 1
    return kind(case.out_channels, case.in_channels, groups, case.kernel_count, case.size, version)


def memory_step(
    scale: int, spec: str, version: str, which: str, device: str, upstream: str
) -> harness.Step:
    """A step for :mod:`peak_memory`: of our module, or of that in the folder ``upstream``."""
    case = Case.parse(spec)
    case = replace(case, out_channels=case.out_channels * scale)
    modules = machine.load_upstream(Path(upstream)) if upstream else DCLS
    problem = Problem.random(case, version, device)
    return make_step(make_module(modules, case, version), problem, which)


# ------------------------------------------------------------------------------------ measurements


def check_agreement(ours: Any, upstream: Any, problem: Problem) -> None:
    """Raises DisagreementError unless two modules give the same kernel and gradients."""
    names = ("kernel", "gradient of weight", "gradient of P", "gradient of SIG")
    values = results_of(upstream, problem), results_of(ours, problem)
    for name, got, expected in zip(names, *values, strict=False):
        # 0.1.1 centres kernels right only if they are odd and all axes are of one size.
        what = f"the {name} of DCLS 0.1.1 differs from ours"
        harness.check_agreement(what, got, expected, AGREEMENT)


def measure(case: Case, version: str, options: argparse.Namespace) -> list[Row]:
    """Returns the rows of both passes of a case and version."""
    problem = Problem.random(case, version, options.device)
    builds = {
        MODULE: make_module(DCLS, case, version),
        FUNCTION: lambda weight, P, SIG: construct_kernel(
            weight, P, SIG, dilated_kernel_size=case.size, version=version
        ),
    }
    if options.upstream is not None:
        builds[UPSTREAM] = make_module(machine.load_upstream(options.upstream), case, version)
        check_agreement(builds[MODULE], builds[UPSTREAM], problem)
    buffer = torch.empty(case.kernel_shape, device=options.device)
    rows = []
    for which in PASSES:
        steps = {name: make_step(build, problem, which) for name, build in builds.items()}
        steps[FILL] = lambda: buffer.fill_(1.0)
        timings = harness.time_steps(steps, options)
        common = {"spec": str(case), "version": version, "which": which}
        folders = {MODULE: "", UPSTREAM: str(options.upstream)}
        asked = {name: {**common, "upstream": folders[name]} for name in folders if name in steps}
        memory = harness.extra_peaks(memory_step, asked, options)
        for name, seconds in timings.items():
            row: Row = {"case": str(case), "version": version, "pass": which, "by": name}
            row["ms"] = harness.milliseconds(seconds)
            row["over module"] = harness.ratio(seconds, timings[MODULE])
            if name in memory:
                row["kernels"] = harness.rounded(memory[name].times(case.kernel_bytes))
            if name in (MODULE, FILL):
                row["GB/s"] = harness.rounded(case.kernel_bytes / statistics.median(seconds) / 1e9)
            rows.append(row)
    return rows


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = harness.make_parser(
        "Time and memory of building the dense kernel.", upstream=True, memory=True
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        type=Case.parse,
        default=[CASES["2d"]],
        metavar="CASE",
        help=", ".join(f"{name} ({case})" for name, case in CASES.items())
        + ", or other sizes, OUTxIN:ELEMENTS:S1[xS2[xS3]] (default: 2d)",
    )
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=COMPARED)
    options = parser.parse_args()
    harness.apply_options(parser, options)
    asked = [(c, v) for c in dict.fromkeys(options.cases) for v in dict.fromkeys(options.versions)]
    return harness.run("construct", parser, options, asked, lambda point: measure(*point, options))


if __name__ == "__main__":
    sys.exit(main())
