"""How the times of a layer grow with each of the sizes.

    python benchmarks/bench_scaling.py --threads 2 --slow-repeats 1

From one case, by default 4x96x28x28 with a 17x17 kernel of 34 elements in v1, each size is varied
with the others kept: the kernel's, the number of elements, the channels, the resolution and the
batch. Compared are the layer as it is in contiguous layout, with positions uniform over the kernel
and with those of a new layer; F.conv with the constructed kernel in both layouts (``conv``); the
plain 7x7 layer in channels_last, in which torch is fast; and with ``--upstream`` DCLS 0.1.1 in
contiguous layout.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any, NamedTuple

import bench_conv
import conv_cases
import harness
from conv_cases import CONV, DCLS_LAYER, LAYOUTS, PLAIN, UPSTREAM, Case
from harness import INITIAL, PASSES, UNIFORM, Row

BASE = Case(4, 96, (28, 28), (17, 17), 34, "v1", 96, cuda_batch=64)

#: What is varied, and over what. Elements of a small kernel are as many as fit, one in each cell.
AXES: dict[str, tuple[int, ...]] = {
    "kernel size": (3, 5, 7, 9, 13, 17, 23, 31),
    "elements": (1, 4, 9, 16, 34, 64, 128),
    "channels": (12, 24, 48, 96, 192, 384),
    "resolution": (7, 14, 28, 56, 112),
    "batch": (1, 2, 4, 8, 16),
}
QUICK_AXES = {name: values[:2] for name, values in AXES.items()}

#: The layers, layouts and positions that are compared.
COMPARED = (
    (DCLS_LAYER, LAYOUTS[0], UNIFORM),
    (DCLS_LAYER, LAYOUTS[0], INITIAL),
    (CONV, LAYOUTS[0], UNIFORM),
    (CONV, LAYOUTS[1], UNIFORM),
    (PLAIN, LAYOUTS[1], "-"),
    (UPSTREAM, LAYOUTS[0], UNIFORM),
)


class Point(NamedTuple):
    """A case that differs from another one in one size."""

    varied: str
    value: int
    case: Case

    def __str__(self) -> str:
        return f"{self.varied} {self.value}"


def vary(base: Case, axis: str, value: int) -> Point:
    """Returns the base with one size replaced."""
    changed: dict[str, Any] = {"batch": value}
    if axis == "kernel size":
        cells = value ** len(base.kernel)
        changed = {"kernel": (value,) * len(base.kernel), "elements": min(base.elements, cells)}
    elif axis == "elements":
        changed = {"elements": value}
    elif axis == "channels":
        changed = {"channels": value, "groups": value if base.groups == base.channels else 1}
    elif axis == "resolution":
        changed = {"size": (value,) * len(base.size)}
    return Point(axis, value, replace(base, **changed))


def measure(point: Point, options: argparse.Namespace) -> list[Row]:
    """Returns the rows of both passes of a point."""
    case = point.case
    common = (options.device, options.dtype, str(options.upstream or ""))
    methods = [CONV, PLAIN] + ([UPSTREAM] if options.upstream is not None else [])
    layers = {
        (name, UNIFORM): layer
        for name, layer in conv_cases.make_layers(case, [DCLS_LAYER, *methods], *common).items()
    }
    if (PLAIN, UNIFORM) in layers:
        layers[PLAIN, "-"] = layers.pop((PLAIN, UNIFORM))
    new = conv_cases.make_layers(case, [DCLS_LAYER], *common, positions=INITIAL)
    layers[DCLS_LAYER, INITIAL] = new[DCLS_LAYER]
    problems = {
        layout: conv_cases.Problem.random(case, layout, options.device, options.dtype)
        for layout in case.layouts
    }
    compared = [
        (method, layout, positions)
        for method, layout, positions in COMPARED
        if (method, positions) in layers and layout in problems
    ]
    rows = []
    for which in PASSES:
        steps = {
            bench_conv.key(method, layout, positions): conv_cases.make_step(
                layers[method, positions], problems[layout], which
            )
            for method, layout, positions in compared
        }
        timings = harness.time_steps(steps, options)
        for (method, layout, positions), seconds in zip(compared, timings.values(), strict=True):
            row: Row = {"varied": point.varied, "value": point.value, "case": case.spec}
            row |= {"pass": which, "method": method, "layout": layout, "positions": positions}
            row["ms"] = harness.milliseconds(seconds)
            if method == DCLS_LAYER:
                row["way"] = conv_cases.way(layers[method, positions], problems[layout], which)
            rows.append(row)
    return rows


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = harness.make_parser("How the times of a layer grow with its sizes.", upstream=True)
    bench_conv.add_cases(parser, f"one, from which each size is varied; default: {BASE.spec}")
    options = parser.parse_args()
    harness.apply_options(parser, options)
    if options.cases and len(options.cases) != 1:
        parser.error("argument --cases: takes one, from which each size is varied")
    base = (options.cases or [BASE])[0].on(options.device)
    axes = QUICK_AXES if options.quick else AXES
    points = [vary(base, axis, value) for axis, values in axes.items() for value in values]
    facts = {"dtype": options.dtype, "base": base.spec}
    return harness.run(
        "scaling", parser, options, points, lambda point: measure(point, options), **facts
    )


if __name__ == "__main__":
    sys.exit(main())
