"""Time and memory of one DCLS layer, beside three others in the same run.

    pip install --target build/dcls-0.1.1 --no-deps dcls==0.1.1
    python benchmarks/bench_conv.py --upstream build/dcls-0.1.1 --threads 2 --slow-repeats 2

A layer (``dcls``) with the method that it chooses by itself is compared with

* ``conv``: the same layer with method="conv", torch's convolution with the constructed kernel;
* ``plain``: a plain depthwise layer of torch with a 7x7 kernel (2-D cases);
* ``upstream``: the layer of DCLS 0.1.1 with the same parameters, with ``--upstream``;
* ``direct``: the same layer with method="direct", if asked for by ``--methods``.

``forward`` is inference: the layer called without gradients. ``forward+backward`` is what a
training step asks of it: the output, and the gradients of the input and of all parameters for a
given incoming gradient. Both include building the kernel. Each is done with inputs and incoming
gradients in torch's contiguous layout and, for 2 and 3 axes, in channels_last. See
:mod:`conv_cases` for the cases and their values, and :mod:`roofline` for the floors. Before
anything is timed, results and gradients must agree with those of F.conv in float64.

Memory is the extra peak: what is resident at the peak of the step minus what was before it, with
what the step returns. See :mod:`peak_memory` for how it is taken.

``--scaling`` and ``--rule`` ask other questions, each with options of its own: how the times grow
with the sizes (:mod:`conv_scaling`), and whether the layer chooses the faster method
(:mod:`conv_rule`).

The JSON file is written anew after each case; "complete" says whether it has them all.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import conv_cases
import harness
import peak_memory
import roofline
from conv_cases import CASES, CONV, DCLS_LAYER, DIRECT, DTYPES, PASSES, PLAIN, UPSTREAM, Case
from harness import Summary

#: What the columns call the peers.
NAMES = {DIRECT: "direct", CONV: "conv", PLAIN: "7x7"}

# ------------------------------------------------------------------------------------ measurements


def key(method: str, layout: str) -> str:
    """What a figure of a layer in a layout goes by."""
    return f"{method}/{layout}"


def compare(timings: dict[str, harness.Timing], layouts: Sequence[str]) -> dict[str, Any]:
    """How many times longer the peers take: in each layout, and each in its better one."""
    methods = list(dict.fromkeys(name.partition("/")[0] for name in timings))
    peers = [method for method in methods if method != DCLS_LAYER]
    found: dict[str, Any] = {
        layout: {
            peer: harness.ratios(
                timings[key(peer, layout)], timings[key(DCLS_LAYER, layout)]
            ).as_json()
            for peer in peers
        }
        for layout in layouts
    }
    best = {
        method: min(layouts, key=lambda layout: timings[key(method, layout)].summary.median)
        for method in methods
    }
    ours = timings[key(DCLS_LAYER, best[DCLS_LAYER])]
    found["better layouts"] = {
        peer: harness.ratios(timings[key(peer, best[peer])], ours).as_json() for peer in peers
    }
    return {"over_dcls": found, "better_layout": best}


def measure_memory(
    case: Case, methods: Sequence[str], options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Returns the extra peaks, by pass and by layer and layout."""
    asked = [
        {"which": which, "method": method, "layout": layout}
        for which in PASSES
        for method in methods
        for layout in case.layouts
    ]
    common = {
        "spec": case.spec,
        "dtype": options.dtype,
        "device": options.device,
        "upstream": str(options.upstream or ""),
    }
    peaks = peak_memory.extra_peaks(
        Path(conv_cases.__file__),
        conv_cases.memory_step.__name__,
        [{**common, **each} for each in asked],
        device=options.device,
        threads=options.threads,
    )
    found: dict[str, dict[str, Any]] = {which: {} for which in PASSES}
    for each, peak in zip(asked, peaks, strict=True):
        bytes_ = peak.extra_bytes / peak.scale
        found[each["which"]][key(each["method"], each["layout"])] = {
            **peak._asdict(),
            "bytes": round(bytes_),
        }
    return found


