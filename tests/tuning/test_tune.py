"""``DCLS.tune``: what it measures, what it returns, and that the model stays as it is."""

from __future__ import annotations

import copy
import io
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tuning_bench import Bench, X, is_direct, layer, make_bench

import DCLS
from DCLS import Dcls1d, Dcls2d, DclsTranspose2d, tune
from DCLS.method import Choice
from DCLS.nn import choosing
from DCLS.tuning import forget, state
from DCLS.tuning.report import Progress, Report


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return make_bench(monkeypatch)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        layer(),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        layer(),
        DclsTranspose2d(4, 4, 2, dilated_kernel_size=3),
        layer(method="direct"),
        DCLS.im2col.Dcls2d(4, 4, 2, dilated_kernel_size=3),
    )


def test_what_is_measured_replaces_the_rule_of_the_cpu(bench: Bench) -> None:
    module = layer()
    assert module.explain(X).source == "CPU rule"
    assert module.explain(X).method == "direct"
    report = tune(module, X)
    choice = module.explain(X)
    assert choice.method == "conv"
    assert choice.source == "measured here"
    assert choice.reason.startswith("direct 2 ms, conv 1 ms on ")
    assert not is_direct(module, X)
    (row,) = report.rows
    assert row[:5] == ("", "Dcls2d", "2x4x12x12", "float32", "training")
    assert row[5:] == (choice.method, choice.source, choice.reason)
    # Nothing else is known: the rule answers.
    assert module.explain(X[..., 1:]).source == "CPU rule"
    assert module.explain(X.double()).source == "default"
    with torch.no_grad():
        assert module.explain(X).source == "CPU rule"


def test_nothing_is_measured_or_read_without_tune(bench: Bench, cache_folder: Path) -> None:
    module = layer()
    tune(module, X)
    forget()
    module(X)
    assert module.explain(X).source == "CPU rule"
    assert len(bench.measured) == 1
    tune(module, X)  # from the file
    assert len(bench.measured) == 1
    assert module.explain(X).source == "cache"


def test_the_really_faster_one_is_taken() -> None:
    """With the clock of this machine: a large sparse kernel, many times apart."""
    module = Dcls2d(16, 16, 2, dilated_kernel_size=31, padding=15, groups=16, version="v1")
    x = torch.randn(2, 16, 32, 32)
    (row,) = tune(module, x, seconds=0.2).rows
    assert (row.method, row.source) == ("direct", "measured here")
    assert module(x).shape == x.shape


def test_each_layer_has_a_row(bench: Bench) -> None:
    model = network()
    report = tune(model, X)
    assert [row.name for row in report.rows] == ["0", "3", "4", "5", "6"]
    assert [row.method for row in report.rows] == ["conv", "conv", "conv", "direct", "im2col"]
    sources = ["measured here", "measured here", "layer", "asked", "layer"]
    assert [row.source for row in report.rows] == sources
    # The first input needs no gradient, the second does.
    assert [problem.geometry.grad_input for problem, *_ in bench.measured] == [False, True]
    lines = str(report).splitlines()
    assert len(lines) == 7
    assert lines[0].split() == ["layer", "class", "input", "dtype", "for", "method", "from", "why"]
    assert str(tune(nn.ReLU(), X)) == "the model has no DCLS layers"


