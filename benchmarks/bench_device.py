"""What the machine itself can do, to hold the other figures against.

    python benchmarks/bench_device.py --device cuda

Two steps: a copy of one tensor to another, whose rate counts the bytes read and written; and the
product of two square matrices, 2 n^3 operations, once for each dtype. Values are normal random
numbers: on zeros some processors are faster.
"""

from __future__ import annotations

import argparse
import sys
from typing import NamedTuple

import harness
import torch

#: MiB copied, and n of the matrices, by device.
SIZES = {"cpu": (256, 1024), "cuda": (4096, 8192)}
QUICK_SIZES = {"cpu": (16, 128), "cuda": (256, 2048)}
DTYPES = (torch.float32, torch.bfloat16)


class Work(NamedTuple):
    """A step, and how much it does."""

    step: harness.Step
    amount: int  #: bytes, or operations
    name: str
    dtype: str
    unit: str


def copying(device: str, quick: bool) -> Work:
    """The copy."""
    mebibytes = (QUICK_SIZES if quick else SIZES)[device][0]
    source = torch.randn(mebibytes << 18, device=device)
    target = torch.empty_like(source)
    name = f"copy of {mebibytes} MiB"
    return Work(lambda: target.copy_(source), 2 * mebibytes << 20, name, "float32", "GB/s")


def multiplying(device: str, quick: bool, dtype: torch.dtype) -> Work:
    """The product of matrices."""
    n = (QUICK_SIZES if quick else SIZES)[device][1]
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    text = str(dtype).removeprefix("torch.")
    return Work(lambda: torch.mm(a, b, out=out), 2 * n**3, f"matmul {n}x{n}x{n}", text, "TFLOP/s")


def measure(options: argparse.Namespace) -> list[harness.Row]:
    """Returns the rows of the copy and of the products."""
    works = [copying(options.device, options.quick)]
    works += [multiplying(options.device, options.quick, dtype) for dtype in DTYPES]
    timings = harness.time_steps({work.name + work.dtype: work.step for work in works}, options)
    rows = []
    for work, seconds in zip(works, timings.values(), strict=True):
        amount = work.amount / (1e9 if work.unit == "GB/s" else 1e12)
        rates = harness.Summary.of([amount / each for each in seconds])
        rows.append({"step": work.name, "dtype": work.dtype, "ms": harness.milliseconds(seconds)})
        rows[-1] |= {"rate": rates, "unit": work.unit}
    return rows


def best_rates(options: argparse.Namespace) -> dict[str, float]:
    """Bytes and multiply-adds a second in the best round; these in float64 if that is asked for.

    For 16-bit types too they are those in float32, in which they are accumulated.
    """
    dtype = torch.float64 if options.dtype == "float64" else torch.float32
    copy, product = (
        copying(options.device, options.quick),
        multiplying(options.device, options.quick, dtype),
    )
    timings = harness.time_steps({"copy": copy.step, "matmul": product.step}, options)
    return {
        "bytes_per_s": copy.amount / min(timings["copy"]),
        "multiply_adds_per_s": product.amount / 2 / min(timings["matmul"]),
    }


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = harness.make_parser("What the machine can do: a copy and a matrix product.")
    options = parser.parse_args()
    harness.apply_options(parser, options)
    return harness.run("device", parser, options, ["copy and products"], lambda _: measure(options))


if __name__ == "__main__":
    sys.exit(main())
