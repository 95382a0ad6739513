"""``bench_conv.py --rule``: does a layer choose the faster of its two methods?

    python benchmarks/bench_conv.py --rule --threads 2
    python benchmarks/bench_conv.py --rule --axes 2 --device cuda

Over a grid of shapes the same layer is timed with method="direct" and with method="conv", both
with the building of the kernel, for inference and training steps and in both layouts; and it is
asked which it would take. The rule is ``prefers_direct`` in ``python/DCLS/method.py``. A choice is
listed if it took more than 10% longer than the other, in the median over the rounds; and then it is
timed once more with twice as many rounds, and has to be slower again: a machine's bad moment is
not the rule's fault.

The grid: depthwise layers, groups of 4 channels and dense ones; small and large kernels of 1, 2
and 3 axes; elements, of version v1, so many that their cells fill 5%, 25% or all of the kernel if
they do not meet; two resolutions.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from typing import Any

import conv_cases
import harness
from conv_cases import CONV, DIRECT, PASSES, Case
from harness import Summary

#: A choice that takes so many times as long as the other one is a wrong one.
TOLERATED = 1.10

CHANNELS = 64
DENSITIES = (0.05, 0.25, 1.0)
#: Kernel sizes, and the inputs that they are tried on, by the number of axes.
SIZES: dict[int, tuple[tuple[int, ...], tuple[tuple[int, tuple[int, ...]], ...]]] = {
    1: ((3, 9, 25, 129), ((8, (128,)), (4, (2048,)))),
    2: ((3, 5, 7, 9, 13, 17, 31), ((8, (14, 14)), (2, (56, 56)))),
    3: ((3, 5, 9), ((1, (8, 16, 16)),)),
}
#: For larger dense kernels on the larger map, a training step of torch's takes over a minute.
MOST_DENSE = 13
#: On a GPU, where the time for it is short.
CUDA_SIZES: dict[int, tuple[tuple[int, ...], tuple[tuple[int, tuple[int, ...]], ...]]] = {
    1: ((9, 25, 129), ((64, (128,)), (32, (2048,)))),
    2: ((3, 7, 17, 31), ((128, (14, 14)), (64, (56, 56)))),
    3: ((3, 5, 9), ((16, (8, 16, 16)),)),
}
QUICK_SIZES: dict[int, tuple[tuple[int, ...], tuple[tuple[int, tuple[int, ...]], ...]]] = {
    1: ((9,), ((1, (32,)),)),
    2: ((3, 7), ((1, (9, 9)),)),
}


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


def gain(timings: dict[str, harness.Timing], chosen: str) -> Summary:
    """How many times longer the chosen method took than the other."""
    other = CONV if chosen == DIRECT else DIRECT
    return harness.ratios(timings[chosen], timings[other])


def measure(case: Case, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the results of a shape in all layouts and passes."""
    layers = conv_cases.make_layers(case, [DIRECT, CONV], options.device, options.dtype, "")
    chooser = conv_cases.make_layers(case, ["dcls"], options.device, options.dtype, "")["dcls"]
    results = []
    for layout in case.layouts:
        problem = conv_cases.Problem.random(case, layout, options.device, options.dtype)
        for which in PASSES:
            steps = {
                name: conv_cases.make_step(layer, problem, which) for name, layer in layers.items()
            }
            chosen = conv_cases.way(chooser, problem, which)
            timings = harness.time_steps(steps, options)
            looks = 1
            if gain(timings, chosen).median > TOLERATED:
                again = argparse.Namespace(**{**vars(options), "repeats": 2 * options.repeats})
                timings, looks = harness.time_steps(steps, again), 2
            ratio = gain(timings, chosen)
            results.append(
                {
                    "case": case.spec,
                    "dtype": options.dtype,
                    "layout": layout,
                    "pass": which,
                    "chosen": chosen,
                    "looks": looks,
                    "seconds": {name: timing.as_json() for name, timing in timings.items()},
                    "chosen_over_other": ratio.as_json(),
                    "load_average": round(os.getloadavg()[0], 2),
                }
            )
    return results


def kind(result: dict[str, Any]) -> tuple[int, str]:
    """What a shape is counted under: the number of axes, and how the channels are grouped."""
    case = Case.parse(result["case"])
    sizes = {case.channels: "depthwise", 1: "dense"}
    return len(case.size), sizes.get(case.groups, f"groups of {case.channels // case.groups}")


def summary_table(results: Sequence[dict[str, Any]]) -> str:
    """How often each method was chosen, how often wrongly, and what the choice was worth."""
    headers = ["axes", "channels", "layout", "pass", "shapes", "direct", "conv"]
    headers += ["wrong direct", "wrong conv", "worst", "gain by choosing"]
    kinds: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for result in results:
        kinds.setdefault((*kind(result), result["layout"], result["pass"]), []).append(result)
    rows = []
    for (ndim, channels, layout, which), group in sorted(kinds.items()):
        ratios = [result["chosen_over_other"]["median"] for result in group]
        row = [f"{ndim}-D", channels, layout, which, str(len(group))]
        row += [str(sum(r["chosen"] == method for r in group)) for method in (DIRECT, CONV)]
        for method in (DIRECT, CONV):
            row.append(
                str(
                    sum(
                        result["chosen"] == method and ratio > TOLERATED
                        for result, ratio in zip(group, ratios, strict=True)
                    )
                )
            )
        geometric = math.exp(-sum(math.log(ratio) for ratio in ratios) / len(ratios))
        rows.append([*row, f"{max(ratios):.2f}", f"{geometric:.2f}"])
    return harness.format_table(headers, rows, text_columns=4)


def wrong_table(results: Sequence[dict[str, Any]]) -> str:
    """The choices that took more than 10% longer than the other method, the worst first."""
    headers = ["shape", "layout", "pass", "chosen", "direct ms", "conv ms", "chosen over other"]
    wrong = [r for r in results if r["chosen_over_other"]["median"] > TOLERATED]
    wrong.sort(key=lambda result: -result["chosen_over_other"]["median"])
    rows = [
        [
            result["case"],
            result["layout"],
            result["pass"],
            result["chosen"],
            *(f"{result['seconds'][name]['median'] * 1e3:.2f}" for name in (DIRECT, CONV)),
            Summary.read(result["chosen_over_other"]).show(2),
        ]
        for result in wrong
    ]
    return harness.format_table(headers, rows, text_columns=4) if rows else "none"


def table(results: Sequence[dict[str, Any]], upstream: str) -> str:  # noqa: ARG001
    """Lays out the results."""
    return "\n\n".join(
        [
            "The choices; gain: how many times longer the other method took, geometric mean.",
            summary_table(results),
            f"Choices that took more than {TOLERATED:.2f} times as long as the other method:",
            wrong_table(results),
        ]
    )


def run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Runs the mode; returns the exit status, which does not depend on what it finds."""
    if options.upstream is not None:
        parser.error("argument --upstream: DCLS 0.1.1 plays no part in --rule")
    options.min_seconds /= 2  # there are many to time
    default = parser.get_default("cases")
    asked = options.cases
    if asked is default:
        asked = grid(options.quick, options.axes, options.device)
    results: list[dict[str, Any]] = []
    cases = list(dict.fromkeys(case.on(options.device) for case in asked))
    for number, case in enumerate(cases, 1):
        harness.progress(f"{number} of {len(cases)}: {case.spec}")
        results += measure(case, options)
        if options.json is not None:
            content = harness.report("rule", options, results)
            harness.write_json(options.json, {**content, "complete": number == len(cases)})
    print(table(results, ""))
    if options.json is not None:
        print(f"written: {options.json}")
    return 0
