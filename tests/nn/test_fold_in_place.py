"""Folding in place whatever refers to a layer, and subclasses that say what takes their place."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
from layers import LAYERS, Negative, assert_close, layer_id
from torch import Tensor, nn
from torch.nn.utils import parametrize

from DCLS.construct.modules import Dcls1d, Dcls2d
from DCLS.nn.fold import fold

layers = pytest.mark.parametrize("layer", LAYERS, ids=layer_id)


class Scattered(nn.Module):
    """Refers to its layers from everywhere, and registers only some of these references."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            Dcls2d(2, 2, 3, padding=2, dilated_kernel_size=5) for _ in range(2)
        )
        self.listed = [self.first, [self.second, {"deep": (self.first,)}]]
        self.named = {"a": self.second, "parts": nn.ModuleList([self.first])}
        self.unordered = {self.first}
        self.partial = functools.partial(self.second)
        self.closure = lambda x, layer=self.first: layer(x)
        self.call = self.second.__call__
        self.holder = Holder(self.first)
        object.__setattr__(self, "hidden", self.second)
        self.parts = nn.ModuleDict({"a": nn.Sequential(self.first), "b": nn.ModuleList()})
        self.parts["b"].append(self.second)

    def forward(self, x: Tensor) -> Tensor:
        (only,) = self.unordered
        for layer in (
            self.listed[0], self.listed[1][0], self.listed[1][1]["deep"][0], self.named["a"],
            self.named["parts"][0], only, self.partial, self.closure, self.call, self.holder.layer,
            self.hidden, self.parts["a"], self.parts["b"][0],
        ):  # fmt: skip
            x = layer(x)
        return x


class Holder:
    """No module."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer


def test_in_place_no_reference_is_left_unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    model = Scattered().double()
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    want, first = model(x), model.first
    assert fold(model, inplace=True) is model

    def forward(*_: object) -> None:
        pytest.fail("a DCLS layer is still called")

    monkeypatch.setattr(Dcls2d, "forward", forward)
    assert_close(model(x), want)
    assert type(first) is nn.Conv2d
    assert first in model.unordered
    assert set(model.state_dict()) == set(copy.deepcopy(model).state_dict())
    assert "first.weight" in model.state_dict()
    assert not any("P" in name.split(".") for name in model.state_dict())


def test_in_place_a_layer_at_the_root_becomes_the_plain_one() -> None:
    torch.manual_seed(6)
    layer = Dcls1d(2, 2, 3, dilated_kernel_size=5)
    parametrize.register_parametrization(layer, "P", Negative())
    x = torch.randn(1, 2, 9)
    want = layer(x)
    assert fold(layer, inplace=True) is layer
    assert type(layer) is nn.Conv1d
    assert_close(layer(x), want, 1e-6)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert_close(pickle.loads(pickle.dumps(layer))(x), layer(x))
    assert repr(layer) == repr(nn.Conv1d(2, 2, 5))


def test_in_place_all_or_nothing() -> None:
    class Slotted(Dcls2d):
        """Its objects have another form: Python does not make them a plain layer."""

        __slots__ = ("more",)

    model = nn.Sequential(*(k(2, 2, 3, dilated_kernel_size=5) for k in (Dcls2d, Slotted)))
    with pytest.raises(TypeError, match=r"model\.1 cannot be folded"):
        fold(model, inplace=True)
    assert type(model[0]) is Dcls2d
    assert [type(m) for m in fold(model)] == [nn.Conv2d, nn.Conv2d]


# What would still call a DCLS layer


def a_list_of_closures(layer: nn.Module) -> Any:
    return [lambda x: layer(x)]


def a_default(layer: nn.Module) -> Any:
    return {"call": lambda x, layer=layer: layer(x)}


def a_closure_over_a_list(layer: nn.Module) -> Any:
    layers = [layer]
    return functools.partial(lambda x: layers[0](x))


def a_keyword_default(layer: nn.Module) -> Any:
    def call(x: Tensor, *, use: Any = layer.__call__) -> Any:
        return use(x)

    return call


@pytest.mark.parametrize(
    "hold", [a_list_of_closures, a_default, a_closure_over_a_list, a_keyword_default]
)
def test_a_copy_whose_functions_would_use_the_old_layers_is_refused(hold: Any) -> None:
    model = nn.Sequential(nn.Sequential(Dcls1d(2, 2, 3, padding=2, dilated_kernel_size=5)))
    model[0].held = hold(model[0][0])
    before = list(model.modules())
    with pytest.raises(RuntimeError, match=r"model\.0\.held has a function that uses model\.0\.0"):
        fold(model)
    assert list(model.modules()) == before
    assert type(fold(model, inplace=True)[0][0]) is nn.Conv1d


@pytest.mark.parametrize("inplace", [False, True])
def test_a_bound_method_of_a_layer_is_refused(inplace: bool) -> None:
    model = nn.Sequential(Dcls1d(2, 2, 3, padding=2, dilated_kernel_size=5))
    model.call = [model[0].forward]
    with pytest.raises(RuntimeError, match=r"model\.call has a bound method of model\.0"):
        fold(model, inplace=inplace)
    assert type(model[0]) is Dcls1d
    model.call = [model[0].__call__, functools.partial(model[0])]
    folded = fold(model, inplace=inplace)
    assert type(folded.call[0].__self__) is type(folded.call[1].func) is nn.Conv1d


@pytest.mark.parametrize("inplace", [False, True])
def test_a_compiled_layer_makes_its_functions_anew(inplace: bool) -> None:
    layer = Dcls1d(2, 2, 3, dilated_kernel_size=5)
    model = nn.Sequential(torch.compile(layer, backend="eager"))
    x = torch.randn(1, 2, 9)
    want = model(x)
    folded = fold(model, inplace=inplace)
    assert type(folded[0]._orig_mod) is nn.Conv1d
    assert_close(folded(x), want, 1e-5)


def test_functions_without_layers_are_no_obstacle() -> None:
    model = nn.Sequential(Dcls1d(2, 2, 3, dilated_kernel_size=5), nn.ReLU())
    model.call = lambda x, relu=model[1]: relu(x)
    model.itself = [model.forward]
    assert type(fold(model)[0]) is nn.Conv1d


def test_a_model_that_holds_a_graph_names_the_way_out() -> None:
    model = nn.Sequential(Dcls1d(2, 2, 3, dilated_kernel_size=5))
    model.last = model(torch.randn(1, 2, 9))
    with pytest.raises(RuntimeError, match=r"cannot be copied.*inplace=True"):
        fold(model)
    assert type(fold(model, inplace=True)[0]) is nn.Conv1d


# Subclasses that say what they become


class Causal(Dcls1d):
    """Pads on the left."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(input, (self.kernel_size[0] - 1, 0)))

    def folded(self, conv: nn.Module) -> nn.Module:
        return nn.Sequential(nn.ConstantPad1d((self.kernel_size[0] - 1, 0), 0), conv)


