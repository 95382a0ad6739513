"""Where DCLS 0.1.1 is wrong: what it did, by data that it wrote, and what this package does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden.cases import Golden, Uniform, arguments, evaluate, values
from layers import AXES, Layer, assert_close

import DCLS.construct.modules as modules

#: It runs with torch expressions, too: see conftest.
pytestmark = pytest.mark.any_backend

GOLDEN = Golden()
FOUND = GOLDEN.index["differences"]


def name_of(entry: dict[str, Any]) -> str:
    size = "x".join(map(str, entry["arguments"]["dilated_kernel_size"]))
    return f"{entry['class']}-{entry['arguments']['version']}-{size}-{entry['seed']}"


def build(entry: dict[str, Any]) -> tuple[Any, Uniform]:
    """Returns the module of a case with its parameters, and the draws that follow them."""
    module = getattr(modules, entry["class"])(**arguments(entry), dtype=torch.float64)
    uniform = Uniform(entry["seed"])
    drawn = values(module, entry, uniform)
    module.load_state_dict(drawn, strict=True)
    return module, uniform


def own_axes(module: Any) -> tuple[int, ...]:
    return AXES[len(module.dilated_kernel_size), module.version == "v0"]


def test_the_data_has_every_version_that_is_miscentred() -> None:
    assert {(c["class"], c["arguments"]["version"]) for c in FOUND["miscentred"]} == {
        *(("Dcls2d", version) for version in ("v1", "max", "gauss")),
        *(("Dcls3d", version) for version in ("v0", "v1", "max", "gauss")),
    }


@pytest.mark.parametrize("entry", FOUND["miscentred"], ids=name_of)
def test_non_square_kernels_were_centred_by_the_size_of_another_axis(entry: dict[str, Any]) -> None:
    want = GOLDEN.tensors(entry["results"])
    module, uniform = build(entry)
    size, axes = module.dilated_kernel_size, own_axes(module)
    # 0.1.1 added size[row] // 2 to row `row` of P, where the centre of its axis belongs.
    shift = torch.tensor([size[row] // 2 - size[axis] // 2 for row, axis in enumerate(axes)])
    assert shift.any()
    with torch.no_grad():
        module.P += shift.reshape(-1, 1, 1, 1)
    for name, value in evaluate(module, entry, uniform).items():
        assert_close(value, want[name])

    module, uniform = build(entry)
    output = evaluate(module, entry, uniform)["output"]
    difference = (output - want["output"]).abs().max()
    assert difference > 1e-3 * output.abs().max(), "the same P gave another kernel in 0.1.1"
    layer = Layer(entry["class"], len(size), size)
    assert_close(module.DCK(module.weight, module.P, module.SIG), layer.kernel(module))


@pytest.mark.parametrize("entry", FOUND["miscentred"], ids=name_of)
def test_an_element_in_the_middle_is_in_the_middle_of_a_non_square_kernel(
    entry: dict[str, Any],
) -> None:
    module, _ = build(entry)
    with torch.no_grad():
        module.P.zero_()
        module.weight.fill_(1)
    kernel = module.DCK(module.weight, module.P, module.SIG)[0, 0]
    middle = tuple(points // 2 for points in kernel.shape)
    assert kernel.argmax() == torch.arange(kernel.numel()).reshape(kernel.shape)[middle]


@pytest.mark.parametrize("entry", FOUND["even_limit"], ids=lambda entry: entry["version"])
def test_clamping_let_elements_leave_an_even_kernel(entry: dict[str, Any]) -> None:
    version, was = entry["version"], GOLDEN.tensors(entry["values"])
    assert was["P"].item() == 2, "one step beyond the last of the points -2, -1, 0, 1"
    if version == "gauss":
        assert was["kernel"].sum().item() == pytest.approx(1, abs=1e-3)  # the normalisation
    else:
        assert not was["kernel"].any(), "the element is lost"
    module = modules.Dcls1d(1, 1, 1, dilated_kernel_size=4, version=version).double()
    with torch.no_grad():
        module.weight.fill_(1)
        module.P.copy_(was["P"])
    # The same position gives the same kernel; it is where clamping stops that differs.
    assert_close(module.DCK(module.weight, module.P, module.SIG), was["kernel"])
    module.clamp_parameters()
    assert module.P.item() == 1
    kernel = module.DCK(module.weight, module.P, module.SIG)
    assert kernel.sum().item() == pytest.approx(1, abs=1e-6)
    assert kernel.argmax() == 3


def test_a_module_that_has_run_may_move(device: str) -> None:
    assert "device" in FOUND["after_to"], "0.1.1 kept its grid on the first device, and raised"
    module = modules.Dcls1d(1, 1, 1, dilated_kernel_size=5)
    x = torch.ones(1, 1, 9)
    want = module(x)
    moved = module.to(device)(x.to(device))
    torch.testing.assert_close(moved.cpu(), want)
    module.to("meta")
    assert module(x.to("meta")).shape == want.shape


def test_the_version_of_the_module_is_that_of_its_builder() -> None:
    assert FOUND["version_of_the_builder"] == "gauss", "0.1.1 left it when the module's changed"
    module = modules.Dcls1d(1, 1, 1, dilated_kernel_size=5)
    module.version = "max"
    assert module.DCK.version == "max"


def test_v0_in_half_precision_stays_so() -> None:
    assert FOUND["half_v0"] == "torch.float32", "0.1.1 left a kernel that no half input fits"
    half = modules.Dcls1d(1, 1, 1, dilated_kernel_size=5, version="v0").half()
    assert half.DCK(half.weight, half.P, half.SIG).dtype == torch.float16
    assert half(torch.ones(1, 1, 9).half()).dtype == torch.float16
