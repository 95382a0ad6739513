"""The parameters of the modules: initial values, limits, sharing, freezing, parametrizations."""

from __future__ import annotations

import copy

import pytest
import torch
from layers import LAYERS, Layer, assert_close, layer_id
from support import NORMALISED, SIGMA_VERSIONS, VERSIONS
from torch import Tensor, nn
from torch.nn.utils import parametrize

from DCLS.construct.modules import Dcls1d, Dcls2d

layers = pytest.mark.parametrize("layer", LAYERS, ids=layer_id)


def grid(size: int) -> tuple[int, int]:
    """The first and the last position on an axis."""
    return -(size // 2), size - 1 - size // 2


def limits(layer: Layer, version: str) -> list[tuple[int, int]]:
    """The limits of each row of P."""
    return [grid(layer.size[axis]) for axis in layer.axes(version)]


@layers
@pytest.mark.parametrize("version", VERSIONS)
def test_initial_values(layer: Layer, version: str) -> None:
    torch.manual_seed(5)
    module = layer.make(8, 12, 6, groups=2, version=version).requires_grad_(False)
    fan_in = module.weight[0].numel()
    bound = fan_in**-0.5
    for parameter in (module.weight, module.bias):
        assert parameter.abs().max() <= bound
        assert parameter.std() == pytest.approx(bound / 3**0.5, rel=0.5)
    for row, (low, high) in zip(module.P, limits(layer, version), strict=True):
        assert row.min() >= low
        assert row.max() <= high
        if layer.dense:
            assert row.mean() == pytest.approx((low + high) / 2, abs=0.4)
            assert row.std() == pytest.approx((high - low) / 12**0.5, rel=0.2)
        elif high > 1:
            assert row.mean().abs() < 0.2
            assert row.std() == pytest.approx(0.5, rel=0.2)
    if version in SIGMA_VERSIONS:
        assert torch.equal(module.SIG, torch.full_like(module.P, 0.23 * (version == "gauss")))
    else:
        assert module.SIG is None


@layers
def test_initial_values_come_from_the_seed(layer: Layer) -> None:
    torch.manual_seed(7)
    module = layer.make()
    torch.manual_seed(7)
    weight = nn.init.kaiming_uniform_(torch.empty_like(module.weight), a=5**0.5)
    bound = module.weight[0].numel() ** -0.5
    bias = torch.empty_like(module.bias).uniform_(-bound, bound)
    rows = []
    for row, (low, high) in zip(module.P, limits(layer, "gauss"), strict=True):
        empty = torch.empty_like(row)
        rows.append(empty.uniform_(low, high) if layer.dense else empty.normal_(0, 0.5))
        rows[-1].clamp_(low, high)
    assert torch.equal(module.weight, weight)
    assert torch.equal(module.bias, bias)
    assert torch.equal(module.P, torch.stack(rows))


@layers
def test_clamping_keeps_the_elements_on_the_grid(layer: Layer) -> None:
    module = layer.make()
    for version in ("gauss", "v0"):
        module.version = version
        for far, end in ((-99.0, 0), (99.0, 1)):
            with torch.no_grad():
                module.P.fill_(far)
            assert module.clamp_parameters() is None
            for row, ends in zip(module.P, limits(layer, version), strict=True):
                assert (row == ends[end]).all()
    pointer = module.P.data_ptr()
    module.clamp_parameters()
    assert module.P.data_ptr() == pointer
    assert module.P.requires_grad
    assert module.P.is_leaf


def test_clamping_shrinks_no_position_on_the_grid_and_keeps_nan() -> None:
    module = Dcls2d(1, 1, 4, dilated_kernel_size=(4, 5))
    module.P.data = torch.tensor([[-2.0, 2, 0.5, torch.nan], [-2.0, 1, -0.5, 0]])[:, None, None]
    want = module.P.detach().clone()
    module.clamp_parameters()
    torch.testing.assert_close(module.P.detach(), want, equal_nan=True)


@pytest.mark.parametrize("version", NORMALISED)
def test_an_element_at_the_limits_of_an_even_kernel_is_not_lost(version: str) -> None:
    module = Dcls1d(1, 1, 2, dilated_kernel_size=4, version=version)
    with torch.no_grad():
        module.weight.fill_(1)
        module.P.copy_(torch.tensor([-9.0, 9.0]))
    module.clamp_parameters()
    kernel = module.DCK(module.weight, module.P, module.SIG)
    assert kernel.sum().item() == pytest.approx(2, abs=1e-5)


def test_one_parameter_may_serve_two_layers() -> None:
    first, second = (Dcls2d(3, 3, 4, dilated_kernel_size=5, groups=3) for _ in range(2))
    second.P = first.P
    model = nn.Sequential(first, second)
    assert len(list(model.parameters())) == 7
    model(torch.randn(1, 3, 12, 12)).sum().backward()
    both = first.P.grad.clone()
    first.P.grad = None
    second.P = nn.Parameter(first.P.detach().clone())
    assert second.P is not first.P
    model(torch.randn(1, 3, 12, 12)).sum().backward()
    assert first.P.grad is not None
    assert not torch.equal(both, first.P.grad)
    assert "1.P" in dict(model.named_parameters())


@pytest.mark.parametrize("frozen", ["weight", "P", "SIG", "bias"])
def test_any_parameter_may_be_frozen(frozen: str) -> None:
    module = Dcls2d(2, 2, 3, dilated_kernel_size=5)
    module.get_parameter(frozen).requires_grad_(False)
    module(torch.randn(1, 2, 8, 8)).sum().backward()
    assert {name for name, p in module.named_parameters() if p.grad is not None} == {
        "weight", "P", "SIG", "bias"
    } - {frozen}  # fmt: skip


def test_parameters_may_be_edited_between_forwards() -> None:
    module = Dcls2d(1, 1, 2, dilated_kernel_size=5, dtype=torch.float64)
    x = torch.randn(1, 1, 7, 7, dtype=torch.float64)
    layer = Layer("Dcls2d", 2, (5, 5))
    for name in ("weight", "P", "SIG", "bias"):
        before = module(x)
        with torch.no_grad():
            module.get_parameter(name).add_(0.4)
        assert not torch.equal(module(x), before)
        assert_close(module(x), layer.torch_twin(module)(x))


class Scaled(nn.Module):
    """A parametrization that can be undone."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x

    def right_inverse(self, x: Tensor) -> Tensor:
        return x / 2


class Rounded(nn.Module):
    """A parametrization that cannot be undone."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x.round() - x).detach()


class Shared(nn.Module):
    """One value for all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return x.expand(-1, self.channels, -1, -1)

    def right_inverse(self, x: Tensor) -> Tensor:
        return x[:, :1]


@pytest.mark.parametrize("name", ["weight", "P", "SIG", "bias"])
def test_any_parameter_may_be_parametrized(name: str) -> None:
    torch.manual_seed(0)
    module = Dcls2d(2, 2, 3, dilated_kernel_size=5)
    x = torch.randn(1, 2, 8, 8)
    want = module(x)
    parametrize.register_parametrization(module, name, Scaled())
    assert_close(module(x), want, 1e-6)
    module(x).sum().backward()
    assert module.parametrizations[name].original.grad is not None
    with torch.no_grad():
        module.parametrizations.P.original.fill_(9) if name == "P" else module.P.fill_(9)
    module.clamp_parameters()
    assert torch.equal(module.P, torch.full_like(module.P, 2))
    torch.manual_seed(1)
    module.reset_parameters()
    torch.manual_seed(1)
    fresh = Dcls2d(2, 2, 3, dilated_kernel_size=5)
    assert_close(module(x), fresh(x), 1e-6)
    twin = copy.deepcopy(module)
    twin.version = "max"
    assert (module.version, twin.DCK.version) == ("gauss", "max")


def test_positions_may_be_shared_by_a_parametrization() -> None:
    module = Dcls2d(2, 3, 4, dilated_kernel_size=5)
    parametrize.register_parametrization(module, "P", Shared(3))
    assert module.P.stride(1) == 0
    assert module.parametrizations.P.original.shape == (2, 1, 2, 4)
    with torch.no_grad():
        module.parametrizations.P.original.fill_(-7)
    module.clamp_parameters()
    assert torch.equal(module.P, torch.full((2, 3, 2, 4), -2.0))
    module(torch.randn(1, 2, 8, 8)).sum().backward()
    assert module.parametrizations.P.original.grad.shape == (2, 1, 2, 4)


def test_clamping_what_a_parametrization_cannot_undo_is_an_error() -> None:
    module = Dcls2d(2, 2, 3, dilated_kernel_size=5)
    parametrize.register_parametrization(module, "P", Rounded())
    module(torch.randn(1, 2, 8, 8)).sum().backward()
    assert module.parametrizations.P.original.grad is not None
    with pytest.raises(RuntimeError, match="right_inverse"):
        module.clamp_parameters()
