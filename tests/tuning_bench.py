"""What the tests of ``DCLS.tune`` share: a layer, and what stands in for the clock."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import Calls
from torch import Tensor, nn

from DCLS import Dcls2d
from DCLS.tuning import measure
from DCLS.tuning.decide import Decision, Trial
from DCLS.tuning.problem import Problem


class Bench:
    """Stands in for the clock: one way is always the faster."""

    def __init__(self, fastest: str = "conv") -> None:
        self.fastest = fastest
        self.measured: list[tuple[Problem, int, float | None]] = []
        self.seconds: list[float] = []

    def __call__(self, problem: Problem, batch: int, width: float | None, limits: Any) -> Decision:
        self.measured.append((problem, batch, width))
        self.seconds.append(limits.seconds)
        trials = {m: Trial(1e-3 if m == self.fastest else 2e-3) for m in ("conv", "direct")}
        return Decision(self.fastest, trials)


def make_bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Puts a new one in the place of the clock."""
    bench = Bench()
    monkeypatch.setattr(measure, "measure", bench)
    return bench


def layer(**changes: Any) -> Dcls2d:
    settings = {"dilated_kernel_size": 9, "padding": 4, "groups": 4, "version": "v1"}
    return Dcls2d(4, 4, 3, **{**settings, **changes})


def is_direct(module: nn.Module, x: Tensor) -> bool:
    with Calls() as calls:
        module(x)
    return bool(
        {torch.ops.dcls.direct_conv.default, torch.ops.dcls.layer.default} & set(calls.operators)
    )


X = torch.randn(2, 4, 12, 12)
