"""Plain convolutions that equal the DCLS layers, of one layer and of whole models."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from layers import LAYERS, Layer, Negative, assert_close, layer_id
from support import VERSIONS
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from DCLS.construct.modules import ConstructKernel2d, Dcls1d, Dcls2d, DclsTranspose2d, _DclsNd
from DCLS.nn.fold import fold

layers = pytest.mark.parametrize("layer", LAYERS, ids=layer_id)


def gradient(module: nn.Module, x: Tensor) -> Tensor:
    """The gradient of the input for a fixed cotangent."""
    leaf = x.clone().requires_grad_()
    output = module(leaf)
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    return torch.autograd.grad(output, leaf, cotangent.to(output))[0]


@layers
@pytest.mark.parametrize("version", VERSIONS)
def test_the_plain_layer_computes_the_same(layer: Layer, version: str, device: str) -> None:
    torch.manual_seed(0)
    for groups, bias, dtype in ((2, True, torch.float64), (1, False, torch.float32)):
        options: dict[str, Any] = {"stride": tuple(range(1, layer.ndim + 1)), "padding": 1}
        if layer.transposed:
            options |= {"output_padding": (*[0] * (layer.ndim - 1), layer.ndim - 1)}
        module = layer.make(
            groups=groups, bias=bias, version=version, dtype=dtype, device=device, **options
        )
        x = layer.input(module, 2).to(device)
        plain = module.to_conv()
        kind = f"Conv{'Transpose' * layer.transposed}{layer.ndim}d"
        assert type(plain) is getattr(nn, kind)
        assert plain.kernel_size == layer.kernel_size
        relative = 1e-10 if dtype == torch.float64 else 1e-5
        assert_close(plain(x), module(x), relative)
        assert_close(plain(x[0]), module(x[0]), relative)
        assert_close(gradient(plain, x), gradient(module, x), relative)
        assert {(p.dtype, p.device.type) for p in plain.parameters()} == {(dtype, device)}
        assert (plain.bias is None) == (not bias)
        if layer.transposed:
            spatial = [n + 1 if s > 1 else n for n, s in zip(module(x).shape[2:], module.stride,
                                                             strict=True)]  # fmt: skip
            spatial = [n - o for n, o in zip(spatial, options["output_padding"], strict=True)]
            assert_close(plain(x, spatial), module(x, spatial), relative)


@pytest.mark.parametrize("layer", [la for la in LAYERS if not la.transposed], ids=layer_id)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_every_padding_is_kept(layer: Layer, mode: str) -> None:
    torch.manual_seed(1)
    for padding in (1, "same", "valid", tuple(range(layer.ndim))):
        module = layer.make(padding=padding, padding_mode=mode, dtype=torch.float64)
        plain = module.to_conv()
        assert (plain.padding, plain.padding_mode) == (module.padding, mode)
        x = layer.input(module, 1)
        assert_close(plain(x), module(x))


def test_what_becomes_of_flags() -> None:
    module = Dcls2d(2, 2, 3, dilated_kernel_size=5).eval()
    assert not module.to_conv().training
    assert module.train().to_conv().training
    for name in ("weight", "P", "SIG"):
        module.requires_grad_(False)
        module.get_parameter(name).requires_grad_(True)
        plain = module.to_conv()
        assert (plain.weight.requires_grad, plain.bias.requires_grad) == (True, False), name
    module.requires_grad_(False).bias.requires_grad_(True)
    plain = module.to_conv()
    assert (plain.weight.requires_grad, plain.bias.requires_grad) == (False, True)
    assert all(p.is_leaf for p in plain.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision_and_autocast_keep_the_dtype(dtype: torch.dtype) -> None:
    module = Dcls2d(2, 2, 3, dilated_kernel_size=5, dtype=dtype)
    x = torch.randn(1, 2, 8, 8).to(dtype)
    assert torch.equal(module.to_conv()(x), module(x))
    with torch.autocast("cpu", torch.bfloat16):
        plain = module.to_conv()
    assert plain.weight.dtype == dtype
    assert_close(plain.weight, module.to_conv().weight, 0.01)


def test_the_plain_layer_is_a_copy_and_draws_no_random_number() -> None:
    module = Dcls2d(2, 2, 3, dilated_kernel_size=5)
    x = torch.randn(1, 2, 8, 8)
    state = torch.random.get_rng_state()
    plain = module.to_conv()
    assert torch.equal(torch.random.get_rng_state(), state)
    want = plain(x)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3)
    assert torch.equal(plain(x), want)
    assert not torch.equal(module.to_conv()(x), want)
    before = module(x)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    assert torch.equal(module(x), before)


def test_an_integer_position_and_a_meta_layer() -> None:
    module = Dcls1d(2, 3, 2, dilated_kernel_size=5, version="v0", dtype=torch.float64)
    module.P.requires_grad_(False)
    module.P.data = torch.randint(-2, 3, module.P.shape)
    x = torch.randn(1, 2, 9, dtype=torch.float64)
    assert_close(module.to_conv()(x), module(x))
    meta = Dcls2d(2, 4, 3, dilated_kernel_size=(3, 5), device="meta").to_conv()
    assert meta.weight.is_meta
    assert meta.bias.is_meta
    assert meta.weight.shape == (4, 2, 3, 5)


def test_parametrized_layers_fold_with_their_present_values() -> None:
    module = Dcls2d(2, 2, 3, dilated_kernel_size=5)
    for name in ("weight", "P", "bias"):
        parametrize.register_parametrization(module, name, Negative())
    x = torch.randn(1, 2, 8, 8)
    plain = module.to_conv()
    assert type(plain) is nn.Conv2d
    assert not parametrize.is_parametrized(plain)
    assert_close(plain(x), module(x), 1e-6)
    assert (plain.bias <= 0).all()
    assert {name for name, p in plain.named_parameters() if p.requires_grad} == {"weight", "bias"}


# Subclasses


class OwnKernel(Dcls2d):
    """Builds another kernel, and convolves as its base does: can be folded."""

    def __init__(self) -> None:
        super().__init__(2, 2, 3, dilated_kernel_size=5, padding="same", padding_mode="reflect")
        self.DCK = Wide(2, 2, 1, 3, 5, "gauss")


class Wide(ConstructKernel2d):
    """Its kernels are larger than told."""

    def forward(self, W: Tensor, P: Tensor, SIG: Tensor | None = None) -> Tensor:
        return nn.functional.pad(super().forward(W, P, SIG), (1, 1, 1, 1)) * 2


class Signed(Dcls2d):
    """Computes something else than a convolution with the kernel of its parameters."""

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, P: Tensor, SIG: Tensor | None
    ) -> Tensor:
        return super()._conv_forward(input, -weight.abs(), bias, P, SIG)


class Doubled(Dcls2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Renamed(Dcls2d):
    """Changes nothing that matters."""


def test_subclasses_that_convolve_as_their_base_are_folded() -> None:
    torch.manual_seed(2)
    x = torch.randn(1, 2, 12, 12)
    own = OwnKernel()
    assert own.to_conv().kernel_size == (7, 7)
    assert_close(own.to_conv()(x), own(x), 1e-5)
    named = Renamed(2, 2, 3, dilated_kernel_size=5)
    assert_close(named.to_conv()(x), named(x), 1e-5)


@pytest.mark.parametrize("kind", [Signed, Doubled])
def test_subclasses_that_compute_something_else_are_refused(kind: type[Dcls2d]) -> None:
    module = kind(2, 2, 3, dilated_kernel_size=5)
    with pytest.raises(TypeError, match=f"{kind.__name__} has a .*forward of its own"):
        module.to_conv()
    model = nn.Sequential(Dcls2d(2, 2, 3, dilated_kernel_size=3), nn.ModuleDict({"inner": module}))
    before = list(model.modules())
    for inplace in (False, True):
        with pytest.raises(TypeError, match=r"model\.1\.inner cannot be folded"):
            fold(model, inplace=inplace)
        assert list(model.modules()) == before
    with pytest.raises(TypeError, match="model cannot be folded"):
        fold(module)


def test_patched_layers_and_hooks_are_refused() -> None:
    module = Dcls2d(2, 2, 3, dilated_kernel_size=5)
    module.forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(TypeError, match="forward of its own"):
        module.to_conv()
    del module.forward
    for register in (module.register_forward_hook, module.register_forward_pre_hook):
        handle = register(lambda *_: None)
        with pytest.raises(RuntimeError, match="hooks"):
            module.to_conv()
        handle.remove()
    prune.random_unstructured(module, "weight", 0.5)
    with pytest.raises(RuntimeError, match=r"prune\.remove"):
        fold(nn.Sequential(module))
    prune.remove(module, "weight")
    assert fold(nn.Sequential(module))[0].weight.shape == (2, 2, 5, 5)


def test_kernels_and_versions_that_do_not_fit_are_refused() -> None:
    class Flat(nn.Module):
        def forward(self, weight: Tensor, P: Tensor, SIG: Tensor | None) -> Tensor:  # noqa: ARG002
            return weight

    module = Dcls2d(2, 4, 3, dilated_kernel_size=5)
    module.DCK = Flat()
    with pytest.raises(ValueError, match=r"DCK must build a kernel of shape \(4, 2\)"):
        module.to_conv()
    module = Dcls2d(2, 4, 3, dilated_kernel_size=5, version="v1")
    module.version = "gauss"
    with pytest.raises(ValueError, match="SIG"):
        module.to_conv()
    with pytest.raises(ValueError, match=r"model\.0 cannot be folded"):
        fold(nn.Sequential(module))


# Whole models


class Model(nn.Module):
    """One layer used twice, one in a list, a transposed one, and plain layers between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.first = Dcls2d(4, 4, 5, padding=3, dilated_kernel_size=7, groups=4)
        self.again = self.first
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.BatchNorm2d(4), Dcls2d(4, 6, 2, padding=1, dilated_kernel_size=3))]
        )
        self.up = DclsTranspose2d(6, 2, 4, stride=2, dilated_kernel_size=4)
        self.unregistered = [self.first]

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.first(self.stem(x)).relu())
        x = self.unregistered[0](x)
        return self.up(self.blocks[0](x), output_size=(25, 27))


