"""DCLS.param_groups."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from toolkit.models import Net, batch
from torch import nn
from torch.nn.utils import parametrize, prune

import DCLS
from DCLS import Dcls1d
from DCLS.im2col import modules as im2col

SIZES = ("lr", "weight_decay", "position_lr_scale", "width_lr_scale", "layer_decay")


def by_name(groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    assert len({group["name"] for group in groups}) == len(groups)
    return {group["name"]: group for group in groups}


def ids(parameters: Any) -> list[int]:
    return sorted(id(p) for p in parameters)


def test_each_parameter_is_in_its_group_once() -> None:
    model = Net()
    groups = DCLS.param_groups(model, 1e-3, 0.05)
    assert ids(p for group in groups for p in group["params"]) == ids(model.parameters())
    named = by_name(groups)
    assert list(named) == ["positions", "widths", "no_decay", "decay"]
    assert ids(named["positions"]["params"]) == ids(s[0].depthwise.P for s in model.stages)
    assert ids(named["widths"]["params"]) == ids(s[0].depthwise.SIG for s in model.stages)
    assert all(p.ndim <= 1 for p in named["no_decay"]["params"])
    assert all(p.ndim > 1 for p in named["decay"]["params"])
    assert [named[name]["lr"] for name in named] == [5e-3, 5e-3, 1e-3, 1e-3]
    assert [named[name]["weight_decay"] for name in named] == [0, 0, 0, 0.05]


def test_scales_and_names_without_decay() -> None:
    model = Net("v1")
    model.no_weight_decay = lambda: {"stem.weight"}
    named = by_name(
        DCLS.param_groups(
            model, 2.0, 0.1, position_lr_scale=100, no_weight_decay_list=["head.*", "nothing"]
        )
    )
    assert list(named) == ["positions", "no_decay", "decay"]
    assert named["positions"]["lr"] == 200
    free = ids(named["no_decay"]["params"])
    assert id(model.head.weight) in free
    assert id(model.stem.weight) in free
    assert id(model.stages[0][0].depthwise.weight) not in free


def test_a_model_whose_only_part_is_called_module_has_its_say() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = Net("v1")

        def no_weight_decay(self) -> set[str]:
            return {"module.stem.weight"}

    model = Model()
    named = by_name(DCLS.param_groups(model, 1.0, 0.1))
    assert id(model.module.stem.weight) in ids(named["no_decay"]["params"])
    compiled = by_name(DCLS.param_groups(torch.compile(model), 1.0, 0.1))
    assert ids(compiled["no_decay"]["params"]) == ids(named["no_decay"]["params"])


def test_a_name_of_a_shared_parameter_counts_whichever_it_is() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    named = by_name(DCLS.param_groups(model, 1.0, 0.1, no_weight_decay_list=("b.weight",)))
    assert list(named) == ["no_decay"]
    assert len(named["no_decay"]["params"]) == 3


def test_frozen_parameters_are_left_out() -> None:
    model = Net()
    model.requires_grad_(False)
    assert DCLS.param_groups(model, 1.0) == []
    model.stages[1][1].depthwise.P.requires_grad_()
    (group,) = DCLS.param_groups(model, 1.0)
    assert group["params"] == [model.stages[1][0].depthwise.P]


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_the_rate_of_positions_stays_under_layer_decay(decay: float) -> None:
    model = Net(share=False)
    groups = DCLS.param_groups(model, 1.0, 0.1, 5.0, 2.0, layer_decay=decay)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert sorted(rate) == ids(model.parameters())
    blocks = [model.stem, *model.stages[0], *model.stages[1], model.head]
    for number, block in enumerate(reversed(blocks)):
        for name, p in block.named_parameters():
            scale = {"P": 5.0, "SIG": 2.0}.get(name.rpartition(".")[2], 1.0)
            assert rate[id(p)] == scale * decay**number
    assert len(by_name(groups)) == len(groups)
    assert all(not g["weight_decay"] for g in groups if not g["name"].startswith("decay"))


def test_layer_decay_by_a_function_of_the_name() -> None:
    model = Net()
    groups = DCLS.param_groups(
        model, 1.0, layer_decay=lambda name: 0.25 if name.startswith("stages.0") else 1.0
    )
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rate[id(model.stages[0][1].depthwise.P)] == 1.25
    assert rate[id(model.stages[1][1].depthwise.P)] == 5
    assert rate[id(model.stages[0][1].norm.bias)] == 0.25
    with pytest.raises(ValueError, match=r"layer_decay\('stem.weight'\) must be finite"):
        DCLS.param_groups(model, 1.0, layer_decay=lambda _: -1.0)


def test_own_parameters_of_the_model_are_of_the_first_block() -> None:
    model = nn.Module()
    model.first, model.second = nn.Linear(2, 2), nn.Linear(2, 2)
    model.token = nn.Parameter(torch.zeros(3, 3))
    groups = DCLS.param_groups(model, 1.0, layer_decay=0.5)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert [rate[id(p)] for p in (model.token, model.first.weight, model.second.bias)] == [
        0.5, 0.5, 1.0
    ]  # fmt: skip


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


@pytest.mark.parametrize("name", ["P", "SIG"])
def test_what_positions_and_widths_are_computed_from(name: str) -> None:
    kind = {"P": "positions", "SIG": "widths"}[name]
    for way in (
        lambda layer: prune.random_unstructured(layer, name, 0.5),
        lambda layer: parametrize.register_parametrization(layer, name, Scaled()),
        lambda layer: parametrize.register_parametrization(layer, name, nn.Softplus(), unsafe=True),
    ):
        layer = Dcls1d(2, 2, 3, dilated_kernel_size=5)
        count = sum(p.numel() for p in layer.parameters())
        way(layer)
        named = by_name(DCLS.param_groups(layer, 1.0, 0.1))
        assert [p.shape for p in named[kind]["params"]] == [(1, 2, 2, 3)]
        assert sum(p.numel() for group in named.values() for p in group["params"]) == count


def test_im2col_layers_and_models_without_dcls() -> None:
    named = by_name(DCLS.param_groups(im2col.Dcls2d(2, 2, 3, dilated_kernel_size=5), 1.0))
    assert list(named) == ["positions", "widths", "no_decay", "decay"]
    assert list(by_name(DCLS.param_groups(nn.Linear(2, 2), 1.0))) == ["no_decay", "decay"]


def wrapped(model: nn.Module) -> list[nn.Module]:
    return [
        torch.compile(model, backend="eager"),
        torch.optim.swa_utils.AveragedModel(model).module,
        torch.optim.swa_utils.AveragedModel(model),
    ]


def test_wrappers_change_neither_names_nor_blocks() -> None:
    model = Net()
    more: dict[str, Any] = {"no_weight_decay_list": ["head.weight"], "layer_decay": 0.5}
    want = DCLS.param_groups(model, 1.0, 0.1, **more)
    for wrapper in wrapped(model):
        got = DCLS.param_groups(wrapper, 1.0, 0.1, **more)
        for one, other in zip(got, want, strict=True):
            assert {**one, "params": 0} == {**other, "params": 0}
            assert [p.shape for p in one["params"]] == [p.shape for p in other["params"]]


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "Adam", "RMSprop", "Adagrad"])
def test_optimizers_and_schedulers_take_the_groups(kind: str) -> None:
    model, (x, y) = Net(), batch()
    optimizer = getattr(torch.optim, kind)(DCLS.param_groups(model, 1e-2, 0.01), lr=3.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        scheduler.step()
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([5 * rates[-1], 5 * rates[-1], rates[-1], rates[-1]])
    assert all(not torch.equal(v, before[n]) for n, v in model.state_dict().items())
    again = getattr(torch.optim, kind)(DCLS.param_groups(model, 1e-2, 0.01), lr=3.0)
    again.load_state_dict(optimizer.state_dict())


def test_bad_arguments() -> None:
    model: Any = Net()
    good: dict[str, Any] = {"lr": 1e-3}
    for name in SIZES:
        for wrong in ("1", [1.0], 1j, True):
            with pytest.raises(TypeError, match=f"{name} must be a number"):
                DCLS.param_groups(model, **{**good, name: wrong})
        for wrong in (-1e-9, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=f"{name} must be finite and not negative"):
                DCLS.param_groups(model, **{**good, name: wrong})
    with pytest.raises(TypeError, match="lr must be a number, got None"):
        DCLS.param_groups(model, None)
    for wrong in (0, 1.01):
        with pytest.raises(ValueError, match="layer_decay must be greater than 0 and at most 1"):
            DCLS.param_groups(model, 1.0, layer_decay=wrong)
    for wrong in ("head.weight", 3, None):
        with pytest.raises(TypeError, match="no_weight_decay_list must be a list of names"):
            DCLS.param_groups(model, 1.0, no_weight_decay_list=wrong)
    with pytest.raises(TypeError, match="no_weight_decay_list must hold names, got 3"):
        DCLS.param_groups(model, 1.0, no_weight_decay_list=[3])
    for wrong in (None, list(model.parameters()), Net):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
            DCLS.param_groups(wrong, 1.0)
