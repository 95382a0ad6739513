"""The least time that a convolution can take on this machine, from two rates measured in the run.

The rates are those of ``bench_device.py``: of a copy that no cache holds, and of a product of two
matrices, in float32 (in float64 for float64), which counts one multiply-add for each term. Of the
16-bit types it is still that in float32, in which they are accumulated: what uses a GPU's units for
16-bit matrices may be faster.

What has to be moved, at the least: input and output for the forward pass; for a training step the
incoming gradient, the input again and the input's gradient as well. A kernel is small beside them.
What has to be computed: one multiply-add for each output and non-zero cell of its kernel that lies
on the input and not on its padding; in a training step three times as many, with the cells that
need a gradient in the third.
"""

from __future__ import annotations

from typing import Any

import bench_device
import conv_cases
import harness
import torch
from conv_cases import Case
from torch import Tensor


def measure_rates(device: str, dtype: str, repeats: int, quick: bool) -> dict[str, float]:
    """Returns the best rates over the rounds: bytes and multiply-adds in a second."""
    kind = torch.float64 if dtype == "float64" else torch.float32
    mebibytes, order, _ = (bench_device.QUICK_SIZES if quick else bench_device.SIZES)[device]
    source = torch.randn(mebibytes << 18, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(order, order, device=device, dtype=kind) for _ in range(2))
    out = torch.empty_like(a)
    timings = harness.time_interleaved(
        {"copy": lambda: target.copy_(source), "matmul": lambda: torch.mm(a, b, out=out)},
        device=device,
        repeats=repeats,
        min_seconds=0.005 if quick else 0.05,
    )
    return {
        "bytes_per_s": 2 * (mebibytes << 20) / timings["copy"].summary.lowest,
        "multiply_adds_per_s": order**3 / timings["matmul"].summary.lowest,
    }


def work_of(
    case: Case, kernel: Tensor, support: Tensor, which: str, dtype: str
) -> dict[str, float]:
    """Returns the bytes to move, and the multiply-adds of all cells and of the non-zero ones.

    Args:
        case: the sizes.
        kernel: the kernel of the layer.
        support: which of its cells need a gradient.
        which: the pass.
        dtype: of input and output.
    """
    moved = conv_cases.tensor_bytes(case, dtype)
    dense = conv_cases.multiply_adds(case, torch.ones_like(kernel, dtype=torch.bool))
    nonzero = conv_cases.multiply_adds(case, kernel != 0)
    if which == conv_cases.PASSES[0]:
        return {"bytes": 2 * moved, "multiply_adds_dense": dense, "multiply_adds": nonzero}
    wanted = conv_cases.multiply_adds(case, support)
    return {
        "bytes": 5 * moved,
        "multiply_adds_dense": 3 * dense,
        "multiply_adds": 2 * nonzero + wanted,
    }


def floor_of(work: dict[str, float], rates: dict[str, float]) -> dict[str, Any]:
    """Returns the least seconds, and which of the two rates sets them."""
    seconds = {
        "copy": work["bytes"] / rates["bytes_per_s"],
        "multiply-add": work["multiply_adds"] / rates["multiply_adds_per_s"],
    }
    bound = max(seconds, key=lambda rate: seconds[rate])
    return {"seconds": seconds[bound], "bound": bound}
