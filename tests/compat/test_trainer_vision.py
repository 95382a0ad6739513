"""A vision trainer as its users write it: a ConvNeXt-like model whose depthwise layers are DCLS's.

Each step of the recipe is asserted for what it must do to the layers.
"""

from __future__ import annotations

import copy
import functools
import io
from typing import Any

import pytest
import torch
from layers import assert_close
from torch import Tensor, nn

from DCLS.construct.modules import Dcls2d, _DclsNd

#: It runs with torch expressions, too: see conftest.
pytestmark = pytest.mark.any_backend

SIZE, COUNT = 7, 5


class Block(nn.Module):
    """A ConvNeXt block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.GroupNorm(1, channels)
        self.pwconv1 = nn.Conv2d(channels, 2 * channels, 1)
        self.pwconv2 = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x))
        return x + self.pwconv2(nn.functional.gelu(self.pwconv1(y)))


class Net(nn.Module):
    """Two stages of two blocks."""

    def __init__(self, channels: tuple[int, int] = (4, 6), classes: int = 3) -> None:
        super().__init__()
        first, second = channels
        self.downsample_layers = nn.ModuleList(
            [nn.Conv2d(3, first, 2, stride=2), nn.Conv2d(first, second, 2, stride=2)]
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(width) for _ in range(2))) for width in channels
        )
        self.head = nn.Linear(second, classes)

    def forward(self, x: Tensor) -> Tensor:
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return self.head(x.mean((-2, -1)))


def replace_depthwise(model: nn.Module, version: str) -> None:
    """Swaps every depthwise Conv2d for a Dcls2d by setattr, as the papers' code does."""
    for name, child in model.named_children():
        if isinstance(child, nn.Conv2d) and child.groups == child.in_channels > 1:
            dcls = Dcls2d(
                child.in_channels,
                child.out_channels,
                kernel_count=COUNT,
                dilated_kernel_size=SIZE,
                padding=SIZE // 2,
                groups=child.groups,
                version=version,
            )
            setattr(model, name, dcls)
        else:
            replace_depthwise(child, version)


def share_positions(model: Net, name: str) -> None:
    """One Parameter of shape (2, C, 1, K) for all layers of a stage."""
    for stage in model.stages:
        layers = [m for m in stage.modules() if isinstance(m, _DclsNd)]
        shared = nn.Parameter(getattr(layers[0], name).detach().clone())
        for layer in layers:
            setattr(layer, name, shared)


def build(version: str = "gauss", seed: int = 0) -> Net:
    torch.manual_seed(seed)
    model = Net()
    replace_depthwise(model, version)
    share_positions(model, "P")
    if version in ("max", "gauss"):
        share_positions(model, "SIG")
    return model


def dcls_layers(model: nn.Module) -> list[Dcls2d]:
    return [m for m in model.modules() if isinstance(m, Dcls2d)]


LR, DECAY = 1e-2, 0.05


def optimizer_for(model: nn.Module) -> torch.optim.AdamW:
    """Groups by name: positions learn five times as fast, without decay; widths without decay."""
    positions, widths, others = [], [], []
    for name, parameter in model.named_parameters():
        if name.endswith(".P"):
            positions.append(parameter)
        elif "SIG" in name:
            widths.append(parameter)
        else:
            others.append(parameter)
    return torch.optim.AdamW(
        [
            {"params": positions, "lr": 5 * LR, "weight_decay": 0.0},
            {"params": widths, "weight_decay": 0.0},
            {"params": others},
        ],
        lr=LR,
        weight_decay=DECAY,
    )


def clamp_all(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "clamp_parameters"):
            module.clamp_parameters()


def repulsive_loss(model: nn.Module) -> Tensor:
    """Pushes apart the elements of a kernel that are nearer than a grid step."""
    total = torch.zeros(())
    for name, parameter in model.named_parameters():
        if name.endswith(".P"):
            points = parameter.flatten(1, 2).permute(1, 2, 0)  # (C, K, 2)
            distances = torch.cdist(points, points, p=1)
            total = total + torch.relu(1 - distances).triu(1).sum()
    return total


def batch(seed: int = 0, size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, 24, 24, generator=generator)
    return x, torch.randint(3, (size,), generator=generator)


