"""The parameters of the modules: initial values, limits, sharing, freezing, parametrizations."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from layers import LAYERS, Layer, assert_close, layer_id
from support import NORMALISED, SIGMA_VERSIONS, VERSIONS
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

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


def test_a_reset_takes_widths_that_the_present_version_does_not_use() -> None:
    module = Dcls2d(2, 2, 3, dilated_kernel_size=5, version="gauss")
    for version in VERSIONS:
        module.version = version
        with torch.no_grad():
            module.SIG.fill_(torch.nan)
        module.reset_parameters()
        want = torch.full_like(module.SIG, 0.0 if version == "max" else 0.23)
        assert torch.equal(module.SIG, want)


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


# Parameters that hooks compute before each forward.

NAMES = ["weight", "P", "SIG", "bias"]


def pruned(module: nn.Module, name: str) -> None:
    prune.random_unstructured(module, name, 0.3)


def pruned_twice(module: nn.Module, name: str) -> None:
    prune.l1_unstructured(module, name, 1)
    prune.random_unstructured(module, name, 1)


def normalised(module: nn.Module, name: str) -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        weight_norm(module, name)


def normalised_by_a_parametrization(module: nn.Module, name: str) -> None:
    parametrizations.weight_norm(module, name)


def of_unequal_limits(layer: Layer) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    module = layer.make(version="gauss")
    with torch.no_grad():
        module.P.mul_(40)
        module.SIG.uniform_(0.1, 0.5)
    return module, layer.input(module, 1)


@layers
@pytest.mark.parametrize(
    "compute",
    [pruned, pruned_twice, normalised, normalised_by_a_parametrization],
    ids=lambda compute: compute.__name__,
)
def test_the_next_forward_keeps_the_edits_of_a_computed_parameter(
    layer: Layer, compute: Callable[[nn.Module, str], None]
) -> None:
    module, x = of_unequal_limits(layer)
    for name in NAMES:
        compute(module, name)
    before = module(x)
    module.clamp_parameters()
    clamped = module.P.detach().clone()
    for row, (low, high) in zip(clamped, limits(layer, "gauss"), strict=True):
        assert row.min() == pytest.approx(low, rel=1e-5)
        assert row.max() == pytest.approx(high, rel=1e-5)
    assert not torch.equal(module(x), before)
    assert torch.equal(module.P, clamped)
    assert module.P.requires_grad
    torch.manual_seed(1)
    module.reset_parameters()
    torch.manual_seed(1)
    fresh = layer.make(version="gauss")
    drawn = {name: getattr(module, name).detach().clone() for name in NAMES}
    module(x).sum().backward()
    for name, value in drawn.items():
        assert torch.equal(getattr(module, name), value), name
        mask = getattr(module, f"{name}_mask", torch.ones(()))
        assert_close(value, mask * getattr(fresh, name).detach(), 1e-5)
    assert all(parameter.grad is not None for parameter in module.parameters())


class Doubled(prune.BasePruningMethod):
    """A pruning method that does not multiply by its mask."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:  # noqa: ARG002
        return default_mask

    def apply_mask(self, module: nn.Module) -> Tensor:
        return 2 * getattr(module, f"{self._tensor_name}_orig")


def computed_by_the_user(module: nn.Module, name: str) -> None:
    raw = getattr(module, name)
    delattr(module, name)
    module.register_parameter("raw", raw)
    module.register_forward_pre_hook(lambda module, _: setattr(module, name, 3 * module.raw))


def set_by_a_parent(module: nn.Module, name: str) -> None:
    value = getattr(module, name).detach()
    delattr(module, name)
    setattr(module, name, value)


WAYS = [Doubled.apply, spectral_norm, computed_by_the_user, set_by_a_parent]


@pytest.mark.parametrize(
    ("compute", "name"),
    # spectral_norm takes no vector.
    [(way, name) for way in WAYS for name in NAMES if (way, name) != (spectral_norm, "bias")],
)
def test_an_edit_that_the_next_forward_would_undo_is_an_error(
    compute: Callable[[nn.Module, str], None], name: str
) -> None:
    module = Dcls2d(2, 2, 3, dilated_kernel_size=5)
    compute(module, name)
    module(torch.randn(1, 2, 8, 8))
    with pytest.raises(RuntimeError, match=f"^{name} cannot be edited"):
        module.reset_parameters()
    if name == "P":
        with pytest.raises(RuntimeError, match=r"^P cannot be edited"):
            module.clamp_parameters()


class Squashed(nn.Module):
    """A parametrization whose inverse is wrong outside [-1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return 9 * x.tanh()

    def right_inverse(self, x: Tensor) -> Tensor:
        return x


def test_a_parametrization_that_does_not_keep_a_clamp_is_an_error() -> None:
    module = Dcls2d(2, 2, 3, dilated_kernel_size=5)
    parametrize.register_parametrization(module, "P", Squashed())
    with torch.no_grad():
        module.parametrizations.P.original.fill_(3)
    before = module.P.detach().clone()
    with pytest.raises(RuntimeError, match=r"P cannot be edited.*values back"):
        module.clamp_parameters()
    assert torch.equal(module.P, before)
    module.reset_parameters()


def test_a_norm_of_zero_is_an_error() -> None:
    # The positions along an axis of one point are 0, and weight_norm makes 0 / 0 of them.
    module = Dcls2d(2, 2, 3, dilated_kernel_size=(5, 1))
    for way in (normalised, normalised_by_a_parametrization):
        twin = copy.deepcopy(module)
        with torch.no_grad():
            twin.P.fill_(1)
        way(twin, "P")
        for method in (twin.clamp_parameters, twin.reset_parameters):
            with pytest.raises(RuntimeError, match="P cannot be edited"):
                method()
        assert torch.equal(twin.P, torch.ones_like(twin.P))
