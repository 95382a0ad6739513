"""Time and memory of a whole model: the same ConvNeXt with plain 7x7 and with DCLS layers.

    pip install --target build/dcls-0.1.1 --no-deps dcls==0.1.1
    python benchmarks/bench_model.py --upstream build/dcls-0.1.1 --threads 2 --slow-repeats 2

The model is shaped as ConvNeXt-T (arXiv 2201.03545: ``--size tiny``, the default on CUDA) or
smaller (``--size small``, the default on CPU), in the blocks of ``DCLS.demo``. Its depthwise layers
are

* ``plain``: 7x7 ones of torch;
* ``17x17``: DCLS, 34 elements, v1; and ``23x23``: DCLS, 26 elements, gauss; each
* ``dcls`` as they are, ``conv`` with method="conv", torch's convolution with the constructed
  kernel, and ``upstream`` out of DCLS 0.1.1 with ``--upstream``, all with the same parameters.

``training`` is a forward and a backward pass, cross entropy, and a step of AdamW, at a rate so
small that the positions stay what they are: uniform over the kernel. ``inference`` is a forward
pass without gradients. The maps between the blocks are in torch's contiguous layout (``NCHW``) or
in channels_last. 16-bit types are by autocast. Before anything is timed, the scores that the
layers of one kernel give must agree.

Memory is the extra peak: what is resident at the peak of the step minus what was before it, when
parameters and the optimizer's state were there and gradients were not. See :mod:`peak_memory`.

The JSON file is written anew after each pass; "complete" says whether it has them all.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import conv_cases
import convnext
import harness
import peak_memory
from conv_cases import AGREEMENT, CONV, DCLS_LAYER, DTYPES, PLAIN, UPSTREAM
from convnext import LAYOUTS, PASSES, SIZES, SPACINGS, ConvNeXt, Size
from harness import Summary
from torch import Tensor

# ------------------------------------------------------------------------------------ measurements


def key(kind: str, method: str, layout: str) -> str:
    """What a figure of a model goes by."""
    return f"{kind}/{method}/{layout}"


def variants(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Returns kind and method of the models to compare."""
    methods = [DCLS_LAYER, CONV] if options.with_conv else [DCLS_LAYER]
    methods += [UPSTREAM] if options.upstream is not None else []
    return [("7x7", PLAIN), *((kind, method) for kind in options.kernels for method in methods)]


def check_agreement(
    size: Size, models: dict[tuple[str, str, str], ConvNeXt], options: argparse.Namespace
) -> None:
    """Compares the scores of the models of one kernel; DisagreementError if they differ."""
    small = replace(size, batch=1)
    scores: dict[str, Tensor] = {}
    for (kind, method, layout), model in models.items():
        step: Any = convnext.make_step(model, small, PASSES[0], options.device, options.dtype)
        got = step().float()
        expected = scores.setdefault(kind, got)
        error = ((got - expected).norm() / expected.norm()).item()
        if not error <= AGREEMENT[options.dtype]:
            raise conv_cases.DisagreementError(
                f"the scores of {key(kind, method, layout)} differ by {error:.1e} of their norm"
            )


