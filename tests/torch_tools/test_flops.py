"""``FlopCounterMode``: every operator counts, and a layer alike whatever its method."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from layers import FORWARD, Layer, layer_id
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import DCLS
from DCLS import _ops
from DCLS._ops import flops


def count(module: nn.Module, x: Tensor) -> list[int]:
    """Operations of the forward pass, and of both passes."""
    counts = []
    for backward in (False, True):
        with FlopCounterMode(display=False) as counter:
            output = module(x.clone().requires_grad_())
            if backward:
                output.sum().backward()
        counts.append(counter.get_total_flops())
    return counts


def test_every_operator_has_a_formula() -> None:
    assert flops._FORMULAS.keys() == set(_ops.__all__)
    assert all(getattr(torch.ops.dcls, name) in flop_registry for name in _ops.__all__)


@pytest.mark.parametrize("layer", FORWARD, ids=layer_id)
@pytest.mark.parametrize("groups", [1, 2])
def test_methods_and_the_plain_layer_agree(layer: Layer, groups: int) -> None:
    torch.manual_seed(0)
    module = layer.make(groups=groups, stride=2, padding=1)
    x = layer.input(module, 2)
    want = count(module.to_conv(), x)
    assert want[1] > want[0] > 0
    for method in ("direct", "conv"):
        module.method = method
        assert count(module, x) == want


def test_the_operator_of_a_whole_layer() -> None:
    """A global hook of the counter keeps layers from it, so it is called here."""
    x, weight = torch.randn(2, 4, 9, 9), torch.randn(6, 2, 3)
    P = torch.randn(2, 6, 2, 3)
    numbers = ([5, 5], [1, 0], "v1", 1.0, [5, 5], [1, 1], [0, 0], 2, [True, True])
    kernel = torch.randn(6, 2, 5, 5)
    with FlopCounterMode(display=False) as counter:
        output, saved = torch.ops.dcls.layer(x, weight, P, None, None, *numbers)
    forward = 2 * output.numel() * 2 * 25
    assert counter.get_total_flops() == forward
    for mask in ([True] * 5, [False, True, False, False, True], [True, *[False] * 4]):
        with FlopCounterMode(display=False) as counter:
            torch.ops.dcls.layer_backward(output, x, weight, P, None, saved, *numbers, mask)
        with FlopCounterMode(display=False) as plain:
            torch.ops.aten.convolution_backward(
                output, x, kernel, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 2,
                [mask[0], any(mask[1:4]), False],
            )  # fmt: skip
        assert counter.get_total_flops() == plain.get_total_flops() > 0


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_im2col_layers_count_the_product_with_the_weights(ndim: int) -> None:
    module = getattr(DCLS.im2col, f"Dcls{ndim}d")(4, 6, 3, dilated_kernel_size=3, groups=2)
    x = torch.randn(2, 4, *(6,) * ndim)
    forward = 2 * (2 * 6 * 4**ndim) * (2 * 3)
    assert count(module, x) == [forward, 3 * forward]
    module.requires_grad_(False)
    assert count(module, x) == [forward, 2 * forward]


def test_the_counter_is_not_loaded_for_it() -> None:
    script = """
import sys
import torch
before = set(sys.modules)
import DCLS
assert "torch.utils.flop_counter" in before or "torch.utils.flop_counter" not in sys.modules
import torch.utils.flop_counter as counter
assert torch.ops.dcls.layer in counter.flop_registry
assert not any(type(finder).__module__.startswith("DCLS") for finder in sys.meta_path)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
