"""The modules against DCLS 0.1.1, by data that it wrote (see golden/make_golden.py)."""

from __future__ import annotations

import functools
import json
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from golden.cases import PARAMETERS, Golden, Uniform, arguments, evaluate, run, values
from layers import assert_close

import DCLS.construct.modules as modules

#: It runs with torch expressions, too: see conftest.
pytestmark = pytest.mark.any_backend

GOLDEN = Golden()
CASES = GOLDEN.index["cases"]
INITIAL = GOLDEN.index["initial"]


def name_of(entry: dict[str, Any]) -> str:
    return f"{entry['class']}-{entry['arguments']['version']}-{entry['seed']}"


def build(entry: dict[str, Any], **more: Any) -> torch.nn.Module:
    given = arguments(entry)
    sizes = [(1,) * ndim for ndim in (1, 2, 3)]
    one_point = given["dilated_kernel_size"] in (1, *sizes) and given["kernel_count"] > 1
    with pytest.warns(UserWarning, match="kernel_count") if one_point else nullcontext():
        module: torch.nn.Module = getattr(modules, entry["class"])(**given, **more)
    return module


#: Where all elements of a kernel lie on one grid point, normalising leaves of the gradients of P
#: and SIG but what 1e-7 against the sum makes: a difference of two numbers of the size of weight *
#: grad_weight, which no one knows to more than their rounding. This part of them is the least that
#: an error is compared with. It is 0 for all other gradients. That 300 configurations do without is
#: asserted below.
FLOOR = {"grad_P": 0.1, "grad_SIG": 0.1}


@functools.cache
def errors_of(number: int, dtype: torch.dtype, with_floor: bool = True) -> dict[str, float]:
    """Returns the relative errors of a case, norm-wise or of the worst element to the largest."""
    case = CASES[number]
    want = GOLDEN.tensors(case["results"])
    module = build(case, dtype=dtype)
    got = run(module, case)
    assert got.keys() == want.keys()
    terms = module.weight.detach().double() * want["grad_weight"]
    relative: dict[str, float] = {}
    for name, value in got.items():
        assert value.dtype == dtype
        assert value.shape == want[name].shape
        relative[name] = 0.0
        for size in (torch.linalg.vector_norm, lambda tensor: tensor.abs().max()):
            error = size(value.double() - want[name])
            least = FLOOR.get(name, 0.0) * with_floor * size(terms)
            if error > 0:
                scale = torch.maximum(size(want[name]), least)
                relative[name] = max(relative[name], (error / scale).item())
    return relative


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
    assert {0, 1} == {a["dilated_kernel_size"] % 2 for a in used}, "even sizes and odd ones"
    assert any(isinstance(a["stride"], tuple | list) for a in used)
    assert any(isinstance(a["padding"], tuple | list) for a in used)
    assert len({json.dumps(case["arguments"]) for case in CASES}) >= 300
    assert {a["bias"] for a in used} == {True, False}
    assert {a["flat_dim"] for a in used if "flat_dim" in a} == {0, 1}
    for case in CASES:
        has_width = case["arguments"]["version"] in ("max", "gauss")
        assert set(case["results"]) - {"grad_bias"} == {
            "output", "grad_input", "grad_weight", "grad_P", *(["grad_SIG"] * has_width)
        }  # fmt: skip
        assert ("grad_bias" in case["results"]) == case["arguments"]["bias"]


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: f"{name_of(CASES[n])}-{n}")
def test_outputs_and_gradients_equal_those_of_0_1_1(number: int) -> None:
    # float32: the taps of an element just beyond the grid are near 0; normalising magnifies their
    # rounding.
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-4)):
        for name, error in errors_of(number, dtype).items():
            assert error <= tolerance, (name, dtype)


def test_the_worst_error_of_all_cases(
    record_testsuite_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = range(len(CASES))
    plain = [max(errors_of(n, torch.float64, with_floor=False).values()) for n in numbers]
    assert sum(error < 1e-10 for error in plain) >= 300
    worst, name, number = max(
        (error, name, n) for n in numbers for name, error in errors_of(n, torch.float64).items()
    )
    assert worst < 1e-10
    record_testsuite_property("golden_worst_relative_error", worst)
    with capsys.disabled():
        print(  # noqa: T201
            f"\n{len(CASES)} configurations of DCLS 0.1.1: worst relative error in float64 "
            f"{worst:.1e} ({name} of {name_of(CASES[number])}); "
            f"{sum(error < 1e-10 for error in plain)} below 1e-10 without the floor"
        )


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
def test_repr_has_the_settings_of_0_1_1(entry: dict[str, Any]) -> None:
    # Without its remarks, as "kernel_count=3 (previous kernel_size)".
    want = re.sub(r",? \([a-zA-Z][\w ]*\)", "", entry["extra_repr"])
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


FIRST = {(case["class"], case["arguments"]["version"]): case for case in reversed(CASES)}


@pytest.mark.parametrize("case", FIRST.values(), ids=name_of)
def test_loaded_state_dicts_give_the_outputs_of_0_1_1(case: dict[str, Any]) -> None:
    module, uniform = build(case, dtype=torch.float64), Uniform(case["seed"])
    drawn = values(module, case, uniform)
    module.load_state_dict({name: drawn[name] for name in case["state_dict"]}, strict=True)
    want = GOLDEN.tensors(case["results"])
    for name, value in evaluate(module, case, uniform).items():
        assert_close(value, want[name])


@pytest.mark.parametrize("name", sorted(GOLDEN.modules))
def test_whole_modules_that_0_1_1_pickled_work(name: str) -> None:
    module = pickle.loads(GOLDEN.modules[name])
    assert type(module) is getattr(modules, name)
    case = [c for c in CASES if c["class"] == name and c["arguments"]["version"] == "gauss"][-1]
    assert {"IDX", "lim"}.isdisjoint(vars(module.DCK)), "the old grid stays in memory"
    assert module.extra_repr() == build(case).extra_repr()
    want = GOLDEN.tensors(case["results"])
    for key, value in run(module, case).items():
        assert_close(value.double(), want[key], 1e-4)
    module.version = "max"
    assert module.DCK.version == "max"
    assert module.state_dict().keys() == build(case).state_dict().keys()
