"""What the public trainers write by hand, by the toolkit alone, with the same numbers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from compat import test_trainer_spiking as spiking
from compat import test_trainer_vision as vision
from layers import assert_close
from torch import Tensor, nn

import DCLS

LR, DECAY, STEPS = 1e-2, 0.05, 4


def groups_by_hand(model: nn.Module) -> list[dict[str, Any]]:
    """As ConvNeXt's optim_factory, changed for DCLS: by the ends of names."""
    groups: dict[str, dict[str, Any]] = {
        "P": {"params": [], "weight_decay": 0.0, "lr": 5 * LR},
        "SIG": {"params": [], "weight_decay": 0.0, "lr": 5 * LR},
        "no_decay": {"params": [], "weight_decay": 0.0},
        "decay": {"params": [], "weight_decay": DECAY},
    }
    for name, p in model.named_parameters():
        last = name.rpartition(".")[2]
        free = "no_decay" if p.ndim == 1 or name.endswith(".bias") else "decay"
        groups[last if last in ("P", "SIG") else free]["params"].append(p)
    return list(groups.values())


def repulsive_loss(model: nn.Module) -> Tensor:
    """As the authors' trainers compute it."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for name, p in model.named_parameters():
        if name.endswith(".P"):
            P = p.view(2, p.size(1) * p.size(2), p.size(3)).permute(1, 2, 0).contiguous()
            near = (1 - torch.cdist(P, P, p=2)).triu(diagonal=1)
            total = total + 2 * near.clamp_min(0).sum() / (P.size(1) * (P.size(1) - 1) * P.size(0))
            count += 1
    return (total / count) ** 2


def train_vision(model: nn.Module, by_hand: bool) -> list[float]:
    x, y = vision.batch()
    groups = groups_by_hand(model) if by_hand else DCLS.param_groups(model, LR, DECAY)
    optimizer = torch.optim.AdamW(groups, lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    if not by_hand:
        DCLS.clamp_after_step(optimizer, model)
    seen = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x.double()), y)
        near = repulsive_loss(model) if by_hand else DCLS.losses.repulsion(model, "mean")
        (loss + 10 * near).backward()
        optimizer.step()
        if by_hand:
            vision.clamp_all(model)
        schedule.step()
        seen += [loss.item(), near.item()]
    return seen


def assert_same(got: nn.Module, want: nn.Module) -> None:
    for (name, value), other in zip(
        got.state_dict().items(), want.state_dict().values(), strict=True
    ):
        assert (value - other).abs().max() <= 1e-6 * other.abs().max(), name


def test_a_vision_trainer() -> None:
    model = vision.build().double()
    with torch.no_grad():
        for stage in model.stages:  # some at the border, where clamping counts
            stage[0].dwconv.P[..., 0] = 3.0
    twin = copy.deepcopy(model)
    torch.testing.assert_close(
        train_vision(model, False), train_vision(twin, True), rtol=1e-6, atol=1e-12
    )
    assert_same(model, twin)
    assert_close(DCLS.fold(model)(vision.batch()[0].double()),
                 twin(vision.batch()[0].double()), 1e-6)  # fmt: skip


def test_a_spiking_trainer() -> None:
    epochs, (x, y) = 6, spiking.batch()
    model = spiking.make().double()
    twin = copy.deepcopy(model)
    x = x.double()
    alpha = (0.23 / (spiking.DELAYS // 2)) ** (1 / (epochs - 2))

    twin.weights = [m.weight for m in twin.blocks]
    twin.positions = [m.P for m in twin.blocks]
    both = spiking.optimizers(twin)
    optimizer = torch.optim.Adam(
        DCLS.param_groups(model, 1e-2, 1e-5, position_lr_scale=10), lr=1e-2
    )
    DCLS.clamp_after_step(optimizer, model)
    widths = DCLS.WidthSchedule(model, spiking.DELAYS // 2, steps=epochs - 2)
    for epoch in range(epochs):
        loss = spiking.train_step(twin, both, x, y)
        optimizer.zero_grad()
        mine = nn.functional.cross_entropy(10 * model(x), y)
        mine.backward()
        optimizer.step()
        assert abs(mine.item() - loss) <= 1e-9 * loss

        saved = twin.evaluation_mode()
        with torch.no_grad(), DCLS.integer_positions(model):
            # Their kernels are divided by 1 + 1e-7, as ours are.
            assert_close(model(x), twin(x).detach(), 1e-9)
            for layer, other in zip(model.blocks, twin.blocks, strict=True):
                assert torch.equal(layer.P, other.P)
        twin.training_mode(saved)

        if epoch < epochs - 2:
            twin.decrease_sig(alpha)
        widths.step()
    assert_same(model, twin)
    assert widths.value == 0.23


def test_delays_of_a_spiking_trainer() -> None:
    model = spiking.make()
    for layer in model.blocks:
        by_hand = spiking.DELAYS - 1 - (layer.P[0] + spiking.DELAYS // 2)
        assert_close(layer.delays(), by_hand, 1e-6)