def test_a_layer_asks_while_tune_ends_in_another_thread(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = choosing.choose

    def ending(*args: Any, **given: Any) -> Choice:
        state.recorder = None
        return choose(*args, **given)

    monkeypatch.setattr(choosing, "choose", ending)
    monkeypatch.setattr(state, "recorder", [])
    assert layer().explain(X).source == "CPU rule"
    assert state.recorder is None


def test_layers_that_ask_nothing_say_why(bench: Bench) -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.hooked = layer(), layer(), layer()
            self.hooked.DCK.register_forward_hook(lambda *args: args[-1])

        def forward(self, x: Tensor) -> Tensor:
            return self.hooked(self.used(x))

    rows = {row.name: row for row in tune(Lazy(), X).rows}
    assert rows["used"].source == "measured here"
    assert "did not call it" in rows["unused"].reason
    assert "a hook may change" in rows["hooked"].reason
    assert len(bench.measured) == 1


def test_lazy_modules_keep_the_sizes_that_they_got(bench: Bench) -> None:
    channels = X.shape[1]
    model = nn.Sequential(nn.LazyConv2d(channels, 1), nn.LazyBatchNorm2d(), layer())
    tune(model, X)
    assert (type(model[0]), model[0].in_channels) == (nn.Conv2d, channels)
    assert (type(model[1]), model[1].num_features) == (nn.BatchNorm2d, channels)
    assert len(bench.measured) == 1


def test_the_same_problem_is_measured_once(bench: Bench) -> None:
    model = nn.Sequential(layer(), layer(), layer())
    report = tune(model, X.clone().requires_grad_())
    assert len(report.rows) == 3
    assert len(bench.measured) == 1
    assert bench.measured[0][1:] == (2, None)
    tune(model, X.clone().requires_grad_())
    assert len(bench.measured) == 1
    tune(model, X.clone().requires_grad_(), again=True)
    assert len(bench.measured) == 2


def test_a_layer_called_in_two_ways_has_two_rows(bench: Bench) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).mean() + self.layer(x[..., 2:]).mean()

    rows = tune(Twice(), X).rows
    assert [row.input for row in rows] == ["2x4x12x12", "2x4x12x10"]


