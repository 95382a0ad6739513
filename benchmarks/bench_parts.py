"""Where does the time of a direct convolution go?

    python benchmarks/bench_parts.py --threads 2

Depthwise layers, in both layouts. Each pass is timed with the kernel of a DCLS layer and with one
of a single cell a channel, on the batch and on half of it; what differs says what a part takes:

- ``lists ms``: what does not grow with the batch, the lists of the cells and the call;
- ``planes ms``: what grows with the batch where a kernel has one cell, the copies of the planes
  into scratch memory and back;
- ``products ms``: the rest.

``of the peak`` is the share of the machine's multiply-adds, as ``bench_device.py`` has them, that
the products reach, and ``attained`` the share that the whole pass does. A part is a difference of
medians: it is as good as the machine is quiet, and can be below 0.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

import bench_conv
import bench_device
import conv_cases
import harness
import torch
from conv_cases import Case
from harness import Row
from torch import Tensor

#: Large maps, and the small maps of the later stages of a backbone.
SPECS = (
    "8x96x56x56:17x17:34:v1 8x96x56x56:17x17:34:gauss 8x96x56x56:23x23:26:gauss "
    "8x384x14x14:17x17:34:v1 8x384x14x14:17x17:34:gauss "
    "8x768x7x7:17x17:34:v1 8x768x7x7:7x7:9:gauss"
)
FORWARD, OF_INPUT, OF_KERNEL = "forward", "gradient of the input", "gradient of the kernel"


def make_step(which: str, x: Tensor, kernel: Tensor, geometry: tuple[Any, ...]) -> harness.Step:
    """Returns one pass of the operator."""
    if which == FORWARD:
        return lambda: torch.ops.dcls.direct_conv(x, kernel, None, None, *geometry)
    mask = [which == OF_INPUT, which == OF_KERNEL, False]
    arguments = (x, x, kernel, kernel != 0, *geometry, mask)
    return lambda: torch.ops.dcls.direct_conv_backward(*arguments)


def measure(case: Case, options: argparse.Namespace, rates: dict[str, float]) -> list[Row]:
    """Returns the rows of a case: all passes, in both layouts."""
    dtype = conv_cases.DTYPES[options.dtype]
    (layer,) = conv_cases.make_layers(case, ["dcls"], "cpu", "float32", "").values()
    kernel = layer.to_conv().weight.detach().to(dtype)  # type: ignore[operator,union-attr]
    single = torch.zeros_like(kernel)
    single[(..., *(size // 2 for size in case.kernel))] = 1
    padding = [size // 2 for size in case.kernel]
    geometry = ([1, 1], padding, [1, 1], case.groups)
    kernels = {"all": kernel, "one": single}
    least = conv_cases.multiply_adds(case, kernel != 0) / rates["multiply_adds_per_s"]
    rows: list[Row] = []
    for layout in case.layouts:
        x = torch.randn(case.batch, case.channels, *case.size).to(dtype)
        inputs = {
            count: x[:count].to(memory_format=conv_cases.memory_format(layout, len(case.size)))
            for count in (case.batch, case.batch // 2)
        }
        for which in (FORWARD, OF_INPUT, OF_KERNEL):
            steps = {
                f"{name}/{count}": make_step(which, inputs[count], weight, geometry)
                for name, weight in kernels.items()
                for count in inputs
            }
            seconds = harness.time_steps(steps, options)
            at = {name: statistics.median(samples) for name, samples in seconds.items()}
            whole = at[f"all/{case.batch}"]
            growing, planes = (
                2 * (at[f"{name}/{case.batch}"] - at[f"{name}/{case.batch // 2}"])
                for name in kernels
            )
            parts = {"lists": whole - growing, "planes": planes, "products": growing - planes}
            row: Row = {"case": case.spec, "layout": layout, "pass": which}
            row["ms"] = harness.milliseconds(seconds[f"all/{case.batch}"])
            row |= {f"{name} ms": harness.rounded(part * 1e3) for name, part in parts.items()}
            row["of the peak"] = harness.rounded(least / max(parts["products"], least))
            row["attained"] = harness.rounded(least / whole)
            rows.append(row)
    return rows


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = harness.make_parser("Where the time of a direct convolution goes.")
    bench_conv.add_cases(parser, "default: stages of a backbone")
    options = parser.parse_args()
    harness.apply_options(parser, options)
    if options.device != "cpu":
        parser.error("argument --device: this benchmark is of the CPU")
    cases = options.cases or [Case.parse(spec) for spec in SPECS.split()]
    if any(len(case.size) != 2 or not case.has_plain or case.batch < 2 for case in cases):
        parser.error("argument --cases: depthwise layers of two axes, with at least two images")
    rates = bench_device.best_rates(options)
    return harness.run(
        "parts",
        parser,
        options,
        cases,
        lambda case: measure(case, options, rates),
        dtype=options.dtype,
        rates=rates,
    )


if __name__ == "__main__":
    sys.exit(main())
