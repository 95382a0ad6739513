"""Time and memory of one DCLS layer, beside others in the same run.

    pip install --target build/dcls-0.1.1 --no-deps dcls==0.1.1
    python benchmarks/bench_conv.py --upstream build/dcls-0.1.1 --threads 2 --slow-repeats 2

A layer (``dcls``) with the method that it chooses by itself is compared with

* ``conv``: the same layer with method="conv", torch's convolution with the constructed kernel;
* ``plain``: a plain depthwise layer of torch with a 7x7 kernel (2-D cases);
* ``upstream``: the layer of DCLS 0.1.1 with the same parameters, with ``--upstream``;
* ``direct``: the same layer with method="direct", if asked for by ``--methods``;
* ``fft``: the same kernel by subquadratic-ops-torch, if asked for and installed (2-D, CUDA).

``dcls`` is timed with positions that are uniform over the kernel, where training ends, and with
those of a new layer, close to the centre. The time of the others does not depend on the positions.

``forward`` is inference: the layer called without gradients. ``forward+backward`` is what a
training step asks of it: the output, and the gradients of the input and of all parameters for a
given incoming gradient. Both include building the kernel. Each is done with inputs and incoming
gradients in torch's contiguous layout and, for 2 and 3 axes, in channels_last. See
:mod:`conv_cases` for the cases and the floors. Before anything is timed, results and gradients
must agree with those of F.conv in float64. The dtype ``tf32`` is float32 in which torch may round
to TF32.

Columns: ``over dcls``, how many times longer a layer takes than ``dcls`` with uniform positions in
the same layout; ``over best``, than that in the better of its layouts; ``way``, the method that
``dcls`` chooses; ``cells``, the share of its kernel that is not zero; ``floor ms``, the least that
the machine allows, and ``bound``, what sets it; ``attained``, the floor over the time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import bench_device
import conv_cases
import harness
from conv_cases import CASES, CONV, DCLS_LAYER, DIRECT, DTYPES, FFT, PLAIN, UPSTREAM, Case
from harness import INITIAL, PASSES, POSITIONS, UNIFORM, Row


def key(method: str, layout: str, positions: str = UNIFORM) -> str:
    """What a layer goes by, in a layout and with its positions."""
    return f"{method}/{layout}/{positions}"


def compare(seconds: dict[str, list[float]], layouts: Sequence[str]) -> dict[str, Row]:
    """How many times longer each takes than ``dcls``: in its layout, and in the better one."""
    ours = {layout: seconds[key(DCLS_LAYER, layout)] for layout in layouts}
    best = min(ours.values(), key=statistics.median)
    return {
        name: {
            "over dcls": harness.ratio(each, ours[name.split("/")[1]]),
            "over best": harness.ratio(each, best),
        }
        for name, each in seconds.items()
    }


def measure(case: Case, options: argparse.Namespace, rates: dict[str, float]) -> list[Row]:
    """Returns the rows of both passes of a case."""
    methods = list(dict.fromkeys([DCLS_LAYER, *options.methods]))
    if options.upstream is not None:
        methods.append(UPSTREAM)
    common: Any = (options.device, options.dtype, str(options.upstream or ""))
    layers = conv_cases.make_layers(case, methods, *common)
    conv_cases.check_agreement(case, layers, *common)
    memory = harness.extra_peaks(
        conv_cases.memory_step,
        {
            (which, method, layout): {"spec": case.spec, "method": method, "layout": layout}
            | {"which": which, "dtype": options.dtype, "upstream": common[-1]}
            for which in PASSES
            for method in layers
            for layout in case.layouts
        },
        options,
    )
    new = conv_cases.make_layers(case, [DCLS_LAYER], *common, positions=INITIAL)[DCLS_LAYER]
    # A new layer stands behind the one with the same method.
    every = {(DCLS_LAYER, UNIFORM): layers.pop(DCLS_LAYER), (DCLS_LAYER, INITIAL): new}
    every |= {(method, UNIFORM): layer for method, layer in layers.items()}
    kernels = {p: every[DCLS_LAYER, p].to_conv().weight.detach() for p in POSITIONS}
    rows = []
    for which in PASSES:
        problems = {
            layout: conv_cases.Problem.random(case, layout, options.device, options.dtype)
            for layout in case.layouts
        }
        names = {
            key(method, layout, positions): (method, layout, positions)
            for method, positions in every
            for layout in case.layouts
        }
        steps = {
            name: conv_cases.make_step(every[method, positions], problems[layout], which)
            for name, (method, layout, positions) in names.items()
        }
        timings = harness.time_steps(steps, options)
        ratios = compare(timings, case.layouts)
        for name, (method, layout, positions) in names.items():
            row: Row = {"case": case.spec, "pass": which, "method": method, "layout": layout}
            row["positions"] = positions if method != PLAIN else "-"
            row |= {"ms": harness.milliseconds(timings[name]), **ratios[name]}
            if memory and (method, positions) != (DCLS_LAYER, INITIAL):
                row["MiB"] = harness.rounded(memory[which, method, layout].mebibytes)
            if method == DCLS_LAYER:
                row["way"] = conv_cases.way(every[method, positions], problems[layout], which)
                kernel = kernels[positions]
                floor, bound = conv_cases.floor_of(case, kernel, which, options.dtype, rates)
                row["cells"] = harness.rounded(float((kernel != 0).float().mean()))
                row |= {"floor ms": harness.rounded(floor * 1e3), "bound": bound}
                row["attained"] = harness.rounded(floor / statistics.median(timings[name]))
            rows.append(row)
    return rows


def add_cases(parser: argparse.ArgumentParser, note: str) -> None:
    """The options that say what layers are measured, and in which dtype."""
    parser.add_argument(
        "--cases",
        nargs="+",
        type=Case.parse,
        metavar="CASE",
        help=", ".join(f"{name} ({case.spec})" for name, case in CASES.items())
        + f", or other sizes, BATCHxCHANNELSxSIZE:KERNEL:ELEMENTS:VERSION[:GROUPS] ({note})",
    )
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")


def make_parser() -> argparse.ArgumentParser:
    """The options of the benchmark."""
    parser = harness.make_parser("Time and memory of one DCLS layer.", upstream=True, memory=True)
    add_cases(parser, "default: these all")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=[DIRECT, CONV, PLAIN, FFT],
        default=[CONV, PLAIN],
        help="what to compare with (default: conv plain)",
    )
    return parser


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = make_parser()
    options = parser.parse_args()
    harness.apply_options(parser, options)
    if options.upstream is not None and DTYPES[options.dtype].itemsize < 4:
        harness.progress(f"DCLS 0.1.1 is left out: its layers take no {options.dtype}")
        options.upstream = None
    rates = bench_device.best_rates(options)
    cases = dict.fromkeys(case.on(options.device) for case in options.cases or CASES.values())
    return harness.run(
        "conv",
        parser,
        options,
        list(cases),
        lambda case: measure(case, options, rates),
        dtype=options.dtype,
        rates=rates,
    )


if __name__ == "__main__":
    sys.exit(main())