def step(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor, weight: float = 0.0) -> float:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    if weight:
        loss = loss + weight * repulsive_loss(model)
    loss.backward()
    optimizer.step()
    clamp_all(model)
    return loss.item()


@pytest.mark.parametrize("version", ["v1", "max", "gauss"])
def test_swapped_layers_compute_what_the_dense_kernels_do(version: str) -> None:
    model = build(version)
    layers = dcls_layers(model)
    assert len(layers) == 4
    assert not any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in model.modules())
    x, _ = batch()
    want = model(x)
    for stage in model.stages:
        for block in stage:
            block.dwconv = block.dwconv.to_conv()
    assert_close(model(x), want, 1e-5)


def test_one_position_and_one_width_per_stage_appear_once_among_the_parameters() -> None:
    model = build()
    names = [name for name, _ in model.named_parameters()]
    # The name of the first layer that has it, as torch says of shared parameters.
    assert [n for n in names if n.endswith(".P")] == [
        "stages.0.0.dwconv.P", "stages.1.0.dwconv.P"
    ]  # fmt: skip
    assert [n for n in names if "SIG" in n] == ["stages.0.0.dwconv.SIG", "stages.1.0.dwconv.SIG"]
    assert model.stages[1][1].dwconv.P.shape == (2, 6, 1, COUNT)
    # And under each name in the state dict.
    assert sum(name.endswith(".P") for name in model.state_dict()) == 4


def test_the_gradient_of_a_shared_position_is_the_sum_over_its_layers() -> None:
    model, x, y = build().double(), *batch()
    loss = nn.functional.cross_entropy(model(x.double()), y)
    loss.backward()
    shared = model.stages[0][0].dwconv.P
    assert shared is model.stages[0][1].dwconv.P
    apart = copy.deepcopy(model)
    for layer in dcls_layers(apart):
        layer.P = nn.Parameter(layer.P.detach().clone())
        layer.SIG = nn.Parameter(layer.SIG.detach().clone())
    apart.zero_grad()
    nn.functional.cross_entropy(apart(x.double()), y).backward()
    both = [block.dwconv.P.grad for block in apart.stages[0]]
    assert all(grad.abs().max() > 0 for grad in both)
    assert_close(shared.grad, both[0] + both[1])


