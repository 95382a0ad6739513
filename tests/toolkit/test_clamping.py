"""DCLS.clamp_, DCLS.clamp_after_step and DCLS.lost_elements."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from layers import LAYERS, Layer, layer_id
from support import VERSIONS
from toolkit.models import Net, Twice, batch, layers_of, scatter
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import DCLS
from DCLS import Dcls1d, Dcls2d
from DCLS.im2col import modules as im2col

layers = pytest.mark.parametrize("layer", LAYERS, ids=layer_id)


def are_inside(model: nn.Module) -> bool:
    return all(layer.P[0].abs().max() <= 3 and layer.P[1].abs().max() <= 2
               for layer in layers_of(model))  # fmt: skip


@layers
def test_a_layer_alone_and_in_a_model(layer: Layer) -> None:
    for model in (module := layer.make(), nn.Sequential(module)):
        with torch.no_grad():
            module.P.copy_(torch.randn_like(module.P) * 40)
        want = copy.deepcopy(module)
        want.clamp_parameters()
        held = module.P
        assert DCLS.clamp_(model) is None
        assert module.P is held
        assert torch.equal(module.P, want.P)


def test_shared_positions_are_clamped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    calls = []
    original = Dcls2d.clamp_parameters
    monkeypatch.setattr(Dcls2d, "clamp_parameters", lambda self: (calls.append(1), original(self)))
    scatter(model)
    DCLS.clamp_(model)
    assert len(calls) == 2
    assert are_inside(model)


def test_positions_shared_by_kernels_of_two_sizes_are_in_both() -> None:
    one, two = (Dcls1d(1, 1, 5, dilated_kernel_size=size) for size in (9, 5))
    two.P = one.P
    with torch.no_grad():
        one.P.mul_(40)
    for model in (nn.Sequential(one, two), nn.Sequential(two, one)):
        DCLS.clamp_(model)
        assert one.P.abs().max() <= 2


def test_models_without_layers_stay_and_others_than_models_are_refused() -> None:
    DCLS.clamp_(nn.Linear(1, 1))
    for wrong in (None, torch.zeros(1), [Dcls1d(1, 1, 1)]):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
            DCLS.clamp_(wrong)
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
            DCLS.lost_elements(wrong)


class OneWay(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


def test_a_layer_that_cannot_be_clamped_is_named() -> None:
    model = Net()
    parametrize.register_parametrization(model.stages[1][0].depthwise, "P", OneWay())
    with pytest.raises(RuntimeError, match=r"model\.stages\.1\.0\.depthwise cannot be clamped: P"):
        DCLS.clamp_(model)


def train(model: nn.Module, optimizer: Any, steps: int = 2) -> None:
    x, y = batch()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def test_after_each_step_until_it_is_removed() -> None:
    model = Net()
    optimizer = torch.optim.Adam(DCLS.param_groups(model, 3.0))
    handle = DCLS.clamp_after_step(optimizer, model)
    train(model, optimizer)
    assert are_inside(model)
    assert max(layer.P.abs().max().item() for layer in layers_of(model)) == 3
    handle.remove()
    train(model, optimizer)
    assert not are_inside(model)


def test_of_two_optimizers_the_one_with_the_positions() -> None:
    model = Net()
    positions = [layer.P for layer in layers_of(model.stages[0])]
    others = torch.optim.SGD([model.head.weight], 0.1)
    with pytest.raises(ValueError, match="optimizer must have positions of the model"):
        DCLS.clamp_after_step(others, model)
    assert not others._optimizer_step_post_hooks
    optimizer = torch.optim.SGD({*positions}, 1.0)
    DCLS.clamp_after_step(optimizer, model)
    scatter(model)
    optimizer.step()
    assert are_inside(model)


@pytest.mark.parametrize("way", ["prune", "parametrization"])
def test_positions_that_are_computed(way: str) -> None:
    layer = Dcls1d(2, 2, 3, dilated_kernel_size=5, padding=2)
    if way == "prune":
        prune.random_unstructured(layer, "P", 0.3)
    else:
        parametrize.register_parametrization(layer, "P", Twice())
    optimizer = torch.optim.Adam(layer.parameters(), 30.0)
    DCLS.clamp_after_step(optimizer, layer)
    layer(torch.randn(1, 2, 9)).square().sum().backward()
    optimizer.step()
    assert layer.P.abs().max() == 2


class Wrapper:
    """As accelerate's and Lightning's hold an optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        self.optimizer.step()