def measure(
    case: Case, options: argparse.Namespace, rates: dict[str, float], with_memory: bool
) -> list[dict[str, Any]]:
    """Returns the results of both passes of a case."""
    methods = list(dict.fromkeys([DCLS_LAYER, *options.methods]))
    if options.upstream is not None:
        methods.append(UPSTREAM)
    upstream = str(options.upstream or "")
    layers = conv_cases.make_layers(case, methods, options.device, options.dtype, upstream)
    harness.progress(f"{case.spec}: do the layers agree?")
    conv_cases.check_agreement(case, layers, options.device, options.dtype, upstream)

    memory = None
    if with_memory:
        harness.progress(f"{case.spec}: memory")
        memory = measure_memory(case, list(layers), options)
    dcls: Any = layers[DCLS_LAYER]
    kernel = dcls._dense_kernel(dcls.weight, dcls.P, dcls.SIG).detach()
    support = dcls._kernel_support(dcls.weight, dcls.P, dcls.SIG)
    results = []
    for which in PASSES:
        harness.progress(f"{case.spec}: {which}")
        problems = {
            layout: conv_cases.Problem.random(case, layout, options.device, options.dtype)
            for layout in case.layouts
        }
        steps = {
            key(method, layout): conv_cases.make_step(layer, problem, which)
            for method, layer in layers.items()
            for layout, problem in problems.items()
        }
        timings = harness.time_steps(steps, options)
        work = roofline.work_of(case, kernel, support, which, options.dtype)
        floor = roofline.floor_of(work, rates)
        compared = compare(timings, case.layouts)
        best = timings[key(DCLS_LAYER, compared["better_layout"][DCLS_LAYER])]
        results.append(
            {
                "case": case.spec,
                "dtype": options.dtype,
                "pass": which,
                "way": {
                    layout: conv_cases.way(dcls, problem, which)
                    for layout, problem in problems.items()
                },
                "nonzero_cells": float((kernel != 0).float().mean()),
                "load_average": round(os.getloadavg()[0], 2),
                "seconds": {name: timing.as_json() for name, timing in timings.items()},
                **compared,
                "memory": memory[which] if memory else {},
                "roofline": {
                    **work,
                    **rates,
                    "floor_seconds": floor["seconds"],
                    "bound": floor["bound"],
                    "attained": floor["seconds"] / best.summary.median,
                },
            }
        )
    return results


# ------------------------------------------------------------------------------------------ output


def peers_of(results: Sequence[dict[str, Any]]) -> list[str]:
    """The layers that any result has beside ours, in a fixed order."""
    present = {name.partition("/")[0] for result in results for name in result["seconds"]}
    return [peer for peer in (UPSTREAM, CONV, PLAIN, DIRECT) if peer in present]


def lead(result: dict[str, Any]) -> list[str]:
    """The first columns of a row."""
    return [result["case"], result["dtype"], result["pass"]]


def layout_table(results: Sequence[dict[str, Any]], names: dict[str, str]) -> str:
    """The times in each layout."""
    peers = peers_of(results)
    headers = ["case", "dtype", "pass", "layout", "way", "DCLS ms"]
    for peer in peers:
        headers += [f"{names[peer]} ms", "ratio"]
    rows = []
    for result in results:
        seconds = result["seconds"]
        for layout, way in result["way"].items():
            row = [*lead(result), layout, way]
            row.append(Summary.read(seconds[key(DCLS_LAYER, layout)]).show(1, 1e3))
            for peer in peers:
                ratio = result["over_dcls"][layout].get(peer)
                if ratio is None:
                    row += ["-", "-"]
                    continue
                row.append(f"{seconds[key(peer, layout)]['median'] * 1e3:.1f}")
                row.append(Summary.read(ratio).show(2))
            rows.append(row)
    return harness.format_table(headers, rows, text_columns=5)


def better_table(results: Sequence[dict[str, Any]], names: dict[str, str]) -> str:
    """Each layer in the better of its layouts, and what the machine allows."""
    peers = peers_of(results)
    headers = ["case", "dtype", "pass", "DCLS ms", *(f"{names[peer]} ratio" for peer in peers)]
    headers += ["cells", "floor ms", "bound by", "attained"]
    rows = []
    for result in results:
        best, floor = result["better_layout"], result["roofline"]
        entry = result["seconds"][key(DCLS_LAYER, best[DCLS_LAYER])]
        row = [*lead(result), f"{entry['median'] * 1e3:.1f}"]
        for peer in peers:
            ratio = result["over_dcls"]["better layouts"].get(peer)
            row.append(Summary.read(ratio).show(2) if ratio else "-")
        row.append(f"{result['nonzero_cells']:.0%}")
        row += [f"{floor['floor_seconds'] * 1e3:.2f}", floor["bound"], f"{floor['attained']:.0%}"]
        rows.append(row)
    return harness.format_table(headers, rows, text_columns=3)


