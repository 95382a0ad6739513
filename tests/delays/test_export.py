"""Exported delay layers compute, in simulations written here, what the layers do."""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packages import import_or_skip
from torch import Tensor, nn

import DCLS
from DCLS.delays import Delay, DelayConv1d, DelayLinear, nir_node, to_arrays, to_nir

SHARING = ("synaptic", "axonal", "dendritic")
every_sharing = pytest.mark.parametrize("sharing", SHARING)


def make(sharing: str, count: int = 2, **more: Any) -> DelayLinear:
    torch.manual_seed(0)
    layer = DelayLinear(4, 3, 6, sharing=sharing, count=count, **more).double()
    layer.set_delays(layer.delays() * 1.3 - 0.7)  # some are outside: they are clamped
    return layer


def rounded(layer: Any, x: Tensor) -> Tensor:
    """What the layer computes with whole delays."""
    with torch.no_grad(), DCLS.integer_positions(layer):
        return layer(x)


def sequence() -> Tensor:
    return torch.randn(9, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def close(got: Tensor, want: Tensor, relative: float = 1e-6) -> None:
    assert got.shape == want.shape
    assert (got - want).abs().max() <= relative * want.abs().max()


@every_sharing
def test_arrays_are_a_table_of_connections(sharing: str) -> None:
    mask = torch.tensor([[True, False, True, True]] * 2 + [[False, True, True, True]])
    layer, x = make(sharing, mask=mask), sequence()
    before = layer.P.clone()
    table = to_arrays(layer)
    assert torch.equal(layer.P, before)
    assert len(table.pre) == 2 * int(mask.sum())
    assert {name: str(array.dtype) for name, array in table._asdict().items()} == {
        "pre": "int64", "post": "int64", "weight": "float64", "delay": "int64"
    }  # fmt: skip
    assert table.delay.min() >= 0
    assert table.delay.max() <= 6
    y = torch.zeros(9, 2, 3, dtype=torch.float64)
    for pre, post, weight, delay in zip(*table, strict=True):
        for t in range(delay, 9):
            y[t, :, post] += weight * x[t - delay, :, pre]
    close(y, rounded(layer, x))


def test_arrays_of_a_delay_are_its_channels() -> None:
    layer = Delay(3, 6, torch.tensor([0.2, 5.7, 3.4]))
    pre, post, weight, delay = to_arrays(layer)
    assert pre.tolist() == post.tolist() == [0, 1, 2]
    assert weight.tolist() == [1, 1, 1]
    assert delay.tolist() == [0, 6, 3]
    layer.bfloat16()
    assert str(to_arrays(layer).weight.dtype) == "float32"


def test_halves_are_rounded_as_round_does() -> None:
    layer = Delay(7, 6, torch.tensor([0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 1.5000001]))
    delay = to_arrays(layer).delay.tolist()
    DCLS.round_(layer)
    assert delay == layer.delays().tolist()


def test_what_cannot_be_exported() -> None:
    with pytest.raises(TypeError, match="layer must be a DelayLinear or a Delay, got Linear"):
        to_arrays(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="layer must be a DelayLinear or a Delay, got DelayConv1d"):
        to_arrays(DelayConv1d(1, 1, 3, 4))
    with pytest.raises(ValueError, match="layer must be causal"):
        to_arrays(DelayLinear(2, 2, 4, causal=False))
    for name in ("weight", "P"):
        layer = DelayLinear(2, 2, 4)
        getattr(layer, name).data.fill_(torch.nan)
        with pytest.raises(ValueError, match="layer must have finite weights and delays"):
            to_arrays(layer)


def test_without_nir_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nir", None)
    for call in (to_nir, nir_node):
        with pytest.raises(ModuleNotFoundError, match=r'pip install "DCLS\[nir\]"'):
            call(Delay(2, 3))


# nir


def simulate(graph: Any, x: Tensor, dt: float = 1.0) -> Tensor:
    """Runs a chain of nir nodes on (T, B, N), with steps of ``dt``."""
    follower = dict(graph.edges)
    name = "input"
    while (name := follower[name]) != "output":
        node = graph.nodes[name]
        kind = type(node).__name__
        if kind == "NIRGraph":
            x = simulate(node, x, dt)
        elif kind in ("Linear", "Affine"):
            x = x @ torch.as_tensor(node.weight, dtype=x.dtype).T
            if kind == "Affine":
                x = x + torch.as_tensor(node.bias, dtype=x.dtype)
        elif kind == "Delay":
            steps = torch.as_tensor(node.delay, dtype=torch.float64) / dt
            assert torch.allclose(steps, steps.round(), atol=1e-4)
            y = torch.zeros_like(x)
            for channel, step in enumerate(steps.round().long().tolist()):
                y[step:, :, channel] = x[: len(x) - step, :, channel]
            x = y
        elif kind == "Conv1d":
            conv = nn.functional.conv1d(
                x.permute(1, 2, 0),
                torch.as_tensor(node.weight, dtype=x.dtype),
                torch.as_tensor(node.bias, dtype=x.dtype),
                int(node.stride),
                int(node.padding),
                int(node.dilation),
                int(node.groups),
            )
            x = conv.permute(2, 0, 1)
        else:
            raise AssertionError(kind)
    return x


@pytest.mark.parametrize("form", ["delay", "conv"])
@every_sharing
def test_a_nir_graph_computes_the_same_after_its_file(
    sharing: str, form: str, tmp_path: Path
) -> None:
    nir = import_or_skip("nir")
    x = sequence()
    for count, bias in ((1, False), (2, True)):
        mask = torch.rand(3, 4, generator=torch.Generator().manual_seed(2)) > 0.3
        layer = make(sharing, count, bias=bias, mask=mask)
        dt = 1e-3 if form == "delay" else 1.0
        graph = to_nir(layer, dt=dt, form=form, steps=None if form == "delay" else 9)
        nir.write(tmp_path / "graph.nir", graph)
        for each in (graph, nir.read(tmp_path / "graph.nir")):
            close(simulate(each, x, dt), rounded(layer, x))
        if form == "delay":
            kinds = [type(node).__name__ for node in graph.nodes.values()][1:-1]
            last = "Affine" if bias else "Linear"
            want = {
                "axonal": ["Linear"] * (count > 1) + ["Delay", last],
                "dendritic": ["Linear", "Delay"] + [last] * (count > 1),
                "synaptic": ["Linear", "Delay", last],
            }
            assert kinds == want[sharing]
            sizes = [n.delay.size for n in graph.nodes.values() if type(n).__name__ == "Delay"]
            most = {"axonal": 4 * count, "dendritic": 3 * count, "synaptic": 4 * min(3 * count, 7)}
            assert sizes[0] <= most[sharing]


def test_a_sequential_of_layers(tmp_path: Path) -> None:
    nir = import_or_skip("nir")
    torch.manual_seed(0)
    inner = nn.Sequential(Delay(3, 5), nn.Linear(3, 2))
    model = nn.Sequential(DelayLinear(4, 3, 6), inner).double()
    x = sequence()
    graph = to_nir(model)
    nir.write(tmp_path / "graph.nir", graph)
    close(simulate(nir.read(tmp_path / "graph.nir"), x), rounded(model, x))
    neurons = nn.Sequential(Delay(3, 5), nn.ReLU(), Delay(3, 5))
    with pytest.raises(TypeError, match="1 is a ReLU, which has no node here"):
        to_nir(neurons)
    given = to_nir(neurons, other=lambda _: nir.Scale(torch.ones(3).numpy()))
    assert [type(n).__name__ for n in given.nodes.values()][1:-1] == ["Delay", "Scale", "Delay"]
    one = to_nir(Delay(4, 6, 2.0).double(), form="conv", steps=9)
    close(simulate(one, x)[2:], x[:-2])
    assert type(nir_node(Delay(3, 5))).__name__ == "Delay"
    assert type(nir_node(DelayLinear(4, 3, 6))).__name__ == "NIRGraph"
    assert nir_node(nn.Linear(2, 2)) is None


def test_no_layer_is_lost_where_names_meet() -> None:
    import_or_skip("nir")
    torch.manual_seed(0)
    twice = Delay(4, 5)
    x = sequence()
    first, last = DelayLinear(4, 3, 5), nn.Linear(3, 2)
    named = OrderedDict(input=first, hidden=nn.Linear(3, 3), output=last)
    axonal = DelayLinear(4, 4, 5, sharing="axonal")
    parts = OrderedDict(a=Delay(4, 5), b=axonal, b_1=nn.Linear(4, 2))
    for model, count in (
        (nn.Sequential(twice, nn.Linear(4, 4), twice), 3),
        (nn.Sequential(named), 5),
        (nn.Sequential(parts), 4),
    ):
        graph = to_nir(model.double())
        assert len(graph.nodes) == count + 2
        assert next(iter(graph.nodes)) == "input"
        assert next(reversed(graph.nodes)) == "output"
        close(simulate(graph, x), rounded(model, x))


def test_defaults_of_torch_are_not_exported() -> None:
    nir = import_or_skip("nir")
    delay = Delay(3, 400, 301.0)
    layers = [DelayLinear(4, 3, 6, sharing=kind) for kind in ("synaptic", "axonal", "dendritic")]
    want = [to_arrays(layer) for layer in layers]
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            assert (to_nir(delay).nodes["Delay"].delay == 301).all()
            assert to_nir(delay, form="conv", steps=4).nodes["Delay"].weight.sum() == 3
            for layer, arrays in zip(layers, want, strict=True):
                assert isinstance(to_nir(layer), nir.NIRGraph)
                for got, expected in zip(to_arrays(layer), arrays, strict=True):
                    assert (got == expected).all()
    finally:
        torch.set_default_dtype(torch.float32)
    assert to_nir(nn.Linear(2, 2).bfloat16()).nodes["Linear"].weight.dtype == np.float32
    assert (to_nir(delay, dt=np.float32(0.5)).nodes["Delay"].delay == 150.5).all()


@pytest.mark.parametrize(
    ("part", "more", "error", "text"),
    [
        (3, {}, TypeError, "model_part must be a torch.nn.Module, got int"),
        (nn.ReLU(), {}, TypeError, "model_part is a ReLU, which has no node"),
        (nn.Sequential(), {}, ValueError, "model_part must have a layer"),
        (Delay(2, 3), {"dt": 0}, ValueError, "dt must be finite and positive"),
        (Delay(2, 3), {"dt": 10**400}, ValueError, "dt must be finite and positive"),
        (Delay(2, 3), {"dt": "1"}, TypeError, "dt must be a number"),
        (Delay(2, 3), {"form": "matrix"}, ValueError, "form must be one of delay, conv"),
        (Delay(2, 3), {"form": "conv"}, ValueError, "steps must be given for form='conv' only"),
        (Delay(2, 3), {"steps": 9}, ValueError, "steps must be given for form='conv' only"),
        (Delay(2, 3), {"form": "conv", "steps": 0}, ValueError, "steps must be a positive int"),
        (Delay(2, 3), {"other": 3}, TypeError, "other must be a function or None"),
        (Delay(2, 3, causal=False), {}, ValueError, "layer must be causal"),
    ],
)
def test_bad_arguments_of_to_nir(
    part: Any, more: dict[str, Any], error: type[Exception], text: str
) -> None:
    import_or_skip("nir")
    with pytest.raises(error, match=text):
        to_nir(part, **more)