def measure_memory(
    size: Size, which: str, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Returns the extra peaks of all models."""
    asked = [
        {"kind": kind, "method": method, "layout": layout}
        for kind, method in variants(options)
        for layout in options.layouts
    ]
    common = {
        "sizes": [size.depths, size.dims, size.resolution, size.batch],
        "which": which,
        "dtype": options.dtype,
        "device": options.device,
        "upstream": str(options.upstream or ""),
    }
    peaks = peak_memory.extra_peaks(
        Path(convnext.__file__),
        convnext.memory_step.__name__,
        [{**common, **each} for each in asked],
        device=options.device,
        threads=options.threads,
    )
    return {
        key(**each): {**peak._asdict(), "bytes": round(peak.extra_bytes / peak.scale)}
        for each, peak in zip(asked, peaks, strict=True)
    }


def measure(
    size: Size,
    models: dict[tuple[str, str, str], ConvNeXt],
    which: str,
    options: argparse.Namespace,
    with_memory: bool,
) -> list[dict[str, Any]]:
    """Returns the results of all models in one pass."""
    memory: dict[str, dict[str, Any]] = {}
    if with_memory:
        harness.progress(f"{which}: memory")
        memory = measure_memory(size, which, options)
    harness.progress(f"{which}: time")
    steps = {
        key(*names): convnext.make_step(model, size, which, options.device, options.dtype)
        for names, model in models.items()
    }
    timings = harness.time_steps(steps, options)
    plain = {layout: key("7x7", PLAIN, layout) for layout in options.layouts}
    better = min(plain.values(), key=lambda name: timings[name].summary.median)
    results = []
    for kind, method, layout in models:
        name = key(kind, method, layout)
        results.append(
            {
                "size": options.size,
                "batch": size.batch,
                "resolution": size.resolution,
                "dtype": options.dtype,
                "pass": which,
                "kernel": kind,
                "method": method,
                "layout": layout,
                "seconds": timings[name].as_json(),
                "over_plain": harness.ratios(timings[name], timings[plain[layout]]).as_json(),
                "over_better_plain": harness.ratios(timings[name], timings[better]).as_json(),
                "memory": memory.get(name),
                "memory_over_plain": (
                    memory[name]["bytes"] / max(memory[plain[layout]]["bytes"], 1)
                    if memory
                    else None
                ),
                "load_average": round(os.getloadavg()[0], 2),
            }
        )
    return results


# ------------------------------------------------------------------------------------------ output


def table(results: Sequence[dict[str, Any]], upstream: str) -> str:
    """Lays out the results."""
    names = {PLAIN: "torch", DCLS_LAYER: "DCLS", CONV: "torch, dense kernel", UPSTREAM: upstream}
    headers = ["model, images", "dtype", "pass", "kernel", "by", "layout", "ms", "over 7x7"]
    headers += ["over the better 7x7", "memory MiB", "memory over 7x7"]
    rows = []
    for result in results:
        memory = result["memory"]
        rows.append(
            [
                f"{result['size']} {result['batch']} of {result['resolution']}",
                result["dtype"],
                result["pass"],
                result["kernel"],
                names[result["method"]],
                result["layout"],
                Summary.read(result["seconds"]).show(1, 1e3),
                Summary.read(result["over_plain"]).show(2),
                Summary.read(result["over_better_plain"]).show(2),
                f"{memory['bytes'] / 2**20:.1f}" if memory else "-",
                f"{result['memory_over_plain']:.2f}" if memory else "-",
            ]
        )
    return harness.format_table(headers, rows, text_columns=6)


def parse_options() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Reads and completes the command line."""
    parser = harness.make_parser("Time and memory of a whole model.")
    parser.add_argument(
        "--size",
        choices=list(SIZES),
        help="depths and dims, and what it is fed (default: small on CPU, tiny on CUDA)",
    )
    parser.add_argument("--batch", type=harness.positive_int, metavar="N", help="images a step")
    parser.add_argument("--resolution", type=harness.positive_int, metavar="N", help="of an image")
    parser.add_argument("--kernels", nargs="+", choices=list(SPACINGS), default=list(SPACINGS))
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument(
        "--dtype", choices=[name for name in DTYPES if name != "float64"], default="float32"
    )
    parser.add_argument(
        "--no-conv",
        dest="with_conv",
        action="store_false",
        help="leave out torch's convolution with the constructed kernel",
    )
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    options = parser.parse_args()
    harness.apply_options(parser, options)
    options.size = options.size or ("tiny" if options.device == "cuda" else "small")
    smallest = 4 * 2 ** (len(SIZES[options.size].dims) - 1)
    if options.resolution is not None and options.resolution < smallest:
        parser.error(f"argument --resolution: takes at least {smallest}, got {options.resolution}")
    return parser, options


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser, options = parse_options()
    chosen = SIZES[options.size]
    size = replace(
        chosen,
        resolution=options.resolution or chosen.resolution,
        batch=options.batch or chosen.batch,
    )
    models = {
        (kind, method, layout): convnext.make_model(
            size, kind, method, layout, options.device, str(options.upstream or "")
        )
        for kind, method in variants(options)
        for layout in options.layouts
    }
    harness.progress("do the models agree?")
    try:
        check_agreement(size, models, options)
    except conv_cases.DisagreementError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    reason = "by --no-memory" if options.no_memory else peak_memory.unavailable(options.device)
    results: list[dict[str, Any]] = []
    content: dict[str, Any] = {}
    for which in options.passes:
        results += measure(size, models, which, options, with_memory=not reason)
        content = harness.report("model", options, results)
        content["complete"] = which == options.passes[-1]
        if options.json is not None:  # at once: a run takes long, and may be stopped
            harness.write_json(options.json, content)

    print(table(results, content.get("upstream", "0.1.1")))
    print("\nTimes and ratios: median [lowest-highest] of the rounds.")
    if options.upstream is None:
        print("DCLS 0.1.1 was not measured: give its folder by --upstream.")
    if reason:
        print(f"Memory was not measured: {reason}.")
    if options.json is not None:
        print(f"written: {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
