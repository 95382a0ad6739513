"""``bench_conv.py --scaling``: how the times of a layer grow with each of the sizes.

    python benchmarks/bench_conv.py --scaling --threads 2 --slow-repeats 1

From one case, by default 4x96x28x28 with a 17x17 kernel of 34 elements in v1, each size is varied
with the others kept: the kernel's, the number of elements, the channels, the resolution and the
batch. Compared are the layer as it is in contiguous layout, F.conv with the constructed kernel in
both layouts (``conv``), the plain 7x7 layer in channels_last, in which torch is fast, and with
``--upstream`` DCLS 0.1.1 in contiguous layout. ``docs/draw_scaling.py`` draws the results.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import bench_conv
import conv_cases
import harness
from conv_cases import CONV, DCLS_LAYER, LAYOUTS, PASSES, PLAIN, UPSTREAM, Case
from harness import Summary

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

#: The layers and layouts that are compared.
COMPARED = (
    (DCLS_LAYER, LAYOUTS[0]),
    (CONV, LAYOUTS[0]),
    (CONV, LAYOUTS[1]),
    (PLAIN, LAYOUTS[1]),
    (UPSTREAM, LAYOUTS[0]),
)


def vary(base: Case, axis: str, value: int) -> Case:
    """Returns a case that differs from another one in one size."""
    if axis == "kernel size":
        cells = value ** len(base.kernel)
        return replace(base, kernel=(value,) * len(base.kernel), elements=min(base.elements, cells))
    if axis == "elements":
        return replace(base, elements=value)
    if axis == "channels":
        return replace(base, channels=value, groups=value if base.groups == base.channels else 1)
    if axis == "resolution":
        return replace(base, size=(value,) * len(base.size))
    return replace(base, batch=value)


def measure(axis: str, value: int, case: Case, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the results of both passes of a point."""
    methods = [DCLS_LAYER, *options.methods]
    if options.upstream is not None:
        methods.append(UPSTREAM)
    upstream = str(options.upstream or "")
    layers = conv_cases.make_layers(case, methods, options.device, options.dtype, upstream)
    problems = {
        layout: conv_cases.Problem.random(case, layout, options.device, options.dtype)
        for layout in case.layouts
    }
    results = []
    for which in PASSES:
        harness.progress(f"{axis} {value}: {which}")
        steps = {
            bench_conv.key(method, layout): conv_cases.make_step(
                layers[method], problems[layout], which
            )
            for method, layout in COMPARED
            if method in layers and layout in problems
        }
        timings = harness.time_steps(steps, options)
        results.append(
            {
                "axis": axis,
                "value": value,
                "case": case.spec,
                "dtype": options.dtype,
                "pass": which,
                "way": conv_cases.way(layers[DCLS_LAYER], problems[LAYOUTS[0]], which),
                "load_average": round(os.getloadavg()[0], 2),
                "seconds": {name: timing.as_json() for name, timing in timings.items()},
            }
        )
    return results


def table(results: Sequence[dict[str, Any]], upstream: str) -> str:
    """Lays out the results."""
    names = {CONV: "conv", PLAIN: "7x7", DCLS_LAYER: "DCLS", UPSTREAM: upstream}
    present = {name for result in results for name in result["seconds"]}
    columns = [
        (names[method], layout, bench_conv.key(method, layout))
        for method, layout in COMPARED
        if bench_conv.key(method, layout) in present
    ]
    headers = ["varied", "pass", "way", "value"]
    headers += [f"{name} {layout} ms" for name, layout, _ in columns]
    rows = []
    for result in results:
        row = [result["axis"], result["pass"], result["way"], str(result["value"])]
        for *_, name in columns:
            entry = result["seconds"].get(name)
            row.append(Summary.read(entry).show(2, 1e3) if entry else "-")
        rows.append(row)
    return harness.format_table(headers, rows, text_columns=3)


def run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Runs the mode; returns the exit status."""
    default = parser.get_default("cases")
    if options.cases is not default and len(options.cases) != 1:
        parser.error("argument --cases: --scaling takes one, from which each size is varied")
    base = (BASE if options.cases is default else options.cases[0]).on(options.device)
    axes = QUICK_AXES if options.quick else AXES
    points = [(axis, value) for axis, values in axes.items() for value in values]
    results: list[dict[str, Any]] = []
    for axis, value in points:
        results += measure(axis, value, vary(base, axis, value), options)
        if options.json is not None:
            content = harness.report("scaling", options, results)
            content |= {"base": base.spec, "complete": (axis, value) == points[-1]}
            harness.write_json(options.json, content)
    print(f"Each size of {base.spec} varied:\n")
    print(table(results, harness.upstream_version(options.upstream) if options.upstream else ""))
    if options.json is not None:
        print(f"written: {options.json}")
    return 0