@pytest.mark.parametrize("inplace", [False, True])
def test_a_whole_model(inplace: bool, device: str) -> None:
    torch.manual_seed(3)
    model = Model().double().to(device).eval()
    x = torch.randn(2, 3, 11, 12, dtype=torch.float64, device=device)
    want, names = model(x), [name for name, _ in model.named_modules()]
    stem = model.stem
    folded = fold(model, inplace=inplace)
    assert (folded is model) == inplace
    assert (folded.stem is stem) == inplace
    assert not any(type(m).__module__.startswith("DCLS") for m in folded.modules())
    assert type(folded.first) is nn.Conv2d
    assert type(folded.blocks[0][1]) is nn.Conv2d
    assert type(folded.up) is nn.ConvTranspose2d
    assert folded.first is folded.again, "a shared layer stays shared"
    assert not folded.training
    assert not any(m.training for m in folded.modules())
    assert_close(folded(x), want)
    if not inplace:
        assert [name for name, _ in model.named_modules()] == names, "the model is unchanged"
        assert folded.unregistered[0] is folded.first, "even where no module is registered"
        assert torch.equal(model(x), want)
        assert not {id(p) for p in folded.parameters()} & {id(p) for p in model.parameters()}


@pytest.mark.parametrize("inplace", [False, True])
def test_one_parent_with_one_layer_under_two_names(inplace: bool) -> None:
    layer = Dcls2d(2, 2, 3, padding=1, dilated_kernel_size=3)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    x = torch.randn(1, 2, 6, 6)
    want = model(x)
    folded = fold(model, inplace=inplace)
    assert type(folded[0]) is nn.Conv2d
    assert folded[0] is folded[2]
    assert_close(folded(x), want, 1e-5)


