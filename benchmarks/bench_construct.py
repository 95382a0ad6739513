"""Time and memory of building the dense kernel, beside DCLS 0.1.1 in the same run.

    pip install --target build/dcls-0.1.1 --no-deps dcls==0.1.1
    python benchmarks/bench_construct.py --upstream build/dcls-0.1.1 --threads 2

Without ``--upstream`` only this package is measured. Three things are timed: our module
``ConstructKernelNd``, which takes the place of 0.1.1's and is compared with it; 0.1.1's; and the
function ``DCLS.functional.construct_kernel``, which our module calls. ``forward`` runs without
gradients; ``forward+backward`` gives the kernel and the gradients of weight, P and SIG for a given
incoming gradient. Before anything is timed, kernel and gradients of both modules must agree.

Inputs are float32: weights normal, positions uniform over the kernel, widths SIG uniform in [0, 1).

Memory is the extra peak: what is resident at the peak of the step minus what was before it, in
multiples of the constructed kernel's size. The kernel, which the step returns, counts as 1; weight,
P, SIG and the incoming gradient, which exist before, do not count; the gradients that the step
returns do. See :mod:`peak_memory` for how it is taken.

The JSON file is written anew after each case and version; "complete" says whether it has them all.

Bandwidth is kernel bytes over the time of our module; beside it that of ``Tensor.fill_`` on as many
bytes, timed in the same rounds.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import harness
import peak_memory
import torch
from torch import Tensor

import DCLS
from DCLS._spec import SIGMA_VERSIONS, VERSIONS
from DCLS.functional import construct_kernel

#: The versions that DCLS 0.1.1 has, too.
COMPARED = ("v0", "v1", "max", "gauss")

PASSES = ("forward", "forward+backward")
MODULE, FUNCTION, UPSTREAM, FILL = "module", "function", "upstream", "fill"

#: Largest norm-wise difference of float32 results between the two modules.
AGREEMENT = 1e-5


class DisagreementError(RuntimeError):
    """The modules compute different things, so that comparing their times means nothing."""


# ------------------------------------------------------------------------------------ the problems


@dataclass(frozen=True)
class Case:
    """The sizes of a kernel."""

    name: str
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
        return cls(text, out_channels, in_channels, kernel_count, tuple(size))

    @property
    def spec(self) -> str:
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
    "2d": Case("2d", 128, 128, 9, (17, 17)),
    "depthwise": Case("depthwise", 384, 1, 34, (17, 17)),
    "1d": Case("1d", 256, 256, 1, (25,)),
    "3d": Case("3d", 32, 32, 9, (9, 9, 9)),
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
    modules = harness.load_upstream(Path(upstream)) if upstream else DCLS
    problem = Problem.random(case, version, device)
    return make_step(make_module(modules, case, version), problem, which)


# ------------------------------------------------------------------------------------ measurements


def check_agreement(ours: Any, upstream: Any, problem: Problem) -> None:
    """Raises DisagreementError unless two modules give the same kernel and gradients."""
    names = ("kernel", "gradient of weight", "gradient of P", "gradient of SIG")
    values = results_of(ours, problem), results_of(upstream, problem)
    for name, got, expected in zip(names, *values, strict=False):
        error = ((got - expected).norm() / expected.norm()).item()
        if not error <= AGREEMENT:
            raise DisagreementError(
                f"the {name} of DCLS 0.1.1 differs from ours by {error:.1e} of its norm, more than "
                f"{AGREEMENT:.0e}; 0.1.1 centres kernels right only if they are odd and all axes "
                "are of one size"
            )


def measure_memory(
    case: Case, version: str, options: argparse.Namespace, upstream: str
) -> list[peak_memory.Peak]:
    """Returns the extra peaks of both passes."""
    common = {"spec": case.spec, "version": version, "device": options.device}
    return peak_memory.extra_peaks(
        Path(__file__),
        memory_step.__name__,
        [{**common, "which": which, "upstream": upstream} for which in PASSES],
        device=options.device,
        threads=options.threads,
    )


def measure(
    case: Case, version: str, options: argparse.Namespace, with_memory: bool
) -> list[dict[str, Any]]:
    """Returns the results of both passes of a case and version."""
    problem = Problem.random(case, version, options.device)
    builds = {
        MODULE: make_module(DCLS, case, version),
        FUNCTION: lambda weight, P, SIG: construct_kernel(
            weight, P, SIG, dilated_kernel_size=case.size, version=version
        ),
    }
    if options.upstream is not None:
        builds[UPSTREAM] = make_module(harness.load_upstream(options.upstream), case, version)
        check_agreement(builds[MODULE], builds[UPSTREAM], problem)

    memory: dict[str, list[peak_memory.Peak]] = {}
    if with_memory:
        harness.progress(f"{case.spec} {version}: memory")
        memory[MODULE] = measure_memory(case, version, options, "")
        if options.upstream is not None:
            memory[UPSTREAM] = measure_memory(case, version, options, str(options.upstream))

    filled = torch.zeros(case.kernel_shape, device=options.device)
    results = []
    for index, which in enumerate(PASSES):
        harness.progress(f"{case.spec} {version}: {which}")
        steps = {name: make_step(build, problem, which) for name, build in builds.items()}
        timings = harness.time_steps({**steps, FILL: lambda: filled.fill_(1.0)}, options)
        result = {
            "case": case.name,
            "sizes": case.spec,
            "version": version,
            "pass": which,
            "kernel_bytes": case.kernel_bytes,
            "load_average": round(os.getloadavg()[0], 2),
            "seconds": {name: timing.as_json() for name, timing in timings.items()},
            "bandwidth_gb_per_s": {
                name: case.kernel_bytes / timings[name].summary.median / 1e9
                for name in (MODULE, FILL)
            },
            "memory": {
                name: {
                    **peaks[index]._asdict(),
                    "kernels": peaks[index].times(case.kernel_bytes),
                }
                for name, peaks in memory.items()
            },
        }
        if UPSTREAM in timings:
            ratio = harness.ratios(timings[UPSTREAM], timings[MODULE])
            result["upstream_over_module"] = ratio.as_json()
        results.append(result)
    return results


# ------------------------------------------------------------------------------------------ output


def spread(entry: dict[str, float], digits: int, factor: float = 1.0) -> str:
    """Text of the median and range in a result."""
    return harness.Summary(entry["median"], entry["min"], entry["max"]).show(digits, factor)


def table(results: Sequence[dict[str, Any]], upstream: str) -> str:
    """Lays out the results; the columns of 0.1.1 say "-" where it was not measured."""
    headers = ["case", "version", "pass", "module ms", "function ms", f"DCLS {upstream} ms"]
    headers += ["ratio", "memory", f"memory {upstream}", "GB/s", "fill GB/s"]
    rows = []
    for result in results:
        seconds, memory = result["seconds"], result["memory"]
        kernels = {name: f"{entry['kernels']:.2f}x" for name, entry in memory.items()}
        ratio = result.get("upstream_over_module")
        rows.append(
            [
                result["sizes"],
                result["version"],
                result["pass"],
                spread(seconds[MODULE], 2, 1e3),
                f"{seconds[FUNCTION]['median'] * 1e3:.2f}",
                spread(seconds[UPSTREAM], 1, 1e3) if UPSTREAM in seconds else "-",
                spread(ratio, 1) if ratio else "-",
                kernels.get(MODULE, "-"),
                kernels.get(UPSTREAM, "-"),
                *(f"{result['bandwidth_gb_per_s'][name]:.1f}" for name in (MODULE, FILL)),
            ]
        )
    return harness.format_table(headers, rows, text_columns=3)


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = harness.make_parser("Time and memory of building the dense kernel.")
    parser.add_argument(
        "--cases",
        nargs="+",
        type=Case.parse,
        default=[CASES["2d"]],
        metavar="CASE",
        help=", ".join(f"{name} ({case.spec})" for name, case in CASES.items())
        + ", or other sizes, OUTxIN:ELEMENTS:S1[xS2[xS3]] (default: 2d)",
    )
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=COMPARED)
    options = parser.parse_args()
    harness.apply_options(parser, options)

    reason = peak_memory.unavailable(options.device)
    asked = [(c, v) for c in dict.fromkeys(options.cases) for v in dict.fromkeys(options.versions)]
    results: list[dict[str, Any]] = []
    content: dict[str, Any] = {}
    for case, version in asked:
        try:
            results += measure(case, version, options, with_memory=not reason)
        except DisagreementError as error:
            print(f"{parser.prog}: error: {error}", file=sys.stderr)
            return 1
        complete = (case, version) == asked[-1]
        content = {**harness.report("construct", options, results), "complete": complete}
        if options.json is not None:  # at once: a run takes long, and may be stopped
            harness.write_json(options.json, content)

    print(table(results, content.get("upstream", "0.1.1")))
    print(
        "Times: median [lowest-highest] of the rounds. Ratio: 0.1.1 over module. Memory: extra "
        "peak over\nthe inputs, in sizes of the constructed kernel, which itself counts as 1."
    )
    if options.upstream is None:
        print("DCLS 0.1.1 was not measured: give its folder by --upstream.")
    if reason:
        print(f"Memory was not measured: {reason}.")
    if options.json is not None:
        print(f"written: {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
