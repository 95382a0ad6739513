"""What surrounds a call, or the import, changes no result: threads, autocast, default devices."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from DCLS import Dcls1d
from DCLS.functional import direct_conv, im2col_conv


def of_direct(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return direct_conv(x, weight, bias)


def of_im2col(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    P = torch.tensor([[[-1.0, 0.0, 1.0]]])
    return im2col_conv(x, weight, bias, P, dilated_kernel_size=3, version="v1")


@pytest.mark.parametrize("operator", [of_direct, of_im2col])
def test_the_gradient_of_one_bias_is_the_same_for_any_number_of_threads(
    operator: Callable[..., Tensor],
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 1, 40000, generator=generator)
    weight, bias = torch.randn(1, 1, 3, generator=generator), torch.zeros(1, requires_grad=True)
    output = operator(x, weight, bias)
    towards = torch.randn(output.shape, generator=generator)
    before = torch.get_num_threads()
    grads = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            grads += torch.autograd.grad(output, bias, towards, retain_graph=True)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])
    assert abs(grads[0].item() - towards.double().sum().item()) < 1e-2


@pytest.mark.parametrize("method", ["operator", "layer"])
def test_second_derivatives_keep_the_dtype_of_the_forward_pass(method: str) -> None:
    torch.manual_seed(0)
    layer = Dcls1d(3, 2, 3, dilated_kernel_size=5, method="direct")
    x = torch.randn(2, 3, 20, requires_grad=True)
    kernel = torch.randn(2, 3, 5, requires_grad=True)

    def second(autocast: bool) -> tuple[Tensor, ...]:
        output = layer(x) if method == "layer" else direct_conv(x, kernel)
        by = layer.weight if method == "layer" else kernel
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            (grad,) = torch.autograd.grad(output.square().sum(), by, create_graph=True)
            return torch.autograd.grad(grad.square().sum(), [x, by])

    for got, want in zip(second(True), second(False), strict=True):
        torch.testing.assert_close(got, want)


SURROUNDED = """
import torch
with {surrounding}:
    import DCLS
from DCLS._checks import is_plain
assert is_plain(torch.ones(2)), "no tensor is plain"
with torch.device("meta"):
    layer = DCLS.Dcls1d(2, 2, 3, dilated_kernel_size=5)
    assert layer(torch.ones(1, 2, 9)).shape == (1, 2, 5)
"""


@pytest.mark.parametrize("surrounding", ['torch.device("meta")', "torch.inference_mode()"])
def test_the_import_may_happen_anywhere(surrounding: str) -> None:
    code = SURROUNDED.format(surrounding=surrounding)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
