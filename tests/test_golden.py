"""The modules against DCLS 0.1.1, by data that it wrote (see golden/make_golden.py)."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
from golden.cases import PARAMETERS, Golden, arguments, run

import DCLS.construct.modules as modules

GOLDEN = Golden()
CASES = GOLDEN.index["cases"]
INITIAL = GOLDEN.index["initial"]


def name_of(entry: dict[str, Any]) -> str:
    return f"{entry['class']}-{entry['arguments']['version']}-{entry['seed']}"


def build(entry: dict[str, Any], **more: Any) -> torch.nn.Module:
    module: torch.nn.Module = getattr(modules, entry["class"])(**arguments(entry), **more)
    return module


def assert_close(got: torch.Tensor, want: torch.Tensor, relative: float, name: str) -> None:
    """Compares norm-wise, and the worst element with the largest."""
    assert got.shape == want.shape, name
    error = got.double() - want
    assert error.norm() <= relative * want.norm(), name
    assert error.abs().max() <= relative * want.abs().max(), name


def test_the_data_covers_every_class_and_version() -> None:
    versions = ("v0", "v1", "max", "gauss")
    wanted = {
        (name, version, on_grid)
        for name in ("Dcls1d", "Dcls2d", "Dcls3d", "Dcls3_1d", "Dcls2dK1d")
        for version in versions
        for on_grid in (True, False)
        if (name, version) != ("Dcls3_1d", "v0")
    }
    assert {(c["class"], c["arguments"]["version"], c["on_grid"]) for c in CASES} == wanted
    used = [case["arguments"] for case in CASES]
    assert {a["padding_mode"] for a in used} == {"zeros", "reflect", "replicate", "circular"}
    assert {a["groups"] for a in used} == {1, 2, 4}
    assert {a["bias"] for a in used} == {True, False}
    assert {a["flat_dim"] for a in used if "flat_dim" in a} == {0, 1}
    for case in CASES:
        has_width = case["arguments"]["version"] in ("max", "gauss")
        assert set(case["results"]) - {"grad_bias"} == {
            "output", "grad_input", "grad_weight", "grad_P", *(["grad_SIG"] * has_width)
        }  # fmt: skip
        assert ("grad_bias" in case["results"]) == case["arguments"]["bias"]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_outputs_and_gradients_equal_those_of_0_1_1(case: dict[str, Any]) -> None:
    want = GOLDEN.tensors(case["results"])
    double = run(build(case, dtype=torch.float64), case)
    assert double.keys() == want.keys()
    for name, value in double.items():
        assert_close(value, want[name], 1e-10, name)
    single = run(build(case, dtype=torch.float32), case)
    for name, value in single.items():
        assert value.dtype == torch.float32
        assert_close(value, want[name], 1e-4, name)


@pytest.mark.parametrize("entry", INITIAL, ids=name_of)
def test_initial_values_equal_those_of_0_1_1(entry: dict[str, Any]) -> None:
    draws = GOLDEN.tensors(GOLDEN.index["generator"])
    torch.manual_seed(0)
    if not (
        torch.allclose(torch.rand(40).double(), draws["uniform"], atol=1e-6)
        and torch.allclose(torch.randn(40).double(), draws["normal"], atol=1e-5)
    ):
        pytest.skip("this torch draws other random numbers than the one that wrote the data")
    module = build(entry)
    torch.manual_seed(entry["seed"])
    module.reset_parameters()
    want = GOLDEN.tensors(entry["values"])
    assert want.keys() == {name for name in PARAMETERS if getattr(module, name) is not None}
    for name, value in want.items():
        torch.testing.assert_close(getattr(module, name).double(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("entry", INITIAL, ids=name_of)
def test_text_is_that_of_0_1_1(entry: dict[str, Any]) -> None:
    want = entry["extra_repr"].removesuffix(", (using torch im2col GEMM)")
    flat = ", flat_dim=0" if entry["class"] == "Dcls2dK1d" else ""
    assert build(entry).extra_repr() == want + flat


@pytest.mark.parametrize("entry", INITIAL, ids=name_of)
def test_state_dicts_of_0_1_1_load(entry: dict[str, Any]) -> None:
    saved = OrderedDict((key, torch.randn(size)) for key, size in entry["state_dict"].items())
    module = build(entry)
    assert list(module.state_dict()) == list(saved)
    module.load_state_dict(saved, strict=True)
    for key, value in saved.items():
        assert torch.equal(module.state_dict()[key], value)


@pytest.mark.parametrize("name", sorted(GOLDEN.modules))
def test_whole_modules_that_0_1_1_pickled_work(name: str) -> None:
    module = pickle.loads(GOLDEN.modules[name])
    assert type(module) is getattr(modules, name)
    case = [c for c in CASES if c["class"] == name and c["arguments"]["version"] == "gauss"][-1]
    assert {"IDX", "lim"}.isdisjoint(vars(module.DCK)), "the old grid stays in memory"
    assert module.extra_repr() == build(case).extra_repr()
    want = GOLDEN.tensors(case["results"])
    for key, value in run(module, case).items():
        assert_close(value, want[key], 1e-4, key)
    module.version = "max"
    assert module.DCK.version == "max"
    assert module.state_dict().keys() == build(case).state_dict().keys()
