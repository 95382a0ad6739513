"""What a CPU layer counts before it chooses its method."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from layers import LAYERS
from support import Calls
from torch import Tensor, nn

import DCLS
from DCLS import Dcls1d

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CONVOLUTIONS = [layer for layer in LAYERS if not layer.transposed]


def delays(version: str = "gauss", width: float = 25.0) -> Dcls1d:
    """A layer as delay trainers start it: positions everywhere, widths of half of the kernel."""
    torch.manual_seed(0)
    module = Dcls1d(128, 128, 1, dilated_kernel_size=51, bias=False, version=version)
    nn.init.uniform_(module.P, -25, 25)
    if module.SIG is not None:
        nn.init.constant_(module.SIG, width)
    return module


@pytest.mark.parametrize(("batch", "trains"), [(4, False), (4, True), (32, False)])
@pytest.mark.parametrize("version", ["gauss", "max"])
def test_a_cpu_layer_counts_its_cells(version: str, trains: bool, batch: int) -> None:
    """Over a schedule of widths it starts with torch's convolution and ends with the direct one."""
    module, x = delays(version), torch.randn(batch, 128, 300)
    chosen = []
    for width in (25.0, 8.0, 0.5, 0.23):
        nn.init.constant_(module.SIG, width)
        with torch.set_grad_enabled(trains):
            choice = module.explain(x)
        chosen.append(choice.method)
        filled = (module.DCK(module.weight, module.P, module.SIG) != 0).float().mean().item()
        counted = int(choice.reason.partition("about ")[2].split()[0])
        assert abs(counted - 51 * filled) < 3
    assert chosen[0] == "conv" or version == "max"  # which leaves a quarter of the cells zero
    assert chosen[-2:] == ["direct"] * 2


def test_positions_count_too() -> None:
    """Elements that meet touch fewer cells than those that are apart."""
    module = Dcls1d(64, 64, 12, dilated_kernel_size=25, padding=12, version="v1")
    x = torch.randn(4, 64, 400)
    nn.init.uniform_(module.P, -12, 12)
    apart = module.explain(x)
    nn.init.constant_(module.P, 0.3)
    together = module.explain(x)
    assert (apart.method, together.method) == ("conv", "direct")
    assert "about 2 of them not zero" in together.reason


def test_it_counts_anew_only_what_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = delays(), torch.randn(4, 128, 300)
    counted = []
    support = type(module.DCK).support
    monkeypatch.setattr(
        type(module.DCK), "support", lambda *args: counted.append(1) or support(*args)
    )

    def reason() -> str:
        counted.clear()
        with torch.no_grad():
            return module.explain(x).reason

    wide = reason()
    assert counted
    for unchanged in (module, copy.deepcopy(module)):
        assert unchanged.explain(x).reason == wide
    assert (reason(), counted) == (wide, [])
    module.SIG.data.fill_(0.23)  # no version counter tells of it
    narrow = reason()
    assert counted
    assert narrow != wide
    nn.init.constant_(module.P, 0.3)
    assert reason() == narrow
    assert counted
    module.version = "max"
    reason()
    assert counted


def test_a_small_layer_does_not_count() -> None:
    """Counting would take longer than it can save."""
    module = delays()
    assert "about 51 of" in module.explain(torch.randn(4, 128, 300)).reason
    assert "about 7 of" in module.explain(torch.randn(1, 128, 60)).reason


def test_nobody_counts_what_cannot_be_read() -> None:
    module, x = delays(), torch.randn(4, 128, 300)
    expected = "about 7 of them"
    assert expected not in module.explain(x).reason
    with Calls():
        assert expected in module.explain(x).reason
    names, parameters = zip(*module.named_parameters(), strict=True)

    def explained(*values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        reasons.append(torch.func.functional_call(module, given, (x[:1],)) is not None)
        reasons.append(module._choose(x, (0,), *values).reason)
        return values[0].sum()

    reasons: list[object] = []
    stacked = [parameter.detach().expand(2, *parameter.shape) for parameter in parameters]
    torch.func.vmap(explained)(*stacked)
    assert expected in str(reasons[1])
    module.DCK.register_forward_hook(lambda _module, _inputs, kernel: kernel)
    assert expected in module.explain(x).reason


def test_a_compiled_layer_does_not_depend_on_its_values() -> None:
    module, x = delays(), torch.randn(4, 128, 300)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x), module(x), atol=1e-3)


@pytest.mark.parametrize(("kind", "axes"), [(DCLS.Dcls2d, 2), (DCLS.Dcls3d, 3)])
def test_vmap_over_inputs_of_a_layer_left_to_itself(kind: type[nn.Module], axes: int) -> None:
    """vmap cannot say whether a tensor lies in channels last."""
    torch.manual_seed(0)
    module = kind(4, 4, 2, dilated_kernel_size=5, padding=2, groups=2)
    x = torch.randn(3, 2, 4, *[6] * axes)
    expected = torch.stack([module(each) for each in x])
    torch.testing.assert_close(torch.func.vmap(module, in_dims=1)(x.transpose(0, 1)), expected)
