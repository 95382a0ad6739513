"""A trainer of a spiking network with learnable delays as its users write it.

Delays are positions of Dcls1d with one element; they are learned with wide gaussians that narrow
from epoch to epoch, and evaluated rounded to whole steps.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layers import assert_close
from torch import Tensor, nn

from DCLS.construct.modules import Dcls1d, _DclsNd

#: It runs with torch expressions, too: see conftest.
pytestmark = pytest.mark.any_backend

DELAYS = 25
LEFT = RIGHT = DELAYS // 2
INPUTS, HIDDEN, CLASSES = 6, 8, 3


class Spike(torch.autograd.Function):
    """A step, with an arctangent for a derivative."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return grad / (1 + (torch.pi * v).square())


class SNN(nn.Module):
    """Two layers with delays; time goes along the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Dcls1d(
                inputs,
                outputs,
                kernel_count=1,
                groups=1,
                dilated_kernel_size=DELAYS,
                bias=False,
                version="gauss",
            )
            for inputs, outputs in ((INPUTS, HIDDEN), (HIDDEN, CLASSES))
        )
        # As DCLS users do to reach each parameter kind of all layers.
        self.weights = [m.weight for m in self.blocks]
        self.positions = [m.P for m in self.blocks]
        for layer in self.blocks:
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.uniform_(layer.P, -(DELAYS // 2), DELAYS // 2)
            layer.clamp_parameters()
            nn.init.constant_(layer.SIG, DELAYS // 2)
            layer.SIG.requires_grad = False

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.blocks):
            x = layer(F.pad(x, (DELAYS - 1, 0), "constant", 0))
            if number == 0:
                x = Spike.apply(x.cumsum(-1) * 0.2 - 0.3)
        return x.mean(-1)

    def clamp_parameters(self) -> None:
        for layer in self.blocks:
            layer.clamp_parameters()

    def decrease_sig(self, alpha: float) -> None:
        with torch.no_grad():
            for layer in self.blocks:
                layer.SIG *= alpha

    def round_pos(self) -> None:
        with torch.no_grad():
            for layer in self.blocks:
                layer.P.round_()
                layer.clamp_parameters()

    def evaluation_mode(self) -> dict[str, Tensor]:
        """Sharp delays of whole steps; returns what brings the trained ones back."""
        saved = copy.deepcopy(self.state_dict())
        with torch.no_grad():
            for layer in self.blocks:
                layer.SIG *= 0
                layer.version = "max"
                layer.DCK.version = "max"
        self.round_pos()
        return saved

    def training_mode(self, saved: dict[str, Tensor]) -> None:
        for layer in self.blocks:
            layer.version = "gauss"
            layer.DCK.version = "gauss"
        self.load_state_dict(saved, strict=True)


def make(seed: int = 0) -> SNN:
    torch.manual_seed(seed)
    return SNN()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(9, INPUTS, 40, generator=generator) < 0.3).float()
    return x, torch.randint(CLASSES, (9,), generator=generator)


def optimizers(model: SNN) -> list[torch.optim.Optimizer]:
    return [
        torch.optim.Adam(model.weights, lr=1e-2, weight_decay=1e-5),
        torch.optim.Adam(model.positions, lr=1e-1, weight_decay=0),
    ]


def train_step(model: SNN, both: list[torch.optim.Optimizer], x: Tensor, y: Tensor) -> float:
    for optimizer in both:
        optimizer.zero_grad()
    loss = F.cross_entropy(10 * model(x), y)
    loss.backward()
    for optimizer in both:
        optimizer.step()
    model.clamp_parameters()
    return loss.item()


def test_positions_start_anywhere_on_the_grid_and_in_place() -> None:
    model = make()
    for layer, held in zip(model.blocks, model.positions, strict=True):
        assert layer.P is held, "init.uniform_ and clamp_parameters keep the Parameter"
        assert layer.P.abs().max() <= DELAYS // 2
        assert layer.P.std() > DELAYS / 5
        assert layer.SIG.unique().tolist() == [DELAYS // 2]
    layer = model.blocks[0]
    x, _ = batch()
    before = layer(x)
    layer.P.data.uniform_(-3, 3)
    assert not torch.allclose(layer(x), before)


def test_two_optimizers_hold_the_weights_and_the_positions() -> None:
    model, (x, y) = make(), batch()
    both = optimizers(model)
    start = copy.deepcopy(model.state_dict())
    losses = [train_step(model, both, x, y) for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]
    for name, value in model.state_dict().items():
        # The widths are frozen: no gradient, no step.
        assert torch.equal(value, start[name]) == name.endswith("SIG"), name
    for layer in model.blocks:
        assert layer.SIG.grad is None
        assert layer.P.grad.abs().max() > 0
        assert layer.P.abs().max() <= DELAYS // 2


def test_only_the_positions_learn_where_only_their_optimizer_steps() -> None:
    model, (x, y) = make(), batch()
    start = copy.deepcopy(model.state_dict())
    train_step(model, optimizers(model)[1:], x, y)
    for name, value in model.state_dict().items():
        assert torch.equal(value, start[name]) != name.endswith(".P"), name


def test_clamping_each_batch_brings_positions_back() -> None:
    model, (x, y) = make(), batch()
    both = optimizers(model)
    both[1].param_groups[0]["lr"] = 30.0
    train_step(model, both, x, y)
    assert any((layer.P.abs() == DELAYS // 2).any() for layer in model.blocks)
    assert all(layer.P.abs().max() <= DELAYS // 2 for layer in model.blocks)


def test_widths_shrink_from_epoch_to_epoch_and_the_kernels_with_them() -> None:
    model = make()
    layer = model.blocks[0]
    alpha, peaks = 0.5, []
    for epoch in range(5):
        assert layer.SIG.unique().tolist() == [pytest.approx(12 * alpha**epoch)]
        with torch.no_grad():
            kernel = layer.DCK(torch.ones_like(layer.weight), layer.P, layer.SIG)
        assert_close(kernel.sum(-1), torch.ones_like(kernel.sum(-1)), 1e-5)
        peaks.append(kernel.amax(-1).mean().item())
        held = layer.SIG
        model.decrease_sig(alpha)
        assert layer.SIG is held
        assert not layer.SIG.requires_grad
    assert peaks == sorted(peaks)
    assert peaks[-1] > 3 * peaks[0]


def test_a_mask_on_the_weights_silences_connections() -> None:
    model, (x, y) = make(), batch()
    layer = model.blocks[0]
    mask = (torch.arange(HIDDEN * INPUTS).reshape(layer.weight.shape) % 3 > 0).float()
    both = optimizers(model)
    for _ in range(3):
        train_step(model, both, x, y)
        with torch.no_grad():
            layer.weight *= mask
    assert (layer.weight[mask == 0] == 0).all()
    kernel = layer.DCK(layer.weight, layer.P, layer.SIG)
    silent = kernel.abs().amax(-1, keepdim=True) == 0
    assert torch.equal(silent, mask == 0)
    # An input neuron whose connections are all masked changes nothing.
    with torch.no_grad():
        layer.weight[:, 2] *= 0
    changed = x.clone()
    changed[:, 2] = 1 - changed[:, 2]
    assert torch.equal(layer(changed), layer(x))


def delayed(layer: Dcls1d, x: Tensor) -> Tensor:
    """What whole delays compute: each input, shifted in time and weighted, added up."""
    padded = F.pad(x, (DELAYS - 1, 0))
    steps, output = x.shape[-1], torch.zeros(len(x), layer.out_channels, x.shape[-1])
    for o in range(layer.out_channels):
        for i in range(layer.in_channels):
            start = int(layer.P[0, o, i, 0]) + DELAYS // 2
            output[:, o] += layer.weight[o, i, 0].detach() * padded[:, i, start : start + steps]
    return output


def test_evaluating_sharp_whole_delays_and_going_back_to_training() -> None:
    model, (x, y) = make(), batch()
    both = optimizers(model)
    for _ in range(3):
        train_step(model, both, x, y)
    model.decrease_sig(0.7)
    trained, smooth = copy.deepcopy(model.state_dict()), model(x)

    saved = model.evaluation_mode()
    for layer in model.blocks:
        assert torch.equal(layer.P, layer.P.round())
        assert (layer.version, layer.DCK.version) == ("max", "max")
        assert not layer.SIG.any()
    layer = model.blocks[0]
    assert_close(layer(F.pad(x, (DELAYS - 1, 0))), delayed(layer, x), 1e-5)
    sharp = model(x)
    assert not torch.allclose(sharp, smooth)

    model.training_mode(saved)
    assert torch.equal(model(x), smooth)
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained[name]), name
    # The optimizers' parameters are still those of the layers.
    assert train_step(model, both, x, y) > 0
    for layer, name in zip(model.blocks, ("blocks.0.P", "blocks.1.P"), strict=True):
        assert not torch.equal(layer.P, trained[name])
    assert [layer.P for layer in model.blocks] == model.positions


def test_setting_either_version_is_enough() -> None:
    model, (x, _) = make(), batch()
    outputs = []
    for change in ("module", "builder", "both"):
        twin = copy.deepcopy(model)
        for layer in twin.blocks:
            with torch.no_grad():
                layer.SIG *= 0
            if change != "builder":
                layer.version = "max"
            if change != "module":
                layer.DCK.version = "max"
        twin.round_pos()
        outputs.append(twin(x))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], model(x))


def test_fine_tuning_loads_what_fits() -> None:
    model = make()
    saved = model.state_dict()
    v1 = Dcls1d(INPUTS, HIDDEN, 1, dilated_kernel_size=DELAYS, bias=False, version="v1")
    first = {k.removeprefix("blocks.0."): v for k, v in saved.items() if k.startswith("blocks.0")}
    with pytest.raises(RuntimeError, match="SIG"):
        v1.load_state_dict(first, strict=True)
    result = v1.load_state_dict(first, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == ([], ["SIG"])
    assert torch.equal(v1.P, model.blocks[0].P)
    assert v1.SIG is None
    wide = Dcls1d(INPUTS, HIDDEN, 1, dilated_kernel_size=DELAYS, bias=True)
    bias = wide.bias.detach().clone()
    result = wide.load_state_dict(first, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (["bias"], [])
    assert torch.equal(wide.bias, bias)
    x, _ = batch()
    wide.bias.data.zero_()
    assert_close(wide(x), model.blocks[0](x), 1e-5)


def test_positions_are_drawn_as_whole_numbers() -> None:
    model, (x, _) = make(), batch()
    layer = model.blocks[0]
    layer.P.requires_grad = False
    layer.P.data = torch.randint(-(DELAYS // 2), DELAYS // 2 + 1, layer.P.shape)
    assert layer.P.dtype == torch.int64
    layer.version = "max"
    layer.SIG.data.zero_()
    output = layer(F.pad(x, (DELAYS - 1, 0)))
    assert_close(output, delayed(layer, x), 1e-5)
    output.sum().backward()
    assert layer.weight.grad.abs().max() > 0
    assert layer.P.grad is None
    layer.clamp_parameters()
    assert layer.P.dtype == torch.int64


def test_layers_are_found_by_their_base_class() -> None:
    model = nn.Sequential(make(), nn.Conv1d(1, 1, 1))
    found = [m for m in model.modules() if isinstance(m, _DclsNd)]
    assert found == list(model[0].blocks)
