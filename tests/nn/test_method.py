"""The method of a layer: which convolution it uses, and that they agree."""

from __future__ import annotations

import copy
import importlib
import itertools
import json
import pickle
from pathlib import Path

import pytest
import torch
from layers import LAYERS, Layer
from support import VERSIONS, Calls
from torch import Tensor, nn

import DCLS
import DCLS.construct.modules as modules
from DCLS import Dcls1d, Dcls2d, DclsTranspose2d, _cpu_rule
from DCLS import method as rule
from DCLS.construct.modules import ConstructKernel2d

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CONVOLUTIONS = [layer for layer in LAYERS if not layer.transposed]


def gradients(module: nn.Module, x: Tensor, cotangent: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    output = module(x)
    inputs = [x, *module.parameters()]
    return [output, *torch.autograd.grad(output, inputs, cotangent)]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_methods_agree(layer: Layer, version: str, device: str) -> None:
    torch.manual_seed(0)
    direct = layer.make(version=version, method="direct").to(device, torch.float64)
    with torch.no_grad():
        direct.P.normal_(0, 2)
        direct.P.flatten()[::3].round_()  # the kinks
    direct.clamp_parameters()
    conv = copy.deepcopy(direct)
    conv.method = "conv"
    x = layer.input(direct, 2).to(device, torch.float64)
    cotangent = torch.randn_like(direct(x))
    for got, expected in zip(
        gradients(direct, x, cotangent), gradients(conv, x, cotangent), strict=True
    ):
        assert torch.allclose(got, expected, rtol=1e-9, atol=1e-9)


def calls_direct(module: nn.Module, x: Tensor) -> bool:
    with Calls() as calls:
        module(x)
    ours = {torch.ops.dcls.direct_conv.default, torch.ops.dcls.layer.default}
    return bool(ours & set(calls.operators))


def test_method_decides() -> None:
    module = Dcls2d(4, 4, 3, dilated_kernel_size=9, padding=4, groups=4)
    x = torch.randn(1, 4, 12, 12)
    assert module.method == "auto"
    assert calls_direct(module, x)
    module.method = "conv"
    assert not calls_direct(module, x)
    assert "method=conv" in module.extra_repr()
    small = Dcls2d(4, 4, 1, dilated_kernel_size=3, padding=1, groups=4)
    assert not calls_direct(small, x)
    small.method = "direct"
    assert calls_direct(small, x)


def test_auto_follows_the_rule() -> None:
    x = torch.randn(1, 32, 40)
    sparse = Dcls1d(32, 32, 1, dilated_kernel_size=25, version="v1")
    dense = Dcls1d(32, 32, 20, dilated_kernel_size=25, version="v1")
    assert calls_direct(sparse, x)
    assert not calls_direct(dense, x)
    # With a kernel of its own, nothing is known of its cells.
    sparse.DCK = nn.Identity()
    sparse.DCK.forward = lambda weight, P, SIG: weight.expand(-1, -1, 25)  # noqa: ARG005
    assert not calls_direct(sparse, x)


def depthwise(version: str = "v1", elements: int = 34) -> Dcls2d:
    return Dcls2d(8, 8, elements, dilated_kernel_size=17, padding=8, groups=8, version=version)


def test_auto_asks_for_what_is_measured() -> None:
    module, plain = depthwise(), torch.randn(1, 8, 20, 20)
    assert module.explain(plain).method == "direct"
    assert module.explain(plain[0]).method == "direct"
    assert module.explain(plain.half()) == (
        "conv",
        "the dtypes of input and parameters differ",
        "default",
    )
    choice = depthwise().to("meta").explain(plain.to("meta"))
    assert choice == ("conv", "nothing has been measured on meta", "default")
    empty = {"out_channels": 0, "groups": 1, "kernel_size": (17, 17), "cells": 4, "training": True}
    assert rule.choose(input_shape=(1, 0, 20, 20), **empty).reason == "the kernel is empty"
    assert module.explain(plain[:, :3]).method == "conv"


def test_auto_sees_the_dtype_that_autocast_gives() -> None:
    module, plain = depthwise(), torch.randn(1, 8, 20, 20)
    with torch.autocast("cpu", torch.bfloat16):
        assert module.explain(plain).method == "direct"
        assert module.explain(plain.bfloat16()).method == "direct"
        assert module.explain(plain.double()).method == "conv"
    assert module.explain(plain.bfloat16()).method == "conv"


def test_auto_sees_the_layout_that_the_convolution_runs_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A slice is copied: only an input that is channels last counts as such."""
    monkeypatch.setattr(rule, "_WIDE_VECTORS", True)  # there the layout decides
    module, plain = depthwise(), torch.randn(2, 8, 20, 20)
    with torch.no_grad():
        assert module.explain(plain).method == "direct"
        assert module.explain(torch.randn(2, 8, 20, 29)[..., 3:23]).method == "direct"
        assert module.explain(plain.to(memory_format=torch.channels_last)).method == "conv"


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_what_explain_says_is_what_is_done(layer: Layer) -> None:
    """Whatever asks: the layer itself, its rule, or its kind."""
    for method in ("auto", "direct", "conv"):
        if layer.transposed and method != "auto":
            continue
        module = layer.make(version="v1") if layer.transposed else layer.make(method=method)
        x = layer.input(module, 2)
        for enabled in (True, False):
            with torch.set_grad_enabled(enabled):
                choice = module.explain(x)
                assert (choice.method == "direct") == calls_direct(module, x)
        assert choice.reason
        assert choice.source == ("layer" if layer.transposed else "CPU rule") or method != "auto"
        if method != "auto":
            assert choice == (method, f"the layer's method is {method!r}", "asked")


def test_im2col_layers_explain_themselves() -> None:
    choice = DCLS.im2col.Dcls2d(4, 4, 3, dilated_kernel_size=9).explain(torch.randn(1, 4, 12, 12))
    assert (choice.method, choice.source) == ("im2col", "layer")
    with pytest.raises(TypeError, match="input must be a Tensor"):
        Dcls1d(1, 1, 1).explain([1.0])


def test_explain_knows_nothing_of_a_foreign_builder() -> None:
    """All cells count, as for the kernel that it builds."""
    module = Dcls1d(32, 32, 1, dilated_kernel_size=25, version="v1")
    x = torch.randn(1, 32, 40)
    assert module.explain(x).method == "direct"
    module.DCK = nn.Identity()
    assert module.explain(x).method == "conv"
    assert "25 of them not zero" in module.explain(x).reason


def test_a_known_width_counts() -> None:
    """A schedule starts with gaussians that fill the kernel: torch multiplies matrices faster."""
    module = Dcls1d(128, 128, 1, dilated_kernel_size=25).requires_grad_(False)
    x = torch.randn(16, 128, 100)
    assert module.known_width is None
    assert module.explain(x).method == "direct"
    module.known_width = 12.0
    assert module.explain(x).method == "conv"
    assert "25 of them not zero" in module.explain(x).reason
    module.known_width = 0.23
    assert module.explain(x).method == "direct"
    assert "known_width" not in module.state_dict()


def test_each_choice_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    module, x = depthwise(), torch.randn(1, 8, 20, 20)
    with caplog.at_level("DEBUG", logger="DCLS"):
        module(x)
    (record,) = caplog.records
    assert record.name == "DCLS"
    choice = module.explain(x)
    assert record.getMessage().startswith("Dcls2d(8, 8, ")
    assert record.getMessage().endswith(f": {choice.method}: {choice.reason}")
    caplog.clear()
    module(x)  # at the default level nothing is said
    assert not caplog.records


def test_every_term_of_the_rule_can_hold() -> None:
    """Each is the first that holds for some layer: none is hidden by those before it."""
    found = set()
    for facts in itertools.product(
        (1, 2, 3),
        ("one", "few", "many"),
        (3, 9, 25, 31, 49, 81, 169, 225, 900),
        (100, 200, 784, 3136),
        (False, True),
        (False, True),
        (4096, 1 << 20),
        (False, True),
        (False, True),
        (False, True),
    ):
        hidden = 0.0  # kernels filled no more than this satisfy an earlier term
        for term in _cpu_rule.candidates(_cpu_rule.Facts(*facts)):
            if term.filled > hidden:
                found.add(term.name)
            hidden = max(hidden, term.filled)
    assert found == {term.name for term in _cpu_rule.TERMS}
    assert len(found) == len(_cpu_rule.TERMS)


def test_the_rule_asks_the_library_about_the_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One condition: what the plan of the convolution does is what the rule reckons with."""
    fills = rule._batch_fills_vectors
    for batch, length, expected in [(16, 100, True), (3, 100, False), (16, 17, True), (1, 1, True)]:
        assert fills((batch, 8, length), 8, 1, length, 1, torch.float32) == expected
    # A stride keeps the points of a row apart.
    assert not fills((16, 8, 100), 8, 1, 50, 2, torch.float32)
    # Lanes of long and of short vectors.
    for bytes_, dtype, lanes in [
        (64, torch.float32, 16),
        (64, torch.float64, 8),
        (64, torch.bfloat16, 16),
        (32, torch.float32, 8),
        (32, torch.float64, 4),
        (32, torch.bfloat16, 8),
    ]:
        monkeypatch.setattr(rule, "_VECTOR_BYTES", bytes_)
        assert fills((lanes, 8, 100), 8, 1, 100, 1, dtype)
        assert not fills((lanes // 2, 8, 100), 8, 1, 100, 1, dtype)


def test_the_measured_choices_are_those_of_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/performance.md shows them."""
    if not (BENCHMARKS / "conv_cases.py").is_file():
        pytest.skip("the tests run without the repository")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    bench_rule = importlib.import_module("bench_rule")
    files = sorted((BENCHMARKS / "results").glob("conv-rule*-cpu*.json"))
    held: dict[str, set[str]] = {file.stem: set() for file in files}
    assert len(held) >= 4
    for file in files:
        content = json.loads(file.read_text())
        assert content["complete"]
        for result in content["results"]:
            with bench_rule.vectors_of(content):
                choice = bench_rule.choice_now(result)
            # What is chosen since then instead was as fast.
            now, then = (result[f"{m} ms"][0] for m in (choice.method, result["chosen"]))
            assert choice.method == result["chosen"] or now <= 1.1 * then, result
            held[file.stem].add(choice.reason.partition(" (")[0])
    for name, terms in held.items():
        assert {term.name for term in _cpu_rule.TERMS if term.measured == name} <= terms
    others = [term for term in _cpu_rule.TERMS if term.measured not in held]
    assert len(others) == 3  # these say what they are extrapolated from


@pytest.mark.parametrize("name", ["Dcls1d", "Dcls2_1d"])
def test_a_new_gaussian_has_the_cells_that_the_rule_expects(name: str) -> None:
    dense = {"dense_kernel_size": 3} if name == "Dcls2_1d" else {}
    module = getattr(modules, name)(1, 1, 1, dilated_kernel_size=63, version="gauss", **dense)
    with torch.no_grad():
        module.P.uniform_(-0.5, 0.5)
    support = module.DCK.support(module.weight, module.P, module.SIG)
    size, sigma_min = module.dilated_kernel_size, module.DCK._sigma_min("gauss")
    expected = rule.expected_cells("gauss", 1, module.dense_kernel_size, size, sigma_min)
    assert abs(int(support.sum()) - expected) <= 2 * support[..., 0].numel()


@pytest.mark.parametrize(
    ("version", "cells"), [("v0", 12), ("v1", 12), ("max", 27), ("gauss", 5 * 7)]
)
def test_expected_cells(version: str, cells: int) -> None:
    assert rule.expected_cells(version, 3, (), (5, 7)) == cells
    assert rule.expected_cells(version, 3, (2,), (5, 7)) == 2 * cells
    assert rule.expected_cells(version, 100, (), (5, 7)) == 35


@pytest.mark.parametrize(("value", "error"), [("fast", ValueError), (None, TypeError)])
def test_bad_method(value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="method must be"):
        Dcls2d(1, 1, 1, method=value)
    module = Dcls2d(1, 1, 1)
    with pytest.raises(error, match="method must be"):
        module.method = value
    assert module.method == "auto"


def test_use_implicit_gemm_chooses_the_method() -> None:
    torch.manual_seed(0)
    default = Dcls2d(2, 2, 3, dilated_kernel_size=7, padding=3, groups=2)
    torch.manual_seed(0)
    without = Dcls2d(2, 2, 3, dilated_kernel_size=7, padding=3, groups=2, use_implicit_gemm=False)
    assert (default.use_implicit_gemm, without.use_implicit_gemm) == (True, False)
    assert (default.method, without.method) == ("auto", "conv")
    x = torch.randn(1, 2, 8, 8)
    assert torch.allclose(default(x), without(x), atol=1e-5)
    without.use_implicit_gemm = True
    assert without.method == "auto"
    without.method = "direct"
    without.use_implicit_gemm = True
    assert without.method == "direct"
    without.use_implicit_gemm = False
    assert without.method == "conv"


@pytest.mark.parametrize(("old", "method"), [(True, "auto"), (False, "conv")])
def test_modules_that_0_1_1_pickled_know_the_switch_only(old: bool, method: str) -> None:
    module = Dcls2d(2, 2, 3, dilated_kernel_size=7, groups=2, version="v1")
    del module.__dict__["method"]
    module.__dict__["use_implicit_gemm"] = old
    loaded = pickle.loads(pickle.dumps(module))
    assert loaded.method == method
    assert loaded.use_implicit_gemm is old
    assert loaded.version == loaded.DCK.version == "v1"
    assert loaded(torch.ones(1, 2, 9, 9)).shape == (1, 2, 3, 3)


def test_modules_that_1_0_pickled_have_other_names() -> None:
    module = Dcls2d(2, 2, 3, dilated_kernel_size=7, groups=2, version="v1", method="direct")
    for part in (module, module.DCK):
        part.__dict__["_own_version"] = part.__dict__.pop("version")
    module.__dict__["_own_method"] = module.__dict__.pop("method")
    del module.__dict__["use_implicit_gemm"]
    loaded = pickle.loads(pickle.dumps(module))
    assert (loaded.method, loaded.use_implicit_gemm) == ("direct", True)
    assert loaded.version == loaded.DCK.version == "v1"
    assert not any(name.startswith("_own") for name in {**vars(loaded), **vars(loaded.DCK)})
    assert loaded(torch.ones(1, 2, 9, 9)).shape == (1, 2, 3, 3)


def test_a_kernel_changed_by_a_hook_gets_all_of_its_gradient() -> None:
    """A hook may carry the gradient of any cell to the elements: all cells need theirs."""
    torch.manual_seed(0)
    module = Dcls2d(2, 2, 2, dilated_kernel_size=7, groups=2, version="v1", method="direct")
    module = module.double()
    with torch.no_grad():
        module.P.fill_(0.3)

    def blur(_module: nn.Module, _inputs: object, kernel: Tensor) -> Tensor:
        return kernel + kernel.roll(3, -1) + kernel.flip(-2)

    module.DCK.register_forward_hook(blur)
    assert module.DCK.support(module.weight, module.P) is None
    x = torch.randn(1, 2, 9, 9, dtype=torch.float64)
    cotangent = torch.randn_like(module(x))
    got = gradients(module, x, cotangent)
    module.method = "conv"
    for a, b in zip(got, gradients(module, x, cotangent), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


def test_a_subclass_of_a_builder_has_no_known_support() -> None:
    class Twice(ConstructKernel2d):
        def forward(self, W: Tensor, P: Tensor, SIG: Tensor | None = None) -> Tensor:
            return 2 * super().forward(W, P, SIG)

    weight, P = torch.randn(2, 1, 3), torch.randn(2, 2, 1, 3)
    arguments = (2, 2, 2, 3, 5, "v1")
    assert Twice(*arguments).support(weight, P) is None
    known = ConstructKernel2d(*arguments).support(weight, P)
    assert known is not None
    assert known.dtype == torch.bool
    assert torch.equal(known, known | (ConstructKernel2d(*arguments)(weight, P) != 0))


def test_inference_needs_no_support() -> None:
    module = Dcls2d(2, 2, 3, dilated_kernel_size=7, padding=3, groups=2, method="direct")
    asked = []
    module.DCK.support = lambda *_args: asked.append(1)
    module.DCK.register_forward_pre_hook(lambda _module, _inputs: None)  # by separate operators
    x = torch.randn(1, 2, 8, 8)
    with torch.no_grad():
        module(x)
    assert asked == []
    module(x)
    assert asked == [1]


def test_transposed_layers_have_one_method() -> None:
    module = DclsTranspose2d(2, 2, 1)
    for value in ("direct", "conv"):
        with pytest.raises(ValueError, match="method must be 'auto' for a transposed convolution"):
            module.method = value
    module.method = "auto"
    assert module.method == "auto"
    assert "method" not in module.extra_repr()
    with pytest.raises(TypeError, match="method"):
        DclsTranspose2d(2, 2, 1, method="direct")


def test_a_wrong_input_gets_torchs_own_error() -> None:
    module = Dcls2d(4, 4, 3, dilated_kernel_size=9, groups=4)
    for wrong in (torch.randn(8), torch.randn(1, 3, 12, 12), torch.randn(1, 4, 12, 12).double()):
        with pytest.raises(RuntimeError):
            module(wrong)
