"""Subclasses of the layers, as users write them, and whole layers in another process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from layers import LAYERS, Layer, assert_close, layer_id
from support import VERSIONS
from torch import Tensor, nn
from torch.nn.utils import parametrize

from DCLS.construct.modules import ConstructKernel2d, Dcls1d, Dcls2d, _DclsN_Md, _DclsNd

layers = pytest.mark.parametrize("layer", LAYERS, ids=layer_id)


class Dale(Dcls1d):
    """Excitatory and inhibitory inputs: the sign of a weight belongs to the input channel."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        sign = torch.ones(1, self.in_channels, 1, dtype=self.weight.dtype)
        sign[:, ::2] = -1
        self.register_buffer("sign", sign)

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, P: Tensor, SIG: Tensor | None
    ) -> Tensor:
        return super()._conv_forward(input, self.sign * weight.abs(), bias, P, SIG)


def test_signed_weights_by_overriding_conv_forward() -> None:
    torch.manual_seed(0)
    layer = Dale(3, 4, 2, dilated_kernel_size=9, padding=4, dtype=torch.float64)
    x = torch.randn(2, 3, 20, dtype=torch.float64)
    plain = Dcls1d(3, 4, 2, dilated_kernel_size=9, padding=4, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict(), strict=False)
    with torch.no_grad():
        plain.weight.copy_(layer.sign * layer.weight.abs())
    assert not torch.equal(plain.weight, layer.weight)
    got, want = layer(x), plain(x)
    assert_close(got, want)
    cotangent = torch.randn_like(want)
    got.backward(cotangent)
    want.backward(cotangent)
    assert_close(layer.P.grad, plain.P.grad)
    assert_close(layer.weight.grad, plain.weight.grad * layer.sign * layer.weight.sign())


class Generated(Dcls2d):
    """Its positions are computed by another layer, and given to _conv_forward by forward."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hyper = nn.Linear(3, self.P.numel(), dtype=self.weight.dtype)

    def forward(self, input: Tensor, code: Tensor) -> Tensor:  # type: ignore[override]
        P = self.P + self.hyper(code).reshape(self.P.shape)
        return self._conv_forward(input, self.weight, self.bias, P, self.SIG)


def test_positions_computed_elsewhere() -> None:
    torch.manual_seed(1)
    layer = Generated(2, 2, 3, dilated_kernel_size=5, padding=2, dtype=torch.float64)
    x, code = torch.randn(1, 2, 6, 6, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    code.requires_grad_()

    def of(code: Tensor) -> Tensor:
        return layer(x, code)

    output = of(code)
    twin = Dcls2d(2, 2, 3, dilated_kernel_size=5, padding=2, dtype=torch.float64)
    twin.load_state_dict(layer.state_dict(), strict=False)
    with torch.no_grad():
        twin.P += layer.hyper(code).reshape(twin.P.shape)
    assert_close(output, twin(x))
    output.sum().backward()
    assert layer.hyper.weight.grad.abs().max() > 0
    assert torch.autograd.gradcheck(of, (code,))


@layers
def test_conv_forward_takes_other_positions_than_its_own(layer: Layer) -> None:
    torch.manual_seed(2)
    module = layer.make(dtype=torch.float64)
    x = layer.input(module, 1)
    other = torch.empty_like(module.P).uniform_(-1, 1)
    got = module._conv_forward(x, module.weight, module.bias, other, module.SIG)
    assert not torch.allclose(got, module(x))
    with torch.no_grad():
        module.P.copy_(other)
    assert torch.equal(got, module(x))


class Own(_DclsNd):
    """Builds its own kernel builder; P has the twelve arguments of 0.1.1."""

    def __init__(self, channels: int, size: int, version: str = "gauss") -> None:
        super().__init__(
            channels,
            channels,
            4,
            (1, 1),
            (size // 2, size // 2),
            (size, size),
            False,
            (0, 0),
            channels,
            True,
            "zeros",
            version,
        )
        self.DCK = ConstructKernel2d(channels, channels, channels, 4, (size, size), version)

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, P: Tensor, SIG: Tensor | None
    ) -> Tensor:
        return nn.functional.conv2d(
            input, self.DCK(weight, P, SIG), bias, self.stride, self.padding, (1, 1), self.groups
        )


@pytest.mark.parametrize("version", VERSIONS)
def test_a_subclass_of_the_base_trains_as_the_layer_does(version: str) -> None:
    torch.manual_seed(3)
    own = Own(4, 7, version).double()
    plain = Dcls2d(4, 4, 4, dilated_kernel_size=7, padding=3, groups=4, version=version).double()
    plain.load_state_dict(own.state_dict(), strict=True)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    for module in (own, plain):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
            module.clamp_parameters()
    for name, parameter in own.named_parameters():
        assert_close(parameter, plain.get_parameter(name))


def test_a_kernel_builder_trains_alone() -> None:
    # A filter bank that is fitted without any convolution.
    torch.manual_seed(4)
    builder = ConstructKernel2d(2, 1, 1, 3, (7, 7), "gauss")
    target = torch.zeros(2, 1, 7, 7)
    target[0, 0, 1, 5], target[1, 0, 4, 2] = 1.0, -1.0
    weight = nn.Parameter(torch.randn(2, 1, 3) * 0.1)
    P = nn.Parameter(torch.randn(2, 2, 1, 3))
    SIG = nn.Parameter(torch.full_like(P, 0.5))
    optimizer = torch.optim.Adam([weight, P, SIG], lr=0.1)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = (builder(weight, P, SIG) - target).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert "DCK" not in repr(builder)


@layers
def test_isinstance_tells_dcls_layers_from_others(layer: Layer) -> None:
    module = layer.make()
    assert isinstance(module, _DclsN_Md if layer.dense else _DclsNd)
    assert not isinstance(module, nn.modules.conv._ConvNd)
    assert not isinstance(module.to_conv(), (_DclsNd, _DclsN_Md))
    parametrize.register_parametrization(module, "P", nn.Identity())
    assert isinstance(module, _DclsN_Md if layer.dense else _DclsNd)


LOADER = """
import sys, torch
saved = torch.load(sys.argv[1], weights_only=False)
for module, x, want in saved:
    torch.testing.assert_close(module(x), want, rtol=1e-6, atol=1e-7)
    module(x).sum().backward()
    assert module.P.grad is not None and module.DCK.version == module.version == "max"
    module.version = "v1"
    assert module.DCK.version == "v1"
    module.clamp_parameters()
print(len(saved), "equal")
"""


def test_whole_layers_saved_by_torch_load_in_a_new_process(tmp_path: Path) -> None:
    file, saved = tmp_path / "layers.pt", []
    for layer in LAYERS:
        module = layer.make(version="gauss")
        module.DCK.version = "max"
        x = layer.input(module, 1)
        saved.append((module, x, module(x).detach()))
    torch.save(saved, file)
    run = subprocess.run(
        [sys.executable, "-c", LOADER, str(file)], capture_output=True, text=True, timeout=120
    )
    assert (run.returncode, run.stdout.strip()) == (0, f"{len(LAYERS)} equal"), run.stderr
