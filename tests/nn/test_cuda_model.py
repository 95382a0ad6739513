"""What ``auto`` assumes of GPUs where it may not measure: a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from DCLS import _cuda_model
from DCLS.method import choose


def on_a_gpu(channels: int, points: int, batch: int = 128, **changes: Any) -> Any:
    settings = {
        "input_shape": (batch, channels, points, points),
        "out_channels": channels,
        "groups": channels,
        "kernel_size": (17, 17),
        "cells": 136,
        "training": True,
        "padding": (8, 8),
        "device_type": "cuda",
    }
    return choose(**{**settings, **changes})


@pytest.mark.parametrize(
    ("channels", "points", "method"),
    [(96, 56, "direct"), (192, 28, "direct"), (384, 14, "direct"), (768, 7, "conv")],
)
def test_the_stages_of_a_network(channels: int, points: int, method: str) -> None:
    # In float64 both ways take twice as long, and what a call costs at least weighs less.
    methods = {torch.float32: method, torch.bfloat16: method, torch.float64: "direct"}
    for dtype, expected in methods.items():
        choice = on_a_gpu(channels, points, dtype=dtype)
        assert (choice.method, choice.source) == (expected, "model")
        assert choice.reason.startswith("a model, not a measurement: direct ")


def test_only_a_wide_margin_counts() -> None:
    """Direct at half of torch's time, not at more."""
    assert _cuda_model.Estimate(1.0, 2.0).method == "direct"
    assert _cuda_model.Estimate(1.01, 2.0).method == "conv"
    assert on_a_gpu(768, 7).method == "conv"


def test_small_and_empty_layers_take_torch() -> None:
    assert on_a_gpu(4, 8, batch=1).method == "conv"
    assert on_a_gpu(96, 56, batch=0).reason == "the output is empty"
    assert on_a_gpu(96, 4, padding=(0, 0)).reason == "the output is empty"


def test_matrix_products_are_hard_to_beat() -> None:
    delays = {"kernel_size": (25,), "padding": (12,), "groups": 1, "out_channels": 256}
    for dtype in (torch.float32, torch.bfloat16):
        shape = (32, 256, 1000)
        choice = on_a_gpu(256, 1, input_shape=shape, dtype=dtype, cells=5, **delays)
        assert choice.method == "conv"


def test_cells_are_counted_only_once() -> None:
    asked = []
    on_a_gpu(96, 56, cells=lambda: asked.append(1) or 136)
    assert asked == [1]


def test_a_graph_depends_on_no_size() -> None:
    """It serves other batches and sizes; only the part of the model is asked for."""

    def function(x: Tensor) -> Tensor:
        choice = on_a_gpu(96, 0, input_shape=x.shape)
        return x + 1 if choice.method == "direct" else x - 1

    compilations = []

    def backend(graph: torch.fx.GraphModule, _inputs: object) -> Any:
        compilations.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=True)
    for batch, points in ((2, 56), (3, 60), (5, 70)):
        x = torch.zeros(batch, 96, points, points)
        assert compiled(x).sum() > 0
    assert len(compilations) == 1
    assert compiled(torch.zeros(2, 96, 7, 7)).sum() < 0