def test_groups_by_name_give_positions_their_own_rate_and_no_decay() -> None:
    model = build()
    optimizer = optimizer_for(model)
    positions, widths, others = (group["params"] for group in optimizer.param_groups)
    assert {id(p) for p in positions} == {id(stage[0].dwconv.P) for stage in model.stages}
    assert {id(p) for p in widths} == {id(stage[0].dwconv.SIG) for stage in model.stages}
    assert len(others) == len(list(model.parameters())) - 4
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    # The first step of AdamW is lr * sign(grad), on top of the decay.
    for name, parameter in model.named_parameters():
        if name.endswith(".P"):
            want = before[name] - 5 * LR
        elif "SIG" in name:
            want = before[name] - LR
        else:
            want = before[name] * (1 - LR * DECAY) - LR
        torch.testing.assert_close(parameter.detach(), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("version", ["v0", "v1", "max", "gauss"])
def test_training_learns_positions_and_keeps_them_on_the_grid(version: str) -> None:
    model, x, y = build(version), *batch()
    optimizer = optimizer_for(model)
    optimizer.param_groups[0]["lr"] = 0.5  # far enough to meet the limits
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = [step(model, optimizer, x, y) for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]
    for name, parameter in model.named_parameters():
        # As in 0.1.1 the widths of `max` start at 0, where the derivative of abs is 0.
        moves = version != "max" or "SIG" not in name
        assert torch.equal(parameter, start[name]) != moves, name
    reached = [layer.P.abs().max().item() for layer in dcls_layers(model)]
    assert max(reached) == SIZE // 2


def test_the_repulsive_loss_pushes_elements_apart() -> None:
    model, x, y = build(), *batch()
    near = repulsive_loss(model).item()
    assert near > 1
    optimizer = optimizer_for(model)
    for _ in range(15):
        step(model, optimizer, x, y, weight=1.0)
    assert repulsive_loss(model).item() < 0.5 * near


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
def test_mixed_precision_with_a_gradient_scaler(device: str, scale: float) -> None:
    low = torch.float16 if device == "cuda" else torch.bfloat16
    model, (x, y) = build().to(device), batch()
    x, y = x.to(device), y.to(device)
    full = copy.deepcopy(model)
    nn.functional.cross_entropy(full(x), y).backward()
    optimizer = optimizer_for(model)
    scaler = torch.amp.GradScaler(device, init_scale=scale, growth_interval=100)
    before = copy.deepcopy(model.state_dict())
    with torch.autocast(device, low):
        loss = nn.functional.cross_entropy(model(x), y)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    for (name, parameter), want in zip(model.named_parameters(), full.parameters(), strict=True):
        assert parameter.grad.dtype == torch.float32
        error = (parameter.grad - want.grad).norm() / want.grad.norm()
        assert error < 0.1, (name, error)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    clamp_all(model)
    assert scaler.get_scale() == scale
    assert all(
        not torch.equal(value, before[name])
        for name, value in model.state_dict().items()
        if name.endswith((".P", ".SIG", "dwconv.weight"))
    )
    # A step whose gradients overflow is left out, and the scale falls.
    before = copy.deepcopy(model.state_dict())
    optimizer.zero_grad()
    with torch.autocast(device, low):
        loss = nn.functional.cross_entropy(model(x), y) * torch.inf
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == scale / 2
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_an_averaged_copy_follows_and_keeps_positions_shared() -> None:
    model, x, y = build(), *batch()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    for stage in average.stages:
        assert stage[0].dwconv.P is stage[1].dwconv.P
        assert stage[0].dwconv.P is not model.stages[0][0].dwconv.P
    decay = 0.9
    want = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = optimizer_for(model)
    for _ in range(3):
        step(model, optimizer, x, y)
        with torch.no_grad():
            for (name, p), q in zip(model.named_parameters(), average.parameters(), strict=True):
                q.mul_(decay).add_(p, alpha=1 - decay)
                want[name] = decay * want[name] + (1 - decay) * p
        before = average(x)
    for name, parameter in average.named_parameters():
        torch.testing.assert_close(parameter, want[name])
    twin = build(seed=1).eval()
    twin.load_state_dict(average.state_dict(), strict=True)
    # Without a graph on either side: training and inference may convolve by different methods.
    with torch.no_grad():
        assert torch.equal(twin(x), before), "the average computes with its own positions"
    assert not torch.allclose(model(x), before)


@pytest.mark.parametrize("weights_only", [True, False])
def test_resuming_from_a_checkpoint_goes_on_as_if_nothing_had_happened(weights_only: bool) -> None:
    model, x, y = build(), *batch()
    optimizer = optimizer_for(model)
    for _ in range(2):
        step(model, optimizer, x, y)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    after = [step(model, optimizer, x, y) for _ in range(2)]

    file.seek(0)
    saved = torch.load(file, weights_only=weights_only)
    resumed = build(seed=9)
    resumed.load_state_dict(saved["model"], strict=True)
    optimizer = optimizer_for(resumed)
    optimizer.load_state_dict(saved["optimizer"])
    assert [step(resumed, optimizer, x, y) for _ in range(2)] == after
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_positions_of_a_stage_may_come_from_elsewhere() -> None:
    model, (x, _) = build("v1"), batch()
    before = model(x)
    generator = torch.Generator().manual_seed(3)
    for stage, width in zip(model.stages, (4, 6), strict=True):
        drawn = torch.empty(2, width, 1, COUNT).uniform_(-3, 3, generator=generator)
        stage.P = nn.Parameter(drawn)
        for block in stage:
            block.dwconv.P = stage.P
    assert not torch.allclose(model(x), before)
    assert [name for name, _ in model.named_parameters() if name.endswith(".P")] == [
        "stages.0.P", "stages.1.P"
    ]  # fmt: skip
    model(x).sum().backward()
    assert all(stage.P.grad.abs().max() > 0 for stage in model.stages)


def test_layers_may_be_built_by_a_partial() -> None:
    conv = functools.partial(Dcls2d, kernel_count=COUNT, dilated_kernel_size=SIZE, version="v1")
    layer = conv(4, 4, padding=SIZE // 2, groups=4)
    assert isinstance(layer, _DclsNd)
    assert layer(torch.randn(1, 4, 9, 9)).shape == (1, 4, 9, 9)
