"""``Module.to(memory_format=...)`` of models with DCLS layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layers import LAYERS, Layer, assert_close, layer_id
from torch import nn
from torch.nn.utils import parametrize

import DCLS

FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}
layers = pytest.mark.parametrize(
    "layer", [layer for layer in LAYERS if layer.ndim in FORMATS], ids=layer_id
)


def strides(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: value.stride() for name, value in module.named_parameters()}


@layers
def test_a_model_of_one_rank_converts(layer: Layer) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d if layer.ndim == 2 else nn.Conv3d
    module = layer.make()
    module(layer.input(module, 2)).sum().backward()  # gradients are converted, too
    model = nn.ModuleDict({"block": nn.Sequential(module, plain(6, 2, 1))})
    before, kept = strides(module), [id(p) for p in model.parameters()]
    x = layer.input(module, 2)
    want = model["block"](x)
    form: Any = FORMATS[layer.ndim]
    assert model.to(memory_format=form) is model
    assert strides(module) == before
    assert [id(p) for p in model.parameters()] == kept
    assert model["block"][1].weight.is_contiguous(memory_format=form)
    assert_close(model["block"](x.to(memory_format=form)), want, 1e-5)
    model.to(torch.float64, memory_format=form)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert {p.grad.dtype for p in module.parameters() if p.grad is not None} == {torch.float64}
    assert strides(module) == before
    assert_close(model["block"](x.double().to(memory_format=form)).float(), want, 1e-5)


def test_im2col_layers_convert() -> None:
    torch.manual_seed(0)
    for kind, ndim in ((DCLS.im2col.Dcls2d, 2), (DCLS.im2col.Dcls3d, 3)):
        module = kind(2, 2, 3, dilated_kernel_size=3)
        x = torch.randn(1, 2, *(5,) * ndim)
        want = module(x)
        module.to(memory_format=FORMATS[ndim])
        assert_close(module(x.to(memory_format=FORMATS[ndim])), want, 1e-6)


class Twice(nn.Module):
    """A parametrization: its original is held by a child of the layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_parametrized_and_swapped_layers_convert() -> None:
    torch.manual_seed(0)
    module = DCLS.Dcls2_1d(2, 2, 3, dense_kernel_size=3, dilated_kernel_size=5)
    parametrize.register_parametrization(module, "P", Twice())
    x = torch.randn(1, 2, 9, 9)
    want = module(x).detach()  # torch cannot swap what a graph holds
    try:
        torch.__future__.set_swap_module_params_on_conversion(True)
        module.to(torch.float64, memory_format=torch.channels_last)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert module.P.dtype == torch.float64
    assert_close(module(x.double()).float(), want, 1e-5)


@layers
def test_permuted_parameters_compute_the_same(layer: Layer) -> None:
    """As checkpoints hold them where a 4-D ``P`` has once been converted."""
    torch.manual_seed(0)
    module = layer.make(dtype=torch.float64)
    x = layer.input(module, 2)
    want = module(x)
    want.sum().backward()
    grads = {name: value.grad.clone() for name, value in module.named_parameters()}
    module.zero_grad()
    for parameter in module.parameters():
        parameter.data = parameter.data.transpose(0, -1).contiguous().transpose(0, -1)
    module(x).sum().backward()
    assert_close(module(x), want)
    for name, value in module.named_parameters():
        torch.testing.assert_close(value.grad, grads[name])


def test_what_else_to_does_is_unchanged() -> None:
    module = DCLS.Dcls3d(2, 2, 3, dilated_kernel_size=3)
    assert module.half().P.dtype == torch.float16
    assert module.to("meta").P.is_meta
    assert not module.to_empty(device="cpu").P.is_meta
