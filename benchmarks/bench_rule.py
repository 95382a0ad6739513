"""Does a layer choose the faster of its two methods?

    python benchmarks/bench_rule.py --threads 2
    python benchmarks/bench_rule.py --axes 2 --device cuda
    python benchmarks/bench_rule.py --threads 1 --schedule

Over a grid of shapes the same layer is timed with method="direct" and with method="conv", both
with the building of the kernel, for inference and training steps and in both layouts; and it is
asked which it would take. The rule is that of ``python/DCLS/method.py``. A choice is listed if it
took more than 10% longer than the other, in the median over the rounds; and then it is timed once
more with twice as many rounds, and has to be slower again: a machine's bad moment is not the
rule's fault.

The grid: depthwise layers, groups of 4 channels and dense ones; small and large kernels of 1, 2
and 3 axes; elements, of version v1, so many that their cells fill 5%, 25% or all of the kernel if
they do not meet; two resolutions. The positions are uniform over the kernel.

``--depthwise``: depthwise planes of all sizes of map and kernel, with few, more and all cells.

``--schedule``: the delay layers of public trainers at the widths that gaussians have from the
first epoch, half of the kernel, to the last, 0.23 steps.

``--again FILE`` measures nothing: it makes the choices of a file anew, by the rule as it is now.
The times of both methods are in the file, and a ratio is turned round where the choice is.

A row is one choice: ``direct ms`` and ``conv ms``, and ``ratio``, how many times as long the
chosen method took as the other. With ``--upstream`` it has ``upstream ms``, those of DCLS 0.1.1.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import bench_conv
import conv_cases
import harness
import torch
from conv_cases import CONV, DCLS_LAYER, DIRECT, UPSTREAM, Case
from harness import PASSES, UNIFORM, Row, Summary

from DCLS import method as rule
from DCLS._spec import INITIAL_SIG
from DCLS.method import Choice

#: A choice that takes so many times as long as the other one is a wrong one.
TOLERATED = 1.10

CHANNELS = 64
DENSITIES = (0.05, 0.25, 1.0)
#: Kernel sizes, and the inputs that they are tried on, by the number of axes.
Sizes = dict[int, tuple[tuple[int, ...], tuple[tuple[int, tuple[int, ...]], ...]]]
SIZES: Sizes = {
    1: ((3, 9, 25, 129), ((8, (128,)), (4, (2048,)))),
    2: ((3, 5, 7, 9, 13, 17, 31), ((8, (14, 14)), (2, (56, 56)))),
    3: ((3, 5, 9), ((1, (8, 16, 16)),)),
}
#: For larger dense kernels on the larger map, a training step of torch's takes over a minute.
MOST_DENSE = 13
#: On a GPU, where the time for it is short.
CUDA_SIZES: Sizes = {
    1: ((9, 25, 129), ((64, (128,)), (32, (2048,)))),
    2: ((3, 7, 17, 31), ((128, (14, 14)), (64, (56, 56)))),
    3: ((3, 5, 9), ((16, (8, 16, 16)),)),
}
#: Layers of few values, which cost what their calls cost.
FEW = (
    "1x64x8x8:5x5:1:v1 1x64x8x8:5x5:6:v1 1x64x8x8:7x7:3:v1 "
    "1x64x8x8:7x7:12:v1 1x64x8x8:9x9:5:v1 1x64x8x8:9x9:20:v1 "
    "1x64x8x8:5x5:4:gauss 1x64x8x8:7x7:6:gauss 1x64x8x8:9x9:9:gauss "
    "1x96x12x12:5x5:6:v1 1x96x12x12:9x9:20:v1 1x96x12x12:9x9:9:gauss "
    "1x32x8x8:9x9:9:gauss 1x256x8x8:9x9:9:gauss"
)
QUICK_SIZES: Sizes = {
    1: ((9,), ((1, (32,)),)),
    2: ((3, 7), ((1, (9, 9)),)),
}


#: Depthwise planes, of the stages of a backbone; in three dimensions, of short clips.
MAPS = ("2x64x56x56", "4x96x28x28", "8x192x14x14", "8x384x7x7")
CLIPS = ("1x16x16x32x32", "2x64x8x16x16", "4x64x4x7x7")


def depthwise() -> list[Case]:
    """Returns depthwise layers; an element of gauss has so many cells that few of them fill all."""
    specs = []
    for inputs, ndim, sizes in ((MAPS, 2, (3, 5, 7, 9, 11, 13, 17, 23)), (CLIPS, 3, (3, 5, 7))):
        for size in inputs:
            for kernel in sizes:
                shape = "x".join([str(kernel)] * ndim)
                for filled in DENSITIES[:2]:
                    elements = max(1, round(filled * kernel**ndim / 2**ndim))
                    specs.append(f"{size}:{shape}:{elements}:v1")
                specs.append(f"{size}:{shape}:{max(1, kernel**ndim // 10)}:gauss")
    return [Case.parse(spec) for spec in dict.fromkeys(specs)]


#: Delay layers: few and many steps of delay, two numbers of channels, small and large batches.
SCHEDULED = tuple(
    Case(batch, channels, (100,), (delays,), 1, "gauss", 1)
    for batch, channels in (*itertools.product((4, 8, 32), (128, 256)), (128, 128))
    for delays in (25, 51)
)
#: Widths of a schedule, from S // 2 to that of a new layer in equal ratios.
WIDTHS = 5


def states(case: Case) -> list[Row]:
    """Returns what a schedule makes of a case: widths, padded by the layer and before it.

    ``width`` is that of the elements, in steps, the first epoch's first. ``longer`` is 0 where the
    layer pads, else what its input has more.
    """
    first, last = case.kernel[0] // 2, INITIAL_SIG["gauss"]
    widths = [first * (last / first) ** (step / (WIDTHS - 1)) for step in range(WIDTHS)]
    return [
        {"width": round(width, 3), "longer": longer}
        for longer in (0, case.kernel[0] - 1)
        for width in widths
    ]


def set_state(layer: torch.nn.Module, state: Row) -> None:
    """Gives a layer the widths and the padding of a state."""
    if state:
        torch.nn.init.constant_(layer.SIG, state["width"])
    if state.get("longer"):
        layer.padding = (0,)


def grid(quick: bool, ndims: Sequence[int], device: str = "cpu") -> list[Case]:
    """Returns the shapes, without those that are equal to another one."""
    cases = []
    sizes = CUDA_SIZES if device == "cuda" else SIZES
    for ndim, (kernels, inputs) in (QUICK_SIZES if quick else sizes).items():
        for kernel in kernels if ndim in ndims else ():
            for density in DENSITIES[:1] if quick else DENSITIES:
                # An element of v1 covers two cells along each axis.
                elements = max(1, round(density * kernel**ndim / 2**ndim))
                for group_size in (1, 4, CHANNELS):
                    for batch, size in inputs:
                        if group_size == CHANNELS and kernel > MOST_DENSE and size == (56, 56):
                            continue
                        groups = CHANNELS // group_size
                        # A dense layer multiplies the work by its channels.
                        channels = CHANNELS if group_size < CHANNELS or ndim < 3 else CHANNELS // 4
                        groups = groups if channels == CHANNELS else 1
                        kernels_ = (kernel,) * ndim
                        cases.append(Case(batch, channels, size, kernels_, elements, "v1", groups))
    return list(dict.fromkeys(cases))


def look(
    steps: dict[str, harness.Step], chosen: str, options: argparse.Namespace
) -> dict[str, Summary]:
    """Times the methods, and compares the chosen one with the other."""
    seconds = harness.time_steps(steps, options)
    other = CONV if chosen == DIRECT else DIRECT
    found = {f"{name} ms": harness.milliseconds(seconds[name]) for name in steps}
    return {**found, "ratio": harness.ratio(seconds[chosen], seconds[other])}


def measure(case: Case, options: argparse.Namespace) -> list[Row]:
    """Returns the rows of a shape in all layouts and passes, and of all states of a schedule."""
    methods = [DCLS_LAYER, DIRECT, CONV, *([UPSTREAM] if options.upstream else [])]
    folder = str(options.upstream or "")
    layers = conv_cases.make_layers(case, methods, options.device, options.dtype, folder)
    asked = layers[DCLS_LAYER]
    rows: list[Row] = []
    for state in states(case) if options.schedule else [{}]:
        for layer in layers.values():
            set_state(layer, state)
        for layout in case.layouts:
            sized = replace(case, size=tuple(n + state.get("longer", 0) for n in case.size))
            problem = conv_cases.Problem.random(sized, layout, options.device, options.dtype)
            for which in PASSES:
                steps = {
                    name: conv_cases.make_step(layer, problem, which)
                    for name, layer in layers.items()
                    if layer is not asked
                }
                with torch.set_grad_enabled(which != PASSES[0]):
                    chosen = asked.explain(problem.input).method
                found = look(steps, chosen, options)
                if found["ratio"].median > TOLERATED:
                    again = argparse.Namespace(**{**vars(options), "repeats": 2 * options.repeats})
                    found = look(steps, chosen, again)
                lead = {"case": case.spec, **state, "layout": layout, "pass": which}
                rows.append({**lead, "chosen": chosen, **found})
    return rows


def choice_now(row: Row) -> Choice:
    """What a layer chooses now where a row was measured, with the vectors of this process."""
    case = Case.parse(row["case"])
    (layer,) = conv_cases.make_layers(case, [DCLS_LAYER], "cpu", "float32", "").values()
    set_state(layer, {name: row[name] for name in ("width", "longer") if name in row})
    size = [points + row.get("longer", 0) for points in case.size]
    layout = conv_cases.memory_format(row["layout"], len(size))
    x = torch.empty(case.batch, case.channels, *size).to(memory_format=layout)
    with torch.set_grad_enabled(row["pass"] != PASSES[0]):
        choice: Choice = layer.explain(x)  # type: ignore[operator]
    return choice


def vectors_of(report: Row) -> AbstractContextManager[Any]:
    """Lets the rule see the vectors of the machine that a report is of."""
    simd = report["machine"]["simd"]
    wide = simd.startswith("avx512")
    vector = 64 if wide and not simd.endswith("_256") else 32
    return mock.patch.multiple(rule, _WIDE_VECTORS=wide, _VECTOR_BYTES=vector)


def choose_again(path: Path) -> None:
    """Makes the choices of a file of results by the present rule."""
    report = harness.read_json(path)
    with vectors_of(report):
        for row in report["results"]:
            chosen = choice_now(row).method
            if chosen != row["chosen"]:
                ratio = row["ratio"]
                turned = (
                    harness.rounded(1 / x) for x in (ratio.median, ratio.highest, ratio.lowest)
                )
                row |= {"chosen": chosen, "ratio": Summary(*turned, ratio.rounds)}
    harness.write_json(path, report)
    print(show(report["results"]))


def kind(row: Row) -> tuple[str, str]:
    """What a shape is counted under: the number of axes, and how the channels are grouped."""
    case = Case.parse(row["case"])
    sizes = {case.channels: "depthwise", 1: "dense"}
    grouped = sizes.get(case.groups, f"groups of {case.channels // case.groups}")
    return f"{len(case.size)}-D", grouped


def summary(rows: Sequence[Row]) -> list[Row]:
    """How often each method was chosen, how often wrongly, and what the choice was worth."""
    kinds: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        kinds.setdefault((*kind(row), row["layout"], row["pass"]), []).append(row)
    found = []
    for names, group in sorted(kinds.items()):
        ratios = [row["ratio"].median for row in group]
        counts: Row = dict(zip(("axes", "channels", "layout", "pass"), names, strict=True))
        counts["shapes"] = len(group)
        for method in (DIRECT, CONV):
            counts[method] = sum(row["chosen"] == method for row in group)
            counts[f"wrong {method}"] = len([r for r in wrong(group) if r["chosen"] == method])
        geometric = math.exp(-sum(math.log(ratio) for ratio in ratios) / len(ratios))
        found.append({**counts, "worst": max(ratios), "gain": geometric})
    return found


def wrong(rows: Sequence[Row]) -> list[Row]:
    """The choices that took more than 10% longer than the other method, the worst first."""
    found = [row for row in rows if row["ratio"].median > TOLERATED]
    return sorted(found, key=lambda row: -row["ratio"].median)


def show(rows: list[Row]) -> str:
    """Lays out the results."""
    return "\n\n".join(
        [
            "The choices; gain: how many times longer the other method took, geometric mean.",
            harness.table(summary(rows)),
            f"Choices that took more than {TOLERATED:.2f} times as long as the other method:",
            harness.table(wrong(rows)),
        ]
    )


def main() -> int:
    """Runs the benchmark; returns the exit status, which does not depend on what it finds."""
    parser = make_parser()
    options = parser.parse_args()
    if options.again is not None:
        choose_again(options.again)
        return 0
    harness.apply_options(parser, options)
    if options.vectors not in (None, "wide" if rule._WIDE_VECTORS else "narrow"):
        print(f"nothing is measured: this machine's vectors are not {options.vectors}")
        return 0
    options.min_seconds /= 2  # there are many to time
    listed = [Case.parse(spec) for spec in FEW.split()] if options.few else []
    listed = list(SCHEDULED) if options.schedule else listed
    listed = depthwise() if options.depthwise else listed
    cases = options.cases or listed or grid(options.quick, options.axes, options.device)
    return harness.run(
        "rule",
        parser,
        options,
        list(dict.fromkeys(case.on(options.device) for case in cases)),
        lambda case: measure(case, options),
        show=show,
        dtype=options.dtype,
        positions=UNIFORM,
    )


def make_parser() -> argparse.ArgumentParser:
    """The options of the benchmark."""
    parser = harness.make_parser(
        "Whether layers choose the faster of their methods.", upstream=True
    )
    bench_conv.add_cases(parser, "default: a grid")
    parser.add_argument(
        "--axes",
        nargs="+",
        type=int,
        choices=(1, 2, 3),
        default=[1, 2, 3],
        help="of the layers of the grid (default: all)",
    )
    parser.add_argument("--few", action="store_true", help="layers of few values, not the grid")
    help = "depthwise planes, not the grid"
    parser.add_argument("--depthwise", action="store_true", help=help)
    help = "measure nothing on a machine whose vectors are others: those of AVX-512 are wide"
    parser.add_argument("--vectors", choices=("narrow", "wide"), help=help)
    help = "delay layers at the widths of a schedule, not the grid"
    parser.add_argument("--schedule", action="store_true", help=help)
    help = "make the choices of a file of results by the rule as it is now"
    parser.add_argument("--again", type=Path, metavar="FILE", help=help)
    return parser


if __name__ == "__main__":
    sys.exit(main())
