"""``DCLS.tune`` beside torch's compiler, traces and wrappers, and the switch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tuning_bench import Bench, X, layer, make_bench

from DCLS import Dcls1d, set_tuning, tune


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return make_bench(monkeypatch)


def test_a_compiled_layer_takes_what_was_measured(bench: Bench) -> None:
    module = layer()
    assert module.explain(X).method == "direct"
    tune(module, X)
    for dynamic in (False, True):
        graphs: list[str] = []

        def backend(graph: torch.fx.GraphModule, _inputs: object, kept=graphs) -> Any:
            kept.append(graph.code)
            return graph.forward

        torch._dynamo.reset()
        compiled = torch.compile(module, backend=backend, fullgraph=True, dynamic=dynamic)
        torch.testing.assert_close(compiled(X), module(X))
        compiled(torch.randn(3, 4, 14, 12))
        assert "conv2d" in graphs[0]
        assert "direct_conv" not in graphs[0]
        assert len(graphs) <= 2


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_an_exported_layer_takes_what_was_measured(bench: Bench) -> None:
    module = layer()
    tune(module, X)
    exported = torch.export.export(module, (X,))
    assert "direct_conv" not in str(exported.graph)
    traced = torch.jit.trace(module, X, check_trace=False)
    assert "direct_conv" not in str(traced.inlined_graph)


def test_other_measurements_do_not_compile_a_graph_anew(bench: Bench) -> None:
    module, other = layer(), layer(dilated_kernel_size=5)
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, _inputs: object) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    compiled(X)
    tune(other, X)
    compiled(X)
    tune(module, X)
    set_tuning("off")
    compiled(X)
    assert len(graphs) == 1


def test_a_compiled_model_is_measured_as_it_is_written(bench: Bench) -> None:
    if not hasattr(torch.compiler, "set_stance"):
        pytest.skip("this torch runs compiled parts compiled")
    model = nn.Sequential(torch.compile(layer(), backend="eager"), layer())
    report = tune(torch.compile(model, backend="eager"), X)
    assert [row.source for row in report.rows] == ["measured here"] * 2


def test_data_parallel_wrappers_are_taken_off(bench: Bench) -> None:
    assert tune(nn.DataParallel(layer()), X).rows[0].name == ""


def test_wide_elements_are_left_to_the_rule(bench: Bench) -> None:
    """What was measured holds for new widths, and not where the host counts many more cells."""
    module = Dcls1d(128, 128, 1, dilated_kernel_size=51, bias=False)
    x = torch.randn(8, 128, 150)
    tune(module, x)
    assert module.explain(x).source == "measured here"
    nn.init.constant_(module.SIG, 25.0)
    choice = module.explain(x)
    assert choice.source == "CPU rule"
    assert "51 of them not zero" in choice.reason
    assert "not measured" not in choice.reason
    (row,) = tune(module, x).rows
    assert row.source == "CPU rule"
    assert row.reason.endswith("not measured: " + WIDE)
    assert row.input == "8x128x150"
    module.known_width = 25.0
    tune(module, x)
    assert bench.measured[-1][2] == 25.0
    assert module.explain(x).source == "measured here"
    module.known_width = 0.23
    assert module.explain(x).source == "measured here"


WIDE = "its elements are wider than new ones; known_width is not set"


def test_symbols_are_not_asked_for(bench: Bench) -> None:
    """A trace with symbolic sizes serves them all: it takes what was measured last."""
    from torch.fx.experimental.proxy_tensor import make_fx

    module = layer().requires_grad_(False)
    assert module.explain(X).method == "direct"
    tune(module, X)
    names, parameters = zip(*module.named_parameters(), strict=True)

    def function(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        output: Tensor = torch.func.functional_call(module, given, (x,))
        return output

    graph = make_fx(function, tracing_mode="symbolic")(X, *parameters)
    assert "direct_conv" not in graph.code
    assert "dcls.layer" not in graph.code


def test_off_is_off_for_graphs_too(bench: Bench) -> None:
    module = layer()
    tune(module, X)
    set_tuning("off")
    exported = torch.export.export(module, (X,))
    assert "direct_conv" in str(exported.graph)


def test_off_measures_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    module = layer()
    set_tuning("off")
    (row,) = tune(module, X).rows
    assert (row.method, row.source) == ("direct", "CPU rule")
    assert row.reason.endswith("not measured: DCLS_TUNING is off")
    assert "DCLS_TUNING is off" in caplog.text
    assert bench.measured == []
    set_tuning("on")
    tune(module, X)
    set_tuning("off")
    assert module.explain(X).source == "CPU rule"
