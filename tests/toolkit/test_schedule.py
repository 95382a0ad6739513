"""DCLS.WidthSchedule."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from layers import LAYERS, Layer, layer_id
from toolkit.models import Net, Twice, layers_of
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn.utils import parametrize

import DCLS
from DCLS import Dcls1d, Dcls2d
from DCLS.im2col import modules as im2col


def widths(model: nn.Module) -> set[float]:
    return {value for layer in layers_of(model) for value in layer.SIG.unique().tolist()}


def test_exponential_from_start_to_end() -> None:
    model = Net()
    held = [layer.SIG for layer in layers_of(model)]
    schedule = DCLS.WidthSchedule(model, 12.0, steps=4)
    ratio = (0.23 / 12) ** 0.25
    for step in range(4):
        assert schedule.value == pytest.approx(12 * ratio**step)
        assert widths(model) == {torch.tensor(schedule.value).item()}
        assert {layer.known_width for layer in layers_of(model)} == {schedule.value}
        schedule.step()
    for _ in range(2):
        assert schedule.value == 0.23
        assert widths(model) == {torch.tensor(0.23).item()}
        schedule.step()
    assert all(layer.SIG is SIG for layer, SIG in zip(layers_of(model), held, strict=True))
    assert all(SIG.requires_grad for SIG in held)


def test_linear_also_to_zero_and_upwards() -> None:
    model = Net("max")
    schedule = DCLS.WidthSchedule(model, 2, 0, 4, "linear")
    seen = []
    for _ in range(5):
        seen.append(schedule.value)
        assert widths(model) == {schedule.value}
        schedule.step()
    assert seen == [2, 1.5, 1, 0.5, 0]
    assert DCLS.WidthSchedule(model, 1, 3, steps=2, kind="linear").value == 1


@pytest.mark.parametrize("layer", LAYERS, ids=layer_id)
def test_every_layer(layer: Layer) -> None:
    module = layer.make(version="gauss", dtype=torch.float64)
    module.SIG.requires_grad_(False)
    schedule = DCLS.WidthSchedule(module, 3.0, 1.0, 2)
    assert (module.SIG == 3).all()
    assert not module.SIG.requires_grad
    schedule.step()
    assert module.SIG.unique().tolist() == [pytest.approx(3**0.5)]


def test_layers_without_widths_are_left_alone_unless_all_are() -> None:
    model = nn.Sequential(Dcls1d(1, 1, 2, dilated_kernel_size=5, version="v1"),
                          im2col.Dcls1d(1, 1, 2, dilated_kernel_size=5))  # fmt: skip
    DCLS.WidthSchedule(model, 2.0, steps=1)
    assert model[0].known_width is None
    assert (model[1].SIG == 2).all()
    for version in ("v0", "v1", "spline"):
        with pytest.raises(ValueError, match="model must have a layer with widths"):
            DCLS.WidthSchedule(Net(version), 2.0, steps=1)
    with pytest.raises(ValueError, match="model must have a DCLS layer"):
        DCLS.WidthSchedule(nn.Linear(1, 1), 2.0, steps=1)


@pytest.mark.parametrize("weights_only", [True, False])
def test_resuming(weights_only: bool) -> None:
    model = Net()
    schedule = DCLS.WidthSchedule(model, 6.0, 0.5, 7, "linear")
    for _ in range(3):
        schedule.step()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "widths": schedule.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=weights_only)
    for model_first in (True, False):
        resumed = Net()
        if model_first:
            resumed.load_state_dict(saved["model"])
        again = DCLS.WidthSchedule(resumed, 1.0, steps=2)
        if not model_first:
            resumed.load_state_dict(saved["model"])
        again.load_state_dict(saved["widths"])
        assert widths(resumed) == widths(model)
        assert layers_of(resumed)[0].known_width == schedule.value
        assert again.state_dict() == schedule.state_dict()
        twin = copy.deepcopy(schedule)
        for _ in range(5):
            again.step()
            twin.step()
            assert again.value == twin.value
        assert again.value == 0.5


def test_the_layer_chooses_its_method_by_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Dcls2d(64, 64, 4, dilated_kernel_size=25, padding=12, groups=64)
    x = torch.randn(1, 64, 40, 40)
    schedule = DCLS.WidthSchedule(layer, 12.0, 0.01, 1)
    wide, cells = layer.explain(x), layer._expected_cells()
    schedule.step()
    assert layer._expected_cells() < cells
    assert layer.explain(x) != wide


def test_a_compiled_model_follows_without_a_new_graph_each_step() -> None:
    model = Dcls2d(2, 2, 3, dilated_kernel_size=25, padding=12)
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    x = torch.randn(1, 2, 26, 26)
    steps = 24
    schedule = DCLS.WidthSchedule(model, 12.0, steps=steps)
    with torch.no_grad():
        for _ in range(steps):
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
            schedule.step()
    assert counter.frame_count <= 5


class OneWay(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.exp()


def test_widths_that_are_computed() -> None:
    layer = Dcls1d(1, 1, 2, dilated_kernel_size=5)
    parametrize.register_parametrization(layer, "SIG", Twice())
    DCLS.WidthSchedule(layer, 2.0, steps=1)
    assert (layer.parametrizations.SIG.original == 1).all()
    model = nn.Sequential(Dcls1d(1, 1, 2, dilated_kernel_size=5))
    parametrize.register_parametrization(model[0], "SIG", OneWay())
    with pytest.raises(RuntimeError, match=r"model\.0\.SIG cannot be edited.*right_inverse"):
        DCLS.WidthSchedule(model, 2.0, steps=1)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"model": None}, TypeError, "model must be"),
        ({"start": "3"}, TypeError, "start must be a number"),
        ({"start": -1}, ValueError, "start must be finite and not negative"),
        ({"start": float("nan")}, ValueError, "start must be finite"),
        ({"end": None}, TypeError, "end must be a number"),
        ({"end": -0.1}, ValueError, "end must be finite and not negative"),
        ({"steps": None}, TypeError, "steps must be a positive int"),
        ({"steps": 2.5}, TypeError, "steps must be a positive int"),
        ({"steps": -3}, ValueError, "steps must be a positive int"),
        ({"steps": 0}, ValueError, "steps must be a positive int"),
        ({"kind": "cosine"}, ValueError, "kind must be one of exponential, linear"),
        ({"kind": None}, TypeError, "kind must be a str"),
        ({"start": 0}, ValueError, "exponential schedule must start and end above 0"),
        ({"end": 0}, ValueError, "exponential schedule must start and end above 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    model = Net()
    with pytest.raises(error, match=text):
        DCLS.WidthSchedule(**{"model": model, "start": 2.0, "steps": 3, **arguments})
    assert widths(model) == {torch.tensor(0.23).item()}
    assert layers_of(model)[0].known_width is None


def test_bad_states_change_nothing() -> None:
    model = Net()
    schedule = DCLS.WidthSchedule(model, 2.0, steps=3)
    good = schedule.state_dict()
    for wrong, error in (
        (None, TypeError),
        ({}, ValueError),
        ({**good, "more": 1}, ValueError),
        ({**good, "start": -1.0}, ValueError),
        ({**good, "steps": 0}, ValueError),
        ({**good, "last_step": -1}, ValueError),
        ({**good, "kind": 3}, TypeError),
        ({**good, "end": 0.0}, ValueError),
    ):
        with pytest.raises(error):
            schedule.load_state_dict(wrong)
        assert schedule.state_dict() == good
        assert widths(model) == {2.0}
