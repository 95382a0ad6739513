"""Layers and operators without input or output channels: the bias, or nothing, is the output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layers import FORWARD, Layer, layer_id
from op_cases import OPERATORS, arguments
from torch import Tensor

from DCLS import im2col as im2col_package

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
CHANNELS = [(0, 2, 1), (2, 0, 1), (0, 0, 1), (0, 2, 2), (2, 0, 2)]


def check(layer: Any, x: Tensor, axes: int) -> None:
    x.requires_grad_()
    output = layer(x)
    assert output.shape[:-axes] == (*x.shape[: -axes - 1], layer.out_channels)
    if layer.in_channels == 0:
        assert torch.equal(output, layer.bias.view(-1, *[1] * axes).expand_as(output))
    grads = torch.autograd.grad(output.sum(), [x, *layer.parameters()], create_graph=True)
    for grad, tensor in zip(grads, [x, *layer.parameters()], strict=True):
        assert grad.shape == tensor.shape
        count = output.numel() / max(1, layer.out_channels)
        assert (grad == (count if tensor is layer.bias else 0)).all()


@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize("method", ["auto", "conv", "direct"])
@pytest.mark.parametrize("layer", FORWARD, ids=layer_id)
def test_layers(layer: Layer, method: str, channels: tuple[int, int, int]) -> None:
    """Torch's convolution refuses no output channel, and returns none for no input channel."""
    inputs, outputs, groups = channels
    module = layer.make(in_channels=inputs, out_channels=outputs, groups=groups, method=method)
    axes = len(module.stride)
    x = torch.randn(2, inputs, *[9] * axes)
    check(module, x, axes)
    check(module, x[0].detach(), axes)


@pytest.mark.parametrize("channels", CHANNELS, ids=str)
def test_im2col_layers(channels: tuple[int, int, int]) -> None:
    inputs, outputs, groups = channels
    module = im2col_package.modules.Dcls2d(
        inputs, outputs, 2, dilated_kernel_size=(5, 5), padding=2, groups=groups
    )
    check(module, torch.randn(2, inputs, 6, 6), 2)


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_without_input_channels(name: str) -> None:
    """All sizes that are the input's channels, or those of a group, become zero."""
    args = arguments(name)
    by_name = {
        a.name: i for i, a in enumerate(getattr(torch.ops.dcls, name).default._schema.arguments)
    }
    cut = {"input": 1, "grad_columns": 1, "kernel": 1, "weight": 1, "grad_kernel": 1}
    of_elements = 2 if name.startswith(("construct", "layer")) else 1
    cut |= {"P": of_elements, "SIG": of_elements}
    for argument, dim in cut.items():
        if argument in by_name:
            place = by_name[argument]
            args[place] = args[place].narrow(dim, 0, 0)
    if name == "layer_backward":
        args[5] = torch.ops.dcls.layer(*args[1:5], None, *args[6:-1])[1]
    outputs = getattr(torch.ops.dcls, name)(*args)
    numbers = [
        o for o in (outputs if isinstance(outputs, tuple) else (outputs,)) if o.is_floating_point()
    ]
    bias = args[by_name["bias"]] if "bias" in by_name else None
    for number in numbers:
        if bias is not None:
            assert torch.equal(number, bias.view(1, -1, 1, 1).expand_as(number))
        elif number.ndim > 1:
            assert number.numel() == 0
