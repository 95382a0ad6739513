"""Are torch expressions, which compute without the native library, as fast as DCLS 0.1.1?

    pip install --target build/dcls-0.1.1 --no-deps dcls==0.1.1
    DCLS_BACKEND=torch python benchmarks/bench_pure.py --upstream build/dcls-0.1.1 --threads 1

``construct`` is the module ``ConstructKernelNd``, ``layer`` is ``DclsNd`` with a padding that keeps
the size of its input. Weights and inputs are normal, positions uniform over the kernel, widths SIG
uniform in [0, 1), all of float32. ``times faster`` is the lowest median of several turns of 0.1.1
over the lowest of torch expressions. A row ends with ``below 5`` or ``below 0.5`` where it is less
than that: the construction of ``gauss`` is meant to be 5 times faster, and nothing to take more
than twice as long.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median
from typing import Any

import bench_construct
import conv_cases
import harness
import machine
import torch
from conv_cases import Case
from harness import PASSES, Row
from torch import Tensor

import DCLS
from DCLS import _backend

#: Versions that 0.1.1 has and whose kernels agree with ours at every size.
VERSIONS = ("v1", "max", "gauss")
#: OUTxIN:ELEMENTS:SIZE of a kernel.
KERNELS = (
    *("8x1:5:17", "8x1:5:17x17", "8x1:5:5x5x5"),
    *("384x1:34:17", "128x128:1:25", "128x128:4:25", "128x128:16:25", "128x128:1:51"),
    *("128x128:1:250", "128x128:4:250"),
    *("96x1:34:17x17", "384x1:34:17x17", "64x64:5:7x7", "16x16:5:5x5x5"),
)
#: BATCHxCHANNELSxSIZE:KERNEL:ELEMENTS of a layer, and its groups.
LAYERS = (
    *(("1x8x32:17:5", 8), ("1x8x16x16:17x17:5", 8), ("1x8x8x8x8:5x5x5:5", 8)),
    *(("8x128x100:25:1", 1), ("1x96x28x28:17x17:34", 96), ("4x64x14x14:7x7:5", 1)),
    ("1x16x8x8x8:5x5x5:5", 1),
)
#: How many times faster than 0.1.1 it has to be: the construction of gauss, all others.
LEAST_OF_GAUSS, LEAST = 5.0, 0.5

#: Largest norm-wise difference. 0.1.1 counts positions from the edge, which rounds those of layers.
AGREEMENT = 1e-4

Steps = dict[str, harness.Step]


def check(what: str, got: Tensor, expected: Tensor) -> None:
    """Raises DisagreementError unless both packages compute the same."""
    harness.check_agreement(f"{what} of DCLS 0.1.1 differs from ours", got, expected, AGREEMENT)


def construct_steps(spec: str, version: str, which: str, upstream: Path) -> Steps:
    """Steps of both builders, by package."""
    case = bench_construct.Case.parse(spec)
    problem = bench_construct.Problem.random(case, version, "cpu")
    ours, theirs = (
        bench_construct.make_module(modules, case, version)
        for modules in (DCLS, machine.load_upstream(upstream))
    )
    results = [bench_construct.results_of(build, problem) for build in (theirs, ours)]
    for number, (expected, got) in enumerate(zip(*results, strict=True)):
        check(f"{spec} {version}: result {number}", got, expected)
    steps = bench_construct.make_step
    return {"dcls": steps(ours, problem, which), "0.1.1": steps(theirs, problem, which)}


def layer_steps(spec: str, groups: int, version: str, which: str, upstream: Path) -> Steps:
    """Steps of both layers, by package."""
    case = Case.parse(f"{spec}:{version}:{groups}")
    names = {conv_cases.DCLS_LAYER: "dcls", conv_cases.UPSTREAM: "0.1.1"}
    layers = conv_cases.make_layers(case, [*names], "cpu", "float32", str(upstream))
    ours, theirs = layers.values()
    if ours.SIG is not None:  # those of a new layer of max are 0, and get no gradient
        torch.nn.init.uniform_(ours.SIG)
        theirs.load_state_dict(ours.state_dict())
    problem = conv_cases.Problem.random(case, "contiguous", "cpu", "float32")
    expected = conv_cases.results_of(theirs, problem)
    for name, result in conv_cases.results_of(ours, problem).items():
        check(f"{case.spec}: the {name}", result, expected[name])
    return {
        names[method]: conv_cases.make_step(layer, problem, which)
        for method, layer in layers.items()
    }


def fastest(steps: Steps, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of each step: the lowest of the medians of several turns."""
    turns = [harness.time_steps(steps, options) for _ in range(options.turns)]
    return {name: min(median(turn[name]) for turn in turns) for name in steps}


def measure(what: str, spec: Any, version: str, options: argparse.Namespace) -> list[Row]:
    """Returns the rows of both passes."""
    rows = []
    for which in PASSES:
        if what == "construct":
            steps = construct_steps(spec, version, which, options.upstream)
        else:
            steps = layer_steps(*spec, version, which, options.upstream)
        seconds = fastest(steps, options)
        faster = seconds["0.1.1"] / seconds["dcls"]
        least = LEAST_OF_GAUSS if (what, version) == ("construct", "gauss") else LEAST
        rows.append(
            {
                "what": what,
                "sizes": spec if what == "construct" else spec[0],
                "version": version,
                "pass": which,
                "ms": harness.rounded(seconds["dcls"] * 1e3),
                "ms of 0.1.1": harness.rounded(seconds["0.1.1"] * 1e3),
                "times faster": harness.rounded(faster),
                "too slow": f"below {least:g}" if faster < least else "",
            }
        )
    return rows


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = harness.make_parser("Torch expressions beside DCLS 0.1.1.", upstream=True)
    parser.add_argument("--turns", type=harness.positive_int, default=3, metavar="N")
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=VERSIONS)
    parser.add_argument("--what", nargs="+", choices=("construct", "layer"), default=["construct"])
    parser.add_argument("--sizes", nargs="+", help="only these of the table", metavar="SIZES")
    options = parser.parse_args()
    harness.apply_options(parser, options)
    if _backend.native is not None:
        parser.error("the native library computes: set the environment variable DCLS_BACKEND=torch")
    if options.upstream is None:
        parser.error("argument --upstream: is needed, for there is nothing else to compare with")
    options.min_seconds /= 10  # of many samples
    every = {"construct": KERNELS, "layer": LAYERS}
    points = [
        (what, spec, version)
        for what in options.what
        for spec in every[what]
        if options.sizes is None or (spec if what == "construct" else spec[0]) in options.sizes
        for version in options.versions
    ]
    return harness.run("pure", parser, options, points, lambda point: measure(*point, options))


if __name__ == "__main__":
    sys.exit(main())
