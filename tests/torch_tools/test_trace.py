"""``torch.jit.trace``: one trace serves training and inference."""

from __future__ import annotations

import pytest
import torch
from layers import LAYERS, Layer
from torch import Tensor, nn

from DCLS import im2col

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def operators(traced: torch.jit.ScriptModule) -> list[str]:
    return [node.kind() for node in traced.inlined_graph.nodes()]


def gradients(module: nn.Module, x: Tensor, names: list[str]) -> list[Tensor]:
    parameters = dict(module.named_parameters())
    return list(torch.autograd.grad(module(x).square().sum(), [parameters[n] for n in names]))


def check(module: nn.Module, x: Tensor) -> None:
    """The trace passes torch's own check, and is the same in both gradient modes."""
    traces = []
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            traces.append(torch.jit.trace(module, x))
    assert operators(traces[0]) == operators(traces[1])
    names = [name for name, _ in module.named_parameters()]
    expected = gradients(module, x, names)
    for traced in traces:
        for got, wanted in zip(gradients(traced, x, names), expected, strict=True):
            torch.testing.assert_close(got, wanted)


#: A transposed layer has one method.
CASES = [
    (layer, {"method": method})
    for layer in LAYERS
    for method in ("auto", "direct", "conv")
    if method == "auto" or not layer.transposed
]


@pytest.mark.parametrize(("layer", "more"), CASES, ids=str)
def test_a_trace_serves_both_gradient_modes(layer: Layer, more: dict[str, str]) -> None:
    torch.manual_seed(0)
    module = layer.make(**({} if layer.transposed else more))
    check(module, layer.input(module, 2))


@pytest.mark.parametrize(("name", "axes"), [("Dcls1d", 1), ("Dcls2d", 2), ("Dcls3d", 3)])
def test_a_trace_of_an_im2col_layer_serves_both(name: str, axes: int) -> None:
    torch.manual_seed(0)
    module = getattr(im2col, name)(4, 4, 2, dilated_kernel_size=5, padding=2)
    check(module, torch.randn(2, 4, *[6] * axes))


def test_a_trace_of_frozen_parameters_asks_for_no_support() -> None:
    layer = next(layer for layer in LAYERS if layer.name == "Dcls2d")
    module = layer.make(method="direct").requires_grad_(False)
    traced = torch.jit.trace(module, layer.input(module, 2))
    assert "dcls::construct_support" not in operators(traced)
    module.requires_grad_(True)
    traced = torch.jit.trace(module, layer.input(module, 2))
    assert "dcls::construct_support" in operators(traced)
