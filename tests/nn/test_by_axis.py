"""Positions, delays and kernels by axis, for every layer, version and dtype of positions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from layers import LAYERS, Layer, assert_close, layer_id
from support import VERSIONS
from torch import nn
from torch.nn.utils import parametrize

from DCLS import Dcls1d, Dcls2d, DclsTranspose1d
from DCLS.im2col import modules as im2col

layers = pytest.mark.parametrize("layer", LAYERS, ids=layer_id)
ONE_AXIS = [layer for layer in LAYERS if len(layer.size) == 1 and not layer.transposed]


def of_im2col(version: str = "v1") -> list[Any]:
    sizes = (6, (4, 7), (2, 3, 5))
    return [
        getattr(im2col, f"Dcls{len(size) if isinstance(size, tuple) else 1}d")(
            4, 6, 3, dilated_kernel_size=size, version=version, dtype=torch.float64
        )
        for size in sizes
    ]


@layers
@pytest.mark.parametrize("version", VERSIONS)
def test_each_row_moves_the_elements_along_its_axis(layer: Layer, version: str) -> None:
    module = layer.make(version=version, dtype=torch.float64)
    for axis, where in enumerate(layer.axes(version)):
        assert torch.equal(module.positions()[where], module.P[axis])
    wanted = torch.zeros_like(module.P)
    for axis, size in enumerate(layer.size):
        wanted[axis] = size - 1 - size // 2  # the last point of each axis but the first
    wanted[0] = -(layer.size[0] // 2)
    module.set_positions(wanted)
    assert torch.equal(module.positions(), wanted)
    module.version = "v0" if version == "v0" else "v1"
    kernel = module.kernel().reshape(*module.weight.shape[:-1], *layer.size)
    corner = kernel[(..., 0, *(-1,) * (len(layer.size) - 1))]
    assert_close(corner, module.weight.sum(-1), 1e-6)
    assert_close(kernel.flatten(-len(layer.size)).abs().sum(-1), corner.abs(), 1e-10)


@pytest.mark.parametrize("version", VERSIONS)
def test_of_im2col_layers(version: str) -> None:
    for module in of_im2col(version):
        assert torch.equal(module.positions(), module.P)
        module.set_positions(module.P.detach() + 0.25)
        assert_close(module.kernel(), module.to_conv().weight.detach())
        module.P.requires_grad_()
        module.kernel().sum().backward()
        assert module.P.grad is not None


@layers
def test_the_kernel_is_what_the_layer_convolves_with(layer: Layer) -> None:
    for version in VERSIONS:
        module = layer.make(version=version, dtype=torch.float64)
        kernel = module.kernel()
        assert kernel.shape[2:] == layer.kernel_size
        assert_close(kernel, layer.kernel(module))
        kernel.square().sum().backward()
        assert module.weight.grad.abs().max() > 0
        assert module.P.grad.abs().max() > 0
        module.positions()[0].sum().backward()


@layers
@pytest.mark.parametrize("version", VERSIONS)
def test_setting_keeps_the_parameter_its_memory_and_what_it_requires(
    layer: Layer, version: str
) -> None:
    module = layer.make(version=version)
    held, memory = module.P, module.P.data_ptr()
    module.P.requires_grad_(False)
    module.set_positions(module.positions())  # of itself, perhaps a view
    module.set_positions(torch.arange(len(layer.size)).reshape(-1, *(1,) * (held.ndim - 1)))
    assert module.P is held
    assert held.data_ptr() == memory
    assert not held.requires_grad
    assert [row.unique().tolist() for row in module.positions()] == [
        [axis] for axis in range(len(layer.size))
    ]


def test_a_view_of_the_positions_may_be_set() -> None:
    module = Dcls2d(1, 1, 5, dilated_kernel_size=9)
    want = module.positions().detach().flip(0).clone()
    module.set_positions(module.P.detach())  # its rows in the other order
    assert torch.equal(module.positions(), want)


@pytest.mark.parametrize("layer", ONE_AXIS, ids=layer_id)
def test_delays_count_back_from_now(layer: Layer) -> None:
    module = layer.make(version="v1", dtype=torch.float64)
    (size,) = layer.size
    wanted = torch.randint(size, module.P.shape[1:])
    module.set_delays(wanted)
    assert torch.equal(module.delays(), wanted.double())
    assert torch.equal(module.P[0], size - 1 - size // 2 - wanted.double())
    module.delays().sum().backward()
    assert torch.equal(module.P.grad, -torch.ones_like(module.P))


@pytest.mark.parametrize("size", [4, 7])
@pytest.mark.parametrize("make", [Dcls1d, im2col.Dcls1d])
def test_a_delay_delays(size: int, make: Any) -> None:
    for delay in range(size):
        layer = make(1, 1, 1, dilated_kernel_size=size, bias=False, version="v1")
        layer.set_delays(torch.tensor(delay))
        x = torch.randn(1, 1, 12)
        output = layer(nn.functional.pad(x, (size - 1, 0)))
        want = nn.functional.pad(x, (delay, 0))[..., :12] * layer.weight.detach()
        torch.testing.assert_close(output, want)


def test_computed_positions_are_set_through_what_computes_them() -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

        def right_inverse(self, x: torch.Tensor) -> torch.Tensor:
            return x / 2

    layer = Dcls2d(2, 2, 3, dilated_kernel_size=5)
    parametrize.register_parametrization(layer, "P", Twice())
    layer.set_positions(torch.ones(2, 1, 1, 1))
    assert (layer.P == 1).all()
    assert (layer.parametrizations.P.original == 0.5).all()


def test_positions_of_whole_numbers() -> None:
    layer = Dcls1d(2, 2, 3, dilated_kernel_size=5)
    layer.P.requires_grad = False
    layer.P.data = torch.randint(-2, 3, layer.P.shape)
    assert layer.delays().dtype == torch.float32
    layer.set_delays(torch.full((2, 2, 3), 4))
    assert layer.P.dtype == torch.int64
    assert (layer.P == -2).all()


@pytest.mark.parametrize("wrong", [None, [1.0], 3])
def test_other_things_than_tensors_are_refused(wrong: Any) -> None:
    layer = Dcls1d(2, 2, 3, dilated_kernel_size=5)
    before = layer.P.detach().clone()
    for method, name in ((layer.set_positions, "positions"), (layer.set_delays, "delays")):
        with pytest.raises(TypeError, match=f"{name} must be a Tensor"):
            method(wrong)
        for bad in (torch.zeros((), dtype=torch.complex64), torch.tensor(True)):
            with pytest.raises(TypeError, match=f"{name} must hold real numbers"):
                method(bad)
        with pytest.raises(ValueError, match=rf"{name} must have the shape .*got \(3, 3\)"):
            method(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="delays must have the shape"):
        layer.set_delays(torch.zeros(1, 2, 2, 3))
    assert torch.equal(layer.P, before)


def test_layers_without_delays_say_so() -> None:
    for layer in (Dcls2d(1, 1, 2, dilated_kernel_size=5), DclsTranspose1d(1, 1, 1)):
        for ask in (layer.delays, lambda layer=layer: layer.set_delays(torch.zeros(()))):
            with pytest.raises(TypeError, match=r"delays need .*Dcls"):
                ask()


def test_reading_works_in_a_compiled_function() -> None:
    layer = Dcls2d(1, 1, 3, dilated_kernel_size=(3, 5))

    @torch.compile(backend="aot_eager", fullgraph=True)
    def spread() -> torch.Tensor:
        return layer.positions()[1].square().sum()

    spread().backward()
    grad = layer.P.grad
    twin = copy.deepcopy(layer)
    twin.P.grad = None
    twin.positions()[1].square().sum().backward()
    assert torch.equal(grad, twin.P.grad)
