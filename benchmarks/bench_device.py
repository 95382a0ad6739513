"""What the machine itself can do, to hold the other figures against.

    python benchmarks/bench_device.py --device cuda

Two steps: ``copy`` of one tensor to another, whose bandwidth counts the bytes read and written; and
``matmul``, the product of two square matrices, 2 n^3 operations, once for each dtype.
Values are normal random numbers: on zeros some processors are faster.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import harness
import torch

#: (MiB copied, n of the matrices in float32, n of those in bfloat16), by device.
SIZES = {"cpu": (256, 1024, 1024), "cuda": (4096, 8192, 8192)}
QUICK_SIZES = {"cpu": (16, 128, 128), "cuda": (256, 2048, 2048)}


def measure(device: str, repeats: int, min_seconds: float, quick: bool) -> list[dict[str, Any]]:
    """Returns the results of the copy and of the products."""
    mebibytes, *orders = (QUICK_SIZES if quick else SIZES)[device]
    source = torch.randn(mebibytes << 18, device=device)
    target = torch.empty_like(source)
    steps: dict[str, harness.Step] = {"copy": lambda: target.copy_(source)}
    entries: dict[str, dict[str, Any]] = {
        "copy": {
            "case": f"copy of {mebibytes} MiB",
            "dtype": "float32",
            "bytes": 2 * mebibytes << 20,
        }
    }
    for dtype, n in zip((torch.float32, torch.bfloat16), orders, strict=True):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        name = str(dtype).removeprefix("torch.")
        steps[name] = lambda a=a, b=b, out=out: torch.mm(a, b, out=out)
        entries[name] = {"case": f"matmul {n}x{n}x{n}", "dtype": name, "operations": 2 * n**3}

    timings = harness.time_interleaved(
        steps, device=device, repeats=repeats, min_seconds=min_seconds
    )
    for name, timing in timings.items():
        entries[name]["seconds"] = timing.as_json()
    return list(entries.values())


def rate(result: dict[str, Any]) -> tuple[harness.Summary, str]:
    """The achieved rate of a result, and its unit."""
    seconds = result["seconds"]
    if "bytes" in result:
        amount, unit = result["bytes"] / 1e9, "GB/s"
    else:
        amount, unit = result["operations"] / 1e12, "TFLOP/s"
    # The longest time is the lowest rate.
    lowest, highest = amount / seconds["max"], amount / seconds["min"]
    return harness.Summary(amount / seconds["median"], lowest, highest), unit


def table(results: Sequence[dict[str, Any]], upstream: str) -> str:  # noqa: ARG001
    """Lays out the results."""
    rows = []
    for result in results:
        achieved, unit = rate(result)
        seconds = result["seconds"]
        spread = harness.Summary(seconds["median"], seconds["min"], seconds["max"])
        digits = 1 if achieved.median >= 10 else 3
        rows.append(
            [result["case"], result["dtype"], spread.show(3, 1e3), achieved.show(digits), unit]
        )
    return harness.format_table(["step", "dtype", "ms", "achieved", "unit"], rows, text_columns=2)


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = harness.make_parser("What the machine can do: a copy and a matrix product.")
    options = parser.parse_args()
    harness.apply_options(parser, options)
    if options.upstream is not None:
        parser.error("argument --upstream: DCLS plays no part in this benchmark")
    results = measure(options.device, options.repeats, options.min_seconds, options.quick)
    print(table(results, ""))
    print("Median [lowest-highest] of the rounds. A copy counts the bytes read and written.")
    if options.json is not None:
        harness.write_json(options.json, harness.report("device", options, results))
        print(f"written: {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
