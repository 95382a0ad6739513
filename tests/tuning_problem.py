"""A problem on a GPU that is not there, and what stands in for the measurement of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from DCLS.method import Choice
from DCLS.tuning import facts, lookup, measure
from DCLS.tuning.decide import Decision, Trial
from DCLS.tuning.problem import Geometry, Problem

GEOMETRY = Geometry(
    device_type="cuda",
    device_index=0,
    dtype=torch.float32,
    input_dtype=torch.float32,
    weight_dtype=torch.float32,
    channels_last=False,
    in_channels=96,
    out_channels=96,
    groups=96,
    kernel_size=(17, 17),
    dense_kernel_size=(),
    dilated_kernel_size=(17, 17),
    stride=(1, 1),
    padding=(8, 8),
    version="v1",
    kernel_count=34,
    sigma_min=None,
    cells=256,
    bias=True,
    grad_input=True,
    grad_kernel=True,
)
PROBLEM = Problem(GEOMETRY, 128, (56, 56), (False, True, False, False, "tf32"))
MACHINE = {
    "device": "NVIDIA H200",
    "capability": [9, 0],
    "torch": "2.9",
    "DCLS": "1.0.0",
    "cuda": "13.0",
    "cudnn": 91000,
    "driver": "13.0",
}
FAST = Decision("direct", {"conv": Trial(4e-3), "direct": Trial(1e-3)})
FAST_CHOICE = Choice("direct", "direct 1 ms, conv 4 ms on NVIDIA H200", "measured here")


class Bench:
    """Stands in for the GPU."""

    def __init__(self) -> None:
        self.decision: Decision | Exception = FAST
        self.measured: list[Problem] = []
        self.machine = dict(MACHINE)

    def __call__(self, problem: Problem, *_: Any) -> Decision:
        self.measured.append(problem)
        if isinstance(self.decision, Exception):
            raise self.decision
        return self.decision


def make_bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Puts a new one in the place of the GPU."""
    bench = Bench()
    monkeypatch.setattr(measure, "measure", bench)
    monkeypatch.setattr(facts, "machine", lambda _device: bench.machine)
    return bench


def find(problem: Problem = PROBLEM, *tensors: Tensor) -> tuple[Choice | None, str]:
    return lookup.find(problem, 100, None, tensors or [torch.zeros(1)])