def test_wrapped_optimizers_and_wrapped_models() -> None:
    model = Net()
    optimizer = Wrapper(torch.optim.SGD(model.parameters(), 0.1))
    DCLS.clamp_after_step(optimizer, torch.compile(model, backend="eager"))  # type: ignore[arg-type]
    scatter(model)
    optimizer.step()
    assert are_inside(model)


def test_a_scaled_step_that_overflows_clamps_nothing() -> None:
    model, (x, y) = Net(), batch()
    optimizer = torch.optim.SGD(DCLS.param_groups(model, 0.1))
    DCLS.clamp_after_step(optimizer, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scatter(model)
    for factor, inside in ((float("inf"), False), (1.0, True)):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), y) * factor
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert are_inside(model) == inside


def test_in_a_compiled_step() -> None:
    model = Net("v1")
    optimizer = torch.optim.SGD(DCLS.param_groups(model, 0.1))
    DCLS.clamp_after_step(optimizer, model)
    compiled = torch.compile(lambda: optimizer.step(), backend="eager")
    clamp = torch.compile(lambda: DCLS.clamp_(model), backend="eager", fullgraph=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for run in (compiled, clamp):
        scatter(model)
        run()
        assert are_inside(model)


def test_optimizers_with_the_hook_are_copied_and_their_state_loads() -> None:
    model = Net()
    optimizer = torch.optim.Adam(DCLS.param_groups(model, 0.1))
    DCLS.clamp_after_step(optimizer, model)
    train(model, optimizer)
    again = torch.optim.Adam(DCLS.param_groups(model, 0.1))
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    twin = copy.deepcopy(model)
    scatter(twin)
    train(model, optimizer)
    assert not are_inside(twin)


@pytest.mark.parametrize("wrong", [None, "sgd", torch.optim.SGD])
def test_bad_optimizers(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer"):
        DCLS.clamp_after_step(wrong, Net())


def test_bad_models_leave_the_optimizer_alone() -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="model must have a DCLS layer, got a Linear"):
        DCLS.clamp_after_step(optimizer, model)
    with pytest.raises(TypeError, match="model must be"):
        DCLS.clamp_after_step(optimizer, None)  # type: ignore[arg-type]
    assert not optimizer._optimizer_step_post_hooks


@layers
@pytest.mark.parametrize("version", VERSIONS)
def test_lost_are_those_whose_gradients_are_all_zero(layer: Layer, version: str) -> None:
    module = layer.make(version=version, dtype=torch.float64)
    with torch.no_grad():
        module.P.mul_(2.0)
        module.P.view(len(layer.size), -1)[0, ::5] += 500
    kernel = module.kernel()
    grads = torch.autograd.grad(kernel.flatten() @ torch.randn(kernel.numel()).double(),
                                [module.weight, module.P])  # fmt: skip
    dead = (grads[0] == 0) & (grads[1] == 0).all(0)
    lost = DCLS.lost_elements(nn.Sequential(module))
    assert 0 < dead.sum() < dead.numel()
    assert list(lost) == ["0"]
    assert torch.equal(lost["0"], dead)
    DCLS.clamp_(module)
    assert DCLS.lost_elements(module) == {}


def test_lost_elements_of_im2col_layers_and_of_a_stage() -> None:
    module = im2col.Dcls2d(4, 2, 3, dilated_kernel_size=(3, 5), version="v1")
    with torch.no_grad():
        module.P[0, 1, 2] = 9
    (mask,) = DCLS.lost_elements(module).values()
    assert mask.nonzero().tolist() == [[1, 2]]
    model = Net("v1")
    with torch.no_grad():
        model.stages[1][0].depthwise.P[0, 1, 0, 2] = 9
    assert list(DCLS.lost_elements(model)) == ["stages.1.0.depthwise", "stages.1.1.depthwise"]


@pytest.mark.parametrize("make", [Dcls1d, im2col.Dcls1d, DCLS.DclsTranspose1d])
def test_the_log_reports_once_that_elements_are_lost(
    make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    layer, x = make(2, 2, 3, dilated_kernel_size=5, version="v1"), torch.randn(1, 2, 9)
    with caplog.at_level(logging.DEBUG, "DCLS"):
        layer(x)
        assert "left the kernel" not in caplog.text
        with torch.no_grad():
            layer.P[0, 1, ..., 0] = 9
        layer(x)
        layer(x)
    count = int(DCLS.lost_elements(layer)[""].sum())
    assert caplog.text.count(f" {count} of {layer.P[0].numel()} elements have left the kernel") == 1
    assert caplog.text.count("left the kernel") == 1