def memory_table(results: Sequence[dict[str, Any]], names: dict[str, str]) -> str:
    """The extra peaks; "" where none was measured."""
    peers = peers_of(results)
    headers = ["case", "dtype", "pass", "layout", "DCLS MiB"]
    for peer in peers:
        headers += [f"{names[peer]} MiB", "DCLS over it"]
    rows = []
    for result in results:
        for layout in result["way"] if result["memory"] else ():
            ours = result["memory"][key(DCLS_LAYER, layout)]["bytes"]
            row = [*lead(result), layout, f"{ours / 2**20:.2f}"]
            for peer in peers:
                entry = result["memory"].get(key(peer, layout))
                if entry is None:
                    row += ["-", "-"]
                    continue
                row += [f"{entry['bytes'] / 2**20:.2f}", f"{ours / max(entry['bytes'], 1):.2f}"]
            rows.append(row)
    return harness.format_table(headers, rows, text_columns=4) if rows else ""


def table(results: Sequence[dict[str, Any]], upstream: str) -> str:
    """Lays out the results; "-" where there is no such layer or it was not measured."""
    names = {**NAMES, UPSTREAM: upstream}
    parts = [
        "Time, and how many times longer the others take in the same layout:",
        layout_table(results, names),
        "Each in the better of its layouts, beside the floor that the machine sets:",
        better_table(results, names),
    ]
    memory = memory_table(results, names)
    if memory:
        parts += ["Extra peak memory:", memory]
    return "\n\n".join(parts)


def make_parser() -> argparse.ArgumentParser:
    """The options of the benchmark and of its modes."""
    parser = harness.make_parser("Time and memory of one DCLS layer.")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--scaling", action="store_true", help="how the times grow with each of the sizes"
    )
    modes.add_argument(
        "--rule", action="store_true", help="whether layers choose the faster of their methods"
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        type=Case.parse,
        default=list(CASES.values()),
        metavar="CASE",
        help=", ".join(f"{name} ({case.spec})" for name, case in CASES.items())
        + ", or other sizes, BATCHxCHANNELSxSIZE:KERNEL:ELEMENTS:VERSION[:GROUPS] "
        "(default: these all; with --scaling one, from which each size is varied)",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=list(NAMES),
        default=[CONV, PLAIN],
        help="what to compare with (default: conv plain)",
    )
    parser.add_argument(
        "--axes",
        nargs="+",
        type=int,
        choices=(1, 2, 3),
        default=[1, 2, 3],
        help="of the layers that --rule looks at by itself (default: all)",
    )
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    return parser


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = make_parser()
    options = parser.parse_args()
    harness.apply_options(parser, options)
    no_upstream = "" if options.upstream else "give its folder by --upstream"
    if options.upstream is not None and DTYPES[options.dtype].itemsize < 4:
        options.upstream = None
        no_upstream = f"its layers take no parameters in {options.dtype}"
    if options.scaling or options.rule:
        import conv_rule
        import conv_scaling

        return (conv_scaling if options.scaling else conv_rule).run(parser, options)

    reason = "by --no-memory" if options.no_memory else peak_memory.unavailable(options.device)
    rates = roofline.measure_rates(options.device, options.dtype, options.repeats, options.quick)
    asked = list(dict.fromkeys(case.on(options.device) for case in options.cases))
    results: list[dict[str, Any]] = []
    content: dict[str, Any] = {}
    for case in asked:
        try:
            results += measure(case, options, rates, with_memory=not reason)
        except conv_cases.DisagreementError as error:
            print(f"{parser.prog}: error: {error}", file=sys.stderr)
            return 1
        content = {**harness.report("conv", options, results), "complete": case == asked[-1]}
        if options.json is not None:  # at once: a run takes long, and may be stopped
            harness.write_json(options.json, content)

    print(table(results, content.get("upstream", "0.1.1")))
    print("\nTimes and ratios: median [lowest-highest] of the rounds.")
    if no_upstream:
        print(f"DCLS 0.1.1 was not measured: {no_upstream}.")
    if reason:
        print(f"Memory was not measured: {reason}.")
    if options.json is not None:
        print(f"written: {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
