"""The training tools with DDP, and with fully_shard, in two processes over gloo."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from layers import assert_close
from processes import process_group
from toolkit.models import Net, batch, layers_of
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import DCLS

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch has no torch.distributed")
#: torch 2.6's fully_shard calls what the streams of its CPUs do not have.
FULLY_SHARDS = hasattr(torch.cpu.Stream, "record_event")
WORLD = 2


def dcls_layers(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if hasattr(m, "clamp_parameters")]


def whole(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, gathered."""
    return {
        name.removeprefix("module."): (v.full_tensor() if hasattr(v, "full_tensor") else v).clone()
        for name, v in model.state_dict().items()
    }


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor], relative: float = 1e-9) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert_close(got[name], value, relative)


def train(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Far steps, so that clamping counts, with every tool."""
    optimizer = torch.optim.SGD(DCLS.param_groups(model, 0.5, 0.05, position_lr_scale=3000))
    DCLS.clamp_after_step(optimizer, model)
    schedule = DCLS.WidthSchedule(model, 2.0, steps=3)
    tracker = DCLS.PositionTracker(model)
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y) + DCLS.losses.repulsion(model)
        loss.backward()
        optimizer.step()
        schedule.step()
        tracker.update()
    for name, layer in tracker._layers:
        if name in tracker.positions():
            last, rows = tracker.positions()[name][-1], layer.positions().detach().flatten(1, -2)
            assert_close(last[:, 0], rows[:, 0].float(), 1e-6)


def rounded_and_back(model: nn.Module, x: Tensor) -> Tensor:
    before = whole(model)
    with torch.no_grad(), DCLS.integer_positions(model):
        output = model(x)
        inside = whole(model)
        for name, value in inside.items():
            assert torch.equal(value, value.round() if name.endswith(".P") else before[name]), name
    for name, value in whole(model).items():
        assert torch.equal(value, before[name]), name
    return output


def converted(share: str | None) -> nn.Sequential:
    """Two depthwise layers, and an im2col one, in the place of convolutions."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 2, stride=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.GELU(),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 16, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double()
    places = {"1", "3", "4"}
    DCLS.convert_(
        model, dilated_kernel_size=7, share=share, filter_fn=lambda _, name: name in places
    )
    return model


def check(model: nn.Module, plain: nn.Module, relative: float = 1e-9) -> None:
    x, y = batch()
    x, y = x[:4].double(), y[:4]
    mine = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    train(plain, x, y)
    train(model, x[mine], y[mine])
    trained = whole(model)
    assert_same(trained, whole(plain), relative)
    positions = [value for name, value in trained.items() if name.endswith(".P")]
    assert max(P.abs().max() for P in positions) == 3
    with torch.no_grad():
        before = plain(x)
        assert_close(model(x), before, 1e-7)
        output = rounded_and_back(model, x)
        assert_close(output, rounded_and_back(plain, x), 1e-7)
        assert (output - before).abs().max() > 1e-6
        assert_close(model(x), before, 1e-7)
        DCLS.freeze(model)
        for _ in range(2):
            assert_close(model(x), before, 1e-7)
    assert DCLS.lost_elements(model) == {}


def data_parallel() -> None:
    torch.manual_seed(0)
    model = Net().double()
    check(DistributedDataParallel(copy.deepcopy(model)), model)
    model = converted("stage")
    wrapped = DistributedDataParallel(copy.deepcopy(model))
    check(wrapped, model)
    x = batch()[0].double()
    assert_close(DCLS.fold(wrapped.module)(x), DCLS.fold(model)(x), 1e-7)


def shard(plain: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    model = copy.deepcopy(plain)
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in dcls_layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def sharded() -> None:
    torch.manual_seed(0)
    plain = Net(share=False).double()
    model = shard(plain)
    check(model, plain)
    model.stages[0][0].depthwise.reshard()
    for got, want in zip(layers_of(model), layers_of(plain), strict=True):
        assert_close(got.positions().detach(), want.positions().detach())
        assert_close(got.kernel().detach(), want.kernel().detach())
        got.set_positions(torch.ones(2, 1, 1, 1, dtype=torch.float64))
        assert (whole(got)["P"] == 1).all()
    DCLS.round_(model)
    assert {layer.version for layer in layers_of(model)} == {"v1"}
    plain = converted(None)
    check(shard(plain), plain)


def process(rank: int, folder: str) -> None:
    """What each process runs."""
    with process_group(rank, WORLD, folder, 120):
        data_parallel()
        if FULLY_SHARDS:
            sharded()


def test_training_in_two_processes_equals_that_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(process, (str(tmp_path),), nprocs=WORLD)
    if not FULLY_SHARDS:
        pytest.skip("fully_shard of this torch needs a GPU; DDP was compared")
