"""Where torch's own convolution does not come back, ``auto`` takes the direct one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tuning.test_measure import QUICK, problem

from DCLS import Dcls2d, _cpu_rule
from DCLS.method import choose
from DCLS.tuning import measure

HANGS: dict[str, Any] = {
    "input_shape": (1, 16, 56, 56),
    "out_channels": 16,
    "groups": 16,
    "kernel_size": (17, 17),
    "cells": 289,
    "training": False,
    "dtype": torch.bfloat16,
    "padding": (8, 8),
    "channels_last": True,
}


@pytest.mark.parametrize(
    "other",
    [
        {"input_shape": (1, 24, 56, 56), "out_channels": 24, "groups": 24},
        {"groups": 1},
        {"kernel_size": (17, 13)},
        {"dtype": torch.float32},
        {"channels_last": False},
    ],
    ids=str,
)
def test_auto_keeps_away_from_it(other: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpu_rule, "TORCH_HAS_AVX512", True)
    choice = choose(**HANGS)
    assert (choice.method, choice.reason) == ("direct", _cpu_rule.TORCH_HANGS)
    assert choose(**(HANGS | other)).reason != _cpu_rule.TORCH_HANGS
    monkeypatch.setattr(_cpu_rule, "TORCH_HAS_AVX512", False)
    assert choose(**HANGS).reason != _cpu_rule.TORCH_HANGS


def test_a_layer_of_few_channels_in_bfloat16() -> None:
    layer = Dcls2d(3, 3, 60, dilated_kernel_size=(1, 17), padding=(0, 8), groups=3).bfloat16()
    x = torch.randn(1, 3, 3, 56).bfloat16().contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        if _cpu_rule.TORCH_HAS_AVX512:
            assert layer.explain(x).method == "direct"
            assert layer(x).shape == x.shape


def test_it_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpu_rule, "TORCH_HAS_AVX512", True)
    given = problem((17, 17), dtype=torch.bfloat16)
    form = {"in_channels": 3, "out_channels": 3, "groups": 3, "channels_last": True}
    given = given._replace(geometry=given.geometry._replace(**form))
    decision = measure.measure(given, 2, None, QUICK)
    assert decision.taken is None
    assert decision.trials["conv"].failure == _cpu_rule.TORCH_HANGS