def test_a_layer_at_the_root_and_models_without_any() -> None:
    layer = Dcls2d(2, 2, 3, dilated_kernel_size=5)
    for inplace in (False, True):
        assert type(fold(layer, inplace=inplace)) is nn.Conv2d
    plain = nn.Sequential(nn.Linear(2, 2))
    assert fold(plain, inplace=True) is plain
    copied = fold(plain)
    assert copied is not plain
    assert torch.equal(copied[0].weight, plain[0].weight)
    with pytest.raises(TypeError, match="model must be"):
        fold([layer])


def test_positions_that_layers_share_are_folded_into_each() -> None:
    first, second = (Dcls2d(3, 3, 4, padding=2, dilated_kernel_size=5, groups=3) for _ in range(2))
    second.P = first.P
    model = nn.Sequential(first, second).double()
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    folded = fold(model)
    assert_close(folded(x), model(x))
    assert set(folded.state_dict()) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_a_folded_model_runs_where_dcls_is_not_imported(tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = nn.Sequential(Dcls1d(2, 3, 4, padding=3, dilated_kernel_size=7), nn.ReLU()).eval()
    x = torch.randn(1, 2, 16)
    file = tmp_path / "folded.pt"
    torch.save({"model": fold(model), "x": x, "want": model(x)}, file)
    script = (
        "import sys, torch\n"
        "sys.modules['DCLS'] = None  # an import of it fails\n"
        "saved = torch.load(sys.argv[1], weights_only=False)\n"
        "torch.testing.assert_close(saved['model'](saved['x']), saved['want'])\n"
        "print('equal')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(file)], capture_output=True, text=True, timeout=120
    )
    assert (run.returncode, run.stdout.strip()) == (0, "equal"), run.stderr


def test_folding_a_copy_is_folding() -> None:
    model = nn.Sequential(Dcls2d(2, 2, 3, dilated_kernel_size=5))
    twin = fold(copy.deepcopy(model))
    assert torch.equal(twin[0].weight, fold(model)[0].weight)


def test_a_subclass_of_the_base_class_is_folded() -> None:
    class Own(_DclsNd):
        def __init__(self) -> None:
            super().__init__(
                4, 6, 3, (1, 1), (1, 1), (5, 5), False, (0, 0), 2, True, "circular", "v1"
            )
            self.DCK = ConstructKernel2d(6, 4, 2, 3, (5, 5), "v1")

    own = Own()
    x = torch.randn(1, 4, 8, 8)
    assert_close(own.to_conv()(x), own(x), 1e-5)


# In place: whatever refers to a layer
