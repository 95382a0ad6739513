"""Converted and frozen models in what people run models in."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from layers import assert_close
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import DCLS


def make(**more: Any) -> tuple[nn.Sequential, torch.Tensor]:
    """Two depthwise layers with shared positions, and a dense im2col one."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 16, 3),
    )
    DCLS.convert_(
        model,
        dilated_kernel_size=7,
        share="stage",
        filter_fn=lambda module, _: isinstance(module, nn.Conv2d),
        **more,
    )
    return model, torch.randn(2, 4, 9, 10)


@pytest.mark.parametrize("start", ["spread", "kernel"])
def test_compiled_models_train_and_infer_as_eager_ones(start: str) -> None:
    model, x = make(start=start)
    compiled = torch.compile(model, backend="aot_eager")
    gradients = []
    for run in (model, compiled):
        model.zero_grad()
        run(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for eager, graph in zip(*gradients, strict=True):
        assert_close(graph, eager, 1e-4)
    DCLS.freeze(model)
    with torch.no_grad():
        for _ in range(2):
            assert_close(compiled(x), model(x), 1e-5)
            for parameter in model.parameters():
                parameter.mul_(0.9)


def test_an_average_of_weights_and_a_copy() -> None:
    model, x = make()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    assert average.module[0].P is average.module[2].P
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    average.update_parameters(model)
    before = copy.deepcopy(model)
    model(x).square().mean().backward()
    optimizer.step()
    average.update_parameters(model)
    for name, value in average.module.named_parameters():
        mean = (before.get_parameter(name) + model.get_parameter(name)) / 2
        assert_close(value.detach(), mean.detach(), 1e-5)
    DCLS.freeze(average)
    with torch.no_grad():
        assert_close(average(x), DCLS.fold(average.module)(x), 1e-5)


def test_mixed_precision_trains_all_parameters() -> None:
    model, x = make()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
    assert output.dtype == torch.bfloat16
    output.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_checkpoints_load_into_a_model_that_was_converted_the_same_way() -> None:
    model, x = make(start="kernel")
    torch.manual_seed(9)
    other, _ = make(start="kernel")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.uniform_(-1, 1)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("version", ["v0", "gauss"])
def test_the_surgery_of_the_trainers(version: Any) -> None:
    """They set an attribute by ``eval`` for each convolution, and draw it anew, then share P."""
    by_hand, x = (nn.Sequential(*(nn.Conv2d(4, 4, 7, padding=3, groups=4) for _ in range(2))), None)
    ours = copy.deepcopy(by_hand)
    torch.manual_seed(3)
    for index in range(len(by_hand)):
        bias = by_hand[index].bias
        by_hand[index] = DCLS.Dcls2d(
            4, 4, 34, padding=8, dilated_kernel_size=17, groups=4, version=version
        )
        by_hand[index].bias = bias
    for name in ("P", "SIG"):
        setattr(by_hand[1], name, getattr(by_hand[0], name))
    torch.manual_seed(3)
    DCLS.convert_(
        ours,
        dilated_kernel_size=17,
        kernel_count=34,
        version=version,
        start="normal",
        share="stage",
    )
    x = torch.randn(1, 4, 20, 20)
    assert torch.equal(ours(x), by_hand(x))
    assert list(ours.state_dict()) == list(by_hand.state_dict())
