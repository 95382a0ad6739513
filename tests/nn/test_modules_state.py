"""How modules are changed, copied, saved and loaded."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
from layers import LAYERS, Layer, assert_close, layer_id
from support import SIGMA_VERSIONS, VERSIONS
from torch import Tensor, nn

import DCLS.construct.modules as modules
from DCLS.construct.modules import ConstructKernel2d, Dcls1d, Dcls2_1d, Dcls2d, _DclsNd

layers = pytest.mark.parametrize("layer", LAYERS, ids=layer_id)


# Versions


@layers
def test_setting_the_version_of_either_sets_both(layer: Layer) -> None:
    module = layer.make(version="gauss", dtype=torch.float64)
    x = layer.input(module, 1)
    for change in (module, module.DCK):
        for version in reversed(VERSIONS):
            change.version = version
            assert module.version == module.DCK.version == version
            assert f"version={version}" in module.extra_repr()
            assert_close(module(x), layer.torch_twin(module)(x))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "save"])
def test_copies_keep_their_versions_together_and_apart_from_the_original(how: str) -> None:
    module = Dcls2d(2, 4, 3, dilated_kernel_size=(3, 5))
    module.DCK.version = "max"
    x = torch.randn(1, 2, 7, 8)
    if how == "deepcopy":
        twin = copy.deepcopy(module)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(module))
    else:
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert twin.version == twin.DCK.version == "max"
    assert torch.equal(twin(x), module(x))
    twin.version = "v1"
    assert (twin.DCK.version, module.version, module.DCK.version) == ("v1", "max", "max")
    module.DCK.version = "gauss"
    assert (twin.version, twin.DCK.version, module.version) == ("v1", "v1", "gauss")
    assert twin.P is not module.P
    twin.P.data.add_(1)
    assert not torch.equal(twin.P, module.P)


def test_there_is_no_second_way_from_the_builder_to_the_module() -> None:
    module = Dcls2d(1, 1, 1)
    assert [name for name, _ in module.named_modules()] == ["", "DCK"]
    assert [name for name, _ in module.DCK.named_modules()] == [""]


@pytest.mark.parametrize("wrong", ["V1", "bilinear", "", 1, None])
def test_unknown_versions_are_refused_and_change_nothing(wrong: Any) -> None:
    module = Dcls1d(1, 1, 1)
    for change in (module, module.DCK):
        with pytest.raises((ValueError, TypeError), match="version must be"):
            change.version = wrong
        assert module.version == module.DCK.version == "gauss"


def test_a_version_without_the_widths_it_needs_is_an_error() -> None:
    module = Dcls1d(1, 1, 2, dilated_kernel_size=5, version="v1")
    assert module.SIG is None
    module.version = "max"
    with pytest.raises(ValueError, match="SIG"):
        module(torch.randn(1, 1, 9))
    module.SIG = nn.Parameter(torch.zeros_like(module.P))
    assert module(torch.randn(1, 1, 9)).shape == (1, 1, 5)


def test_training_with_gauss_and_evaluating_rounded_positions_with_max() -> None:
    torch.manual_seed(0)
    module = Dcls1d(3, 4, 2, dilated_kernel_size=7, dtype=torch.float64)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    x = torch.randn(2, 3, 12, dtype=torch.float64)
    for _ in range(3):
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()
        module.clamp_parameters()
    trained, saved = module(x), copy.deepcopy(module.state_dict())
    with torch.no_grad():
        module.SIG *= 0
        module.version = "max"
        module.DCK.version = "max"
        module.P.round_()
    # A rounded element without width is one weight on one grid point.
    kernel = torch.zeros(4, 3, 7, dtype=torch.float64)
    for o, i, k in torch.cartesian_prod(torch.arange(4), torch.arange(3), torch.arange(2)):
        kernel[o, i, int(module.P[0, o, i, k]) + 3] += module.weight[o, i, k].detach() / (1 + 1e-7)
    assert_close(module(x), nn.functional.conv1d(x, kernel, module.bias))
    module.version = "gauss"
    module.load_state_dict(saved, strict=True)
    assert torch.equal(module(x), trained)


def test_elements_follow_the_axis_order_of_the_version() -> None:
    module = Dcls2d(1, 1, 1, dilated_kernel_size=5, dtype=torch.float64)
    with torch.no_grad():
        module.P[0], module.P[1] = 2, -1
    gauss = module.DCK(module.weight, module.P, module.SIG)[0, 0]
    module.version = "v0"
    v0 = module.DCK(module.weight, module.P, module.SIG)[0, 0]
    assert divmod(int(gauss.abs().argmax()), 5) == (1, 4)
    assert divmod(int(v0.abs().argmax()), 5) == (4, 1)


# State dicts and devices


@layers
def test_state_dicts_hold_the_parameters_alone(layer: Layer) -> None:
    for version, bias in itertools.product(VERSIONS, (True, False)):
        module = layer.make(version=version, bias=bias)
        names = ["weight", "P"] + ["SIG"] * (version in SIGMA_VERSIONS) + ["bias"] * bias
        module(layer.input(module, 1))
        assert list(module.state_dict()) == names
        assert list(module.buffers()) == []
        other = layer.make(version=version, bias=bias)
        other.load_state_dict(module.state_dict(), strict=True)
        x = layer.input(module, 1)
        assert torch.equal(other(x), module(x))


@pytest.mark.parametrize("prefix", ["", "features.3."])
def test_the_old_buffers_of_dcls2_1d_are_dropped(prefix: str) -> None:
    layer = Dcls2_1d(1, 2, 3, dense_kernel_size=3, dilated_kernel_size=5)
    model: nn.Module = layer
    for name in reversed(prefix.split(".")[:-1]):
        model = nn.ModuleDict({name: model})
    saved = OrderedDict(
        (f"{prefix}{k}", torch.randn_like(v)) for k, v in layer.state_dict().items()
    )
    want = saved[f"{prefix}P"]
    saved[f"{prefix}DCK.IDX"] = torch.arange(5)
    saved[f"{prefix}DCK.lim"] = torch.tensor([5])
    model.load_state_dict(saved, strict=True)
    assert torch.equal(layer.P, want)
    assert f"{prefix}DCK.IDX" in saved
    saved[f"{prefix}DCK.other"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"DCK\.other"):
        model.load_state_dict(saved, strict=True)


def test_pickled_old_buffers_are_dropped() -> None:
    layer = Dcls2_1d(1, 2, 3, dense_kernel_size=3, dilated_kernel_size=5)
    layer.DCK.register_buffer("IDX", torch.arange(5))
    layer.DCK.lim = torch.tensor([5])
    del layer.__dict__["padding_mode"]
    twin = pickle.loads(pickle.dumps(layer))
    assert list(twin.state_dict()) == ["weight", "P", "SIG", "bias"]
    assert not hasattr(twin.DCK, "lim")
    assert twin.padding_mode == "zeros"


def test_wrong_state_dicts_are_refused() -> None:
    module = Dcls2d(2, 2, 3, dilated_kernel_size=5)
    v1 = Dcls2d(2, 2, 3, dilated_kernel_size=5, version="v1").state_dict()
    with pytest.warns(UserWarning, match="v1"), pytest.raises(RuntimeError, match="SIG"):
        module.load_state_dict(v1)
    with pytest.raises(RuntimeError, match="size mismatch for P"):
        module.load_state_dict(Dcls2d(2, 2, 4, dilated_kernel_size=5).state_dict())


@layers
def test_meta_device_construction(layer: Layer) -> None:
    module = layer.make(device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.bfloat16)}
    with torch.device("meta"):
        assert layer.make().P.is_meta
    module = module.to_empty(device="cpu").float()
    torch.manual_seed(0)
    module.reset_parameters()
    torch.manual_seed(0)
    fresh = layer.make()
    x = layer.input(module, 1)
    assert torch.equal(module(x), fresh(x))


@layers
def test_conversions_take_every_parameter_along(layer: Layer) -> None:
    module = layer.make()
    x = layer.input(module, 1)
    want = module(x)
    assert module.double()(x.double()).dtype == torch.float64
    assert {p.dtype for p in module.half().parameters()} == {torch.float16}
    got = module.to(device="cpu", dtype=torch.float32)(x)
    assert (got - want).abs().max() < 0.01 * want.abs().max()


def test_averaged_copies() -> None:
    module = Dcls2d(2, 2, 3, dilated_kernel_size=5)
    average = torch.optim.swa_utils.AveragedModel(module)
    with torch.no_grad():
        module.P.add_(1)
    average.update_parameters(module)
    assert average(torch.randn(1, 2, 8, 8)).shape == (1, 2, 4, 4)
    assert average.module.DCK is not module.DCK


# Subclasses


class Own(_DclsNd):
    """A subclass as users write them: its own kernel and convolution."""

    def __init__(self, version: str = "gauss") -> None:
        super().__init__(
            4, 6, 3, (1, 1), (1, 1), (5, 5), False, (0, 0), 2, True, "reflect", version
        )
        self.DCK = ConstructKernel2d(6, 4, 2, 3, (5, 5), version)

    def extra_repr(self) -> str:
        return super().extra_repr().format(**self.__dict__) + ", own"

    def _conv_forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, P: Tensor, SIG: Tensor | None
    ) -> Tensor:
        kernel = self.DCK(weight, P, SIG)
        return nn.functional.conv2d(x, kernel, bias, self.stride, self.padding, (1, 1), self.groups)


def test_a_subclass_that_builds_its_own_kernel() -> None:
    torch.manual_seed(0)
    own = Own()
    torch.manual_seed(0)
    plain = Dcls2d(4, 6, 3, padding=1, dilated_kernel_size=5, groups=2, method="conv")
    x = torch.randn(2, 4, 9, 9)
    assert torch.equal(own(x), plain(x))
    assert own._reversed_padding_repeated_twice == (1, 1, 1, 1)
    assert repr(own).startswith("Own(")
    assert own.extra_repr().endswith("padding_mode=reflect, own")
    own.version = "v0"
    assert own.DCK.version == "v0"
    assert pickle.loads(pickle.dumps(own)).DCK.version == "v0"


def test_a_subclass_whose_kernel_has_no_version() -> None:
    class Plain(nn.Module):
        def forward(self, weight: Tensor, P: Tensor, SIG: Tensor | None) -> Tensor:  # noqa: ARG002
            return weight

    class Bare(_DclsNd):
        def __init__(self) -> None:
            super().__init__(1, 1, 5, (2,), (0,), (5,), False, (0,), 1, False, "zeros", "v1")
            self.DCK = Plain()
            self.method = "conv"  # the same bits

    module = Bare()
    x = torch.randn(1, 1, 9)
    assert torch.equal(module(x), nn.functional.conv1d(x, module.weight, stride=2))
    module.version = "max"
    assert module.version == "max"
    assert not hasattr(module.DCK, "version")


def test_a_transposed_subclass_must_convolve_by_itself() -> None:
    module = _DclsNd(2, 4, 3, (1,), (0,), (5,), True, (0,), 2, True, "zeros", "gauss")
    assert module.weight.shape == (2, 2, 3)
    assert module.P.shape == module.SIG.shape == (1, 2, 2, 3)
    with pytest.raises(NotImplementedError, match="_conv_forward"):
        module(torch.randn(1, 2, 9))


def test_a_dense_base_class() -> None:
    base = modules._DclsN_Md
    module = base(2, 4, 3, (1, 1), "same", (3,), (5,), False, (0, 0), 2, True, "zeros", "v1")
    assert module.weight.shape == (4, 1, 3, 3)
    assert module.P.shape == (1, 4, 1, 3, 3)
    module.DCK = modules.ConstructKernel2_1d(4, 2, 2, 3, (3,), (5,), "v1")
    assert module(torch.randn(1, 2, 9, 9)).shape == (1, 4, 9, 9)


def test_constructors_are_silent(capfd: pytest.CaptureFixture[str], caplog: Any) -> None:
    for layer in LAYERS:
        layer.make()
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
