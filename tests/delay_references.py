"""Delays by loops in plain torch, which share no code with the package."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-7
SMALLEST = {"gauss": 0.27, "max": 1.0}


def tap(version: str, distance: Tensor, width: Tensor | None) -> Tensor:
    """The tap of an element at some distance from it, before normalising."""
    if version == "gauss":
        sigma = width.abs() + SMALLEST["gauss"]
        return torch.exp(-(distance**2) / (2 * sigma**2))
    if version == "max":
        return torch.relu(width.abs() + SMALLEST["max"] - distance.abs())
    if version in ("v0", "v1"):
        return torch.relu(1 - distance.abs())
    a = distance.abs()
    near, far = 2 / 3 - a**2 + a**3 / 2, (2 - a).clamp_min(0) ** 3 / 6
    return torch.where(a < 1, near, far)


def line(version: str, delay: Tensor, width: Tensor | None, longest: int) -> list[Tensor]:
    """How much of a value arrives after 0, 1 ... ``longest`` steps."""
    taps = [tap(version, step - delay, width) for step in range(longest + 1)]
    total = sum(taps) + EPSILON if version != "v0" else 1.0
    return [each / total for each in taps]


def connection(
    x: Tensor,
    weight: Tensor,
    delays: Tensor,
    widths: Tensor | None,
    bias: Tensor | None,
    *,
    sharing: str,
    version: str,
    longest: int,
    earlier: int = 0,
) -> Tensor:
    """A connection with delays: ``x`` is (T, B, I), ``weight`` (O, I, K), the result (T, B, O)."""
    outputs, inputs, count = weight.shape
    steps = [[torch.zeros_like(x[0, :, 0]) for _ in range(outputs)] for _ in x]
    for o in range(outputs):
        for i in range(inputs):
            for k in range(count):
                at = {"synaptic": (o, i, k), "axonal": (i, k), "dendritic": (o, k)}[sharing]
                width = None if widths is None else widths[at]
                for step, part in enumerate(line(version, delays[at], width, longest)):
                    for t in range(len(x)):
                        arrives = t + step - earlier
                        if 0 <= arrives < len(x):
                            steps[arrives][o] = (
                                steps[arrives][o] + weight[o, i, k] * part * x[t, :, i]
                            )
    result = torch.stack([torch.stack(row, -1) for row in steps])
    return result if bias is None else result + bias
