"""DCLS.integer_positions and DCLS.round_."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from layers import LAYERS, Layer, assert_close, layer_id
from support import VERSIONS
from toolkit.models import Net, Twice, batch, layers_of, scatter
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import DCLS
from DCLS import Dcls1d, Dcls2d
from DCLS.im2col import modules as im2col

layers = pytest.mark.parametrize("layer", LAYERS, ids=layer_id)


def state(model: nn.Module) -> list[Any]:
    """All that must be the same afterwards: objects, memory, bits, counters, versions."""
    seen: list[Any] = [
        (n, id(p), p.data_ptr(), p._version, p.requires_grad, p.detach().clone().tolist())
        for n, p in model.named_parameters(remove_duplicate=False)
    ]
    return seen + [getattr(m, "version", None) for m in model.modules()]


@layers
@pytest.mark.parametrize("version", VERSIONS)
def test_each_element_is_one_cell_with_its_weight(layer: Layer, version: str) -> None:
    module = layer.make(version=version, dtype=torch.float64, kernel_count=1)
    with torch.no_grad():
        module.P.mul_(5)
    module.P.requires_grad_(False)
    before, positions = state(module), module.positions().clone()
    x = layer.input(module, 1)
    plain = module(x)
    with DCLS.integer_positions(module):
        inside = module.positions()
        for d, size in enumerate(layer.size):
            want = positions[d].clamp(-(size // 2), size - 1 - size // 2).round()
            assert torch.equal(inside[d], want)
        kernel = module.kernel().flatten(2 if not layer.dense else 2 + len(layer.dense))
        assert torch.equal(
            (kernel != 0).sum(-1), torch.ones_like(kernel[..., 0], dtype=torch.int64)
        )
        assert_close(kernel.sum(-1).flatten(), module.weight.flatten(), 1e-6)
        rounded = module(x)
        assert_close(DCLS.fold(module)(x), rounded)
        assert not module.P.requires_grad
    assert state(module) == before
    assert_close(module(x), plain)
    assert DCLS.round_(module) is None
    assert_close(module(x), rounded)
    assert module.version == ("v0" if version == "v0" else "v1")
    assert not module.P.requires_grad


def test_halves_go_to_the_even_number_after_clamping() -> None:
    layer = Dcls1d(1, 1, 6, dilated_kernel_size=6, version="v1")
    with torch.no_grad():
        layer.P[0, 0, 0] = torch.tensor([0.5, 1.5, -0.5, -2.5, 2.5, 99.0])
    DCLS.round_(layer)
    assert layer.P.flatten().tolist() == [0, 2, 0, -2, 2, 2]


def test_shared_positions_stay_shared_inside() -> None:
    model, (x, _) = Net(), batch()
    scatter(model, 3.0)
    before = state(model)
    with DCLS.integer_positions(model):
        assert all(s[0].depthwise.P is s[1].depthwise.P for s in model.stages)
        assert len(list(model.parameters())) == len(list(Net().parameters()))
        inside = model(x)
        assert_close(DCLS.fold(model)(x), inside, 1e-5)
        twin = copy.deepcopy(model)
    assert state(model) == before
    assert_close(twin(x), inside, 1e-5)
    assert not torch.allclose(model(x), inside)
    # From an average, too, as it is evaluated.
    average = torch.optim.swa_utils.AveragedModel(model)
    with DCLS.integer_positions(average):
        assert_close(average(x), inside, 1e-5)


def test_exceptions_and_nesting_restore() -> None:
    model = Net()
    before = state(model)
    with pytest.raises(KeyError, match="inside"), DCLS.integer_positions(model):
        raise KeyError("inside")
    assert state(model) == before
    with DCLS.integer_positions(model):
        middle = state(model)
        with DCLS.integer_positions(model.stages[0]):
            assert all(torch.equal(m.P, m.P.round()) for m in layers_of(model))
        assert state(model) == middle
    assert state(model) == before


def test_a_graph_from_before_and_the_optimizer_go_on() -> None:
    model, (x, y) = Net(), batch()
    optimizer = torch.optim.Adam(DCLS.param_groups(model, 0.1))
    twin = copy.deepcopy(model)
    loss = nn.functional.cross_entropy(model(x), y)
    with torch.no_grad(), DCLS.integer_positions(model):
        model(x)
    loss.backward()
    nn.functional.cross_entropy(twin(x), y).backward()
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad)
    P = model.stages[0][0].depthwise.P.detach().clone()
    optimizer.step()
    assert not torch.equal(model.stages[0][0].depthwise.P, P)


@pytest.mark.parametrize("way", ["prune", "parametrization"])
def test_positions_that_are_computed(way: str) -> None:
    layer = Dcls2d(2, 2, 4, dilated_kernel_size=7, padding=3)
    with torch.no_grad():
        layer.P.mul_(4)
    if way == "prune":
        prune.random_unstructured(layer, "P", 0.3)
    else:
        parametrize.register_parametrization(layer, "P", Twice())
    values, source = layer.P.detach().clone(), dict(layer.named_parameters())
    held = {name: p.detach().clone() for name, p in source.items()}
    with DCLS.integer_positions(layer):
        assert torch.equal(layer.P, values.clamp(-3, 3).round())
    assert torch.equal(layer.P, values)
    for name, p in layer.named_parameters():
        assert p is source[name]
        assert torch.equal(p, held[name])
    layer(torch.randn(1, 2, 9, 9)).sum().backward()
    DCLS.round_(layer)
    assert torch.equal(layer.P, values.clamp(-3, 3).round())


class OneWay(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


def test_a_layer_that_cannot_be_rounded_is_named_and_nothing_changes() -> None:
    model = Net(share=False)
    last = model.stages[1][1].depthwise
    parametrize.register_parametrization(last, "P", OneWay())
    before = state(model.stages[0])
    for run in (lambda: DCLS.integer_positions(model).__enter__(), lambda: DCLS.round_(model)):
        with pytest.raises(RuntimeError, match=r"model\.stages\.1\.1\.depthwise cannot be rounded"):
            run()
        assert state(model.stages[0]) == before
        assert last.version == "gauss"


def test_a_compiled_model_follows() -> None:
    model, (x, _) = Net(), batch()
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        for _ in range(2):
            assert_close(compiled(x), model(x), 1e-5)
            with DCLS.integer_positions(compiled):
                inside = compiled(x)
                assert_close(inside, model(x), 1e-5)
            assert not torch.allclose(inside, model(x))


def test_im2col_layers_whole_numbers_and_other_models() -> None:
    layer = im2col.Dcls2d(4, 2, 3, dilated_kernel_size=(3, 6), padding=2)
    layer.P.requires_grad = False
    layer.P.data = torch.randint(-9, 9, layer.P.shape)
    before = state(layer)
    x = torch.randn(1, 4, 9, 9)
    with DCLS.integer_positions(layer):
        assert layer.P.dtype == torch.int64
        assert layer.P[0].abs().max() == 1
        assert_close(layer(x), DCLS.fold(layer)(x), 1e-5)
    assert state(layer) == before
    with DCLS.integer_positions(nn.Linear(1, 1)):
        pass
    wrong: Any
    for wrong in (None, [layer], Dcls2d):
        for run in (lambda w=wrong: DCLS.integer_positions(w).__enter__(),
                    lambda w=wrong: DCLS.round_(w)):  # fmt: skip
            with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
                run()