def test_a_subclass_that_pads_is_measured_as_it_convolves(bench: Bench) -> None:
    class Causal(Dcls1d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(F.pad(input, (8, 0)))

    module = Causal(4, 4, 2, dilated_kernel_size=9, version="v1")
    (row,) = tune(module, torch.randn(2, 4, 20)).rows
    assert row.input == "2x4x28"


@pytest.mark.parametrize(
    "example", [X, (X,), [X], {"input": X}], ids=["tensor", "tuple", "list", "dict"]
)
def test_forms_of_the_input(bench: Bench, example: Any) -> None:
    assert tune(layer(), example).rows[0].source == "measured here"


def test_the_call_decides_what_is_measured(bench: Bench) -> None:
    module = layer()
    tune(module, X)
    with torch.no_grad():
        tune(module, X)
    with torch.autocast("cpu", torch.bfloat16):
        tune(module, X)
    tune(module, X.to(memory_format=torch.channels_last))
    tune(module, X[0])
    tune(module.double(), X.double())
    geometries = [problem.geometry for problem, *_ in bench.measured]
    assert [g.grad_kernel for g in geometries] == [True, False, True, True, True, True]
    assert [g.dtype for g in geometries[1:3]] == [torch.float32, torch.bfloat16]
    assert geometries[2].input_dtype == geometries[2].weight_dtype == torch.float32
    assert [g.channels_last for g in geometries] == [False] * 3 + [True] + [False] * 2
    assert [batch for _, batch, _ in bench.measured] == [2, 2, 2, 2, 1, 2]
    assert geometries[-1].dtype == torch.float64


# The model stays as it is


class Stateful(nn.Module):
    """Writes wherever a module can write in a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = layer(), nn.BatchNorm2d(4)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("last", None)
        self.potential: Tensor | None = None
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(self.norm(self.layer(x)), 0.5)
        y = y * random.random() * np.random.rand()  # noqa: NPY002
        self.count += 1
        self.last = y.detach()
        self.potential, self.steps, self.new = y, self.steps + 1, 1
        self.train(False)
        return y


def test_the_model_stays_as_it_is(bench: Bench) -> None:
    model = Stateful()
    model.layer.weight.grad = gradient = torch.ones_like(model.layer.weight)
    before = copy.deepcopy(model.state_dict())
    tensors = {name: id(value) for name, value in model.state_dict(keep_vars=True).items()}
    attributes = dict(model.__dict__)
    hooks = [
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    ]
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    tune(model, X)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {name: id(v) for name, v in model.state_dict(keep_vars=True).items()} == tensors
    assert dict(model.__dict__) == attributes
    assert model.potential is None
    assert model.training
    assert model.norm.training
    assert model.layer.weight.grad is gradient
    assert torch.equal(gradient, torch.ones_like(gradient))
    assert model.layer.P.grad is None
    assert hooks == [
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    ]
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert state.recorder is None


def test_a_model_that_fails_stays_as_it_is(bench: Bench) -> None:
    class Fails(Stateful):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise KeyError("no such thing")

    model = Fails()
    with pytest.raises(KeyError, match="no such thing"):
        tune(model, X)
    assert model.count == 0
    assert model.steps == 0
    assert model.training
    assert state.recorder is None
    assert bench.measured == []


def test_layers_are_copied_and_pickled_as_before(bench: Bench) -> None:
    module = layer()
    plain = pickle.dumps(module)
    tune(module, X)
    assert pickle.dumps(module) == plain
    assert not is_direct(copy.deepcopy(module), X)
    assert not is_direct(pickle.loads(plain), X)


def test_arguments_are_checked(bench: Bench) -> None:
    with pytest.raises(TypeError, match="model must be"):
        tune(X, X)  # type: ignore[arg-type]
    for shape in (tuple(X.shape), list(X.shape)):
        with pytest.raises(TypeError, match=r"example_input must be .* got the shape \(2, "):
            tune(layer(), shape)
    with pytest.raises(TypeError, match="again must be"):
        tune(layer(), X, again="yes")  # type: ignore[arg-type]
    for value, error in ((0, ValueError), (-1.0, ValueError), (float("nan"), ValueError)):
        with pytest.raises(error, match="seconds must be positive"):
            tune(layer(), X, seconds=value)
    for value in ("1", None, True):
        with pytest.raises(TypeError, match="seconds must be a number"):
            tune(layer(), X, seconds=value)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="progress must be"):
        tune(layer(), X, progress="yes")  # type: ignore[arg-type]
    tune(layer(), X, seconds=2)
    assert bench.seconds == [2.0]


# What is shown


def test_the_bar_is_for_terminals(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    tune(layer(), X)
    assert capsys.readouterr() == ("", "")
    tune(network(), X, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("] 2 of 2\n")
    tune(network(), X, progress=False)
    assert capsys.readouterr().err == ""


def test_progress() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    bar = Progress(2, stream=stream)
    bar.step()
    assert stream.getvalue() == "\rDCLS.tune [" + "#" * 12 + "." * 12 + "] 1 of 2"
    bar.step()
    assert stream.getvalue().endswith("#" * 24 + "] 2 of 2\n")


def test_reports_are_tables(bench: Bench) -> None:
    report = tune(layer(), X)
    assert isinstance(report, Report)
    assert repr(report) == str(report)
    assert len({line.index("Dcls2d") for line in str(report).splitlines()[2:]}) == 1


def test_import_stays_light() -> None:
    """What measures is imported by those who measure."""
    code = (
        "import sys, DCLS, torch\n"
        "DCLS.Dcls2d(2, 2, 1, dilated_kernel_size=3)(torch.ones(1, 2, 4, 4))\n"
        "DCLS.delays.DelayLinear(2, 2, 3)(torch.ones(4, 1, 2))\n"
        "heavy = {'matplotlib', 'nir', 'h5py', 'snntorch', 'spikingjelly', 'timm'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "print([name for name in sys.modules if name.startswith('DCLS.tuning.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['DCLS.tuning.state', 'DCLS.tuning.problem']\n"


def test_only_one_at_a_time(bench: Bench) -> None:
    assert not state.tune_lock.locked()
    tune(layer(), X)
    assert not state.tune_lock.locked()