class Doubling(Causal):
    """Has a newer ``forward`` than its ``folded``."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Quiet(Causal):
    """Changes nothing."""


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", [Causal, Quiet])
def test_a_declared_wrapper_is_folded(kind: type[Dcls1d], inplace: bool) -> None:
    torch.manual_seed(7)
    layer = kind(2, 3, 4, dilated_kernel_size=9)
    model = nn.Sequential(layer, nn.ReLU()).double().eval()
    model.also = [layer]
    x = torch.randn(2, 2, 12, dtype=torch.float64)
    want = model(x)
    with pytest.raises(TypeError, match="forward of its own"):
        layer.to_conv()
    folded = fold(model, inplace=inplace)
    assert_close(folded(x), want)
    assert folded[0] is folded.also[0]
    assert [type(m) for m in folded[0]] == [nn.ConstantPad1d, nn.Conv1d]
    assert not any(m.training for m in folded.modules())
    assert (type(layer) is kind) == (not inplace)


def test_what_is_not_declared_stays_refused() -> None:
    for layer in (Doubling(2, 2, 3, dilated_kernel_size=5), Causal(2, 2, 3, dilated_kernel_size=5)):
        if type(layer) is Causal:
            layer.forward = lambda x: x  # type: ignore[method-assign]
        with pytest.raises(TypeError, match=r"model\.0 cannot be folded.*forward of its own"):
            fold(nn.Sequential(layer))


def test_folded_must_return_a_module_without_dcls() -> None:
    class Same(Causal):
        def folded(self, conv: nn.Module) -> Any:  # noqa: ARG002
            return self

    with pytest.raises(TypeError, match=r"Same\.folded must return a torch.nn.Module without DCLS"):
        fold(Same(2, 2, 3, dilated_kernel_size=5))
