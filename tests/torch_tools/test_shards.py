"""Edits of parameters that processes share: each class, placement and method that edits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from layers import LAYERS, assert_close
from processes import process_group
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.utils import parametrize, prune

from DCLS import Dcls2d
from DCLS.im2col import modules as im2col

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch has no torch.distributed")
#: torch 2.6's fully_shard calls what the streams of its CPUs do not have.
FULLY_SHARDS = hasattr(torch.cpu.Stream, "record_event")


class Shifted(Dcls2d):
    """A subclass that draws its positions in another way."""

    def _draw_positions(self, row: Tensor, low: int, high: int) -> None:
        row.uniform_(low / 2, high / 2)


def makers() -> list[Callable[..., nn.Module]]:
    """Every class, with unequal axes, one axis of one point, and versions that have widths."""
    kinds: list[tuple[Any, Any]] = [(im2col.Dcls1d, 6), (im2col.Dcls2d, (4, 7))]
    kinds += [(im2col.Dcls3d, (1, 3, 5)), (Shifted, (5, 8))]
    return [layer.make for layer in LAYERS] + [
        lambda kind=kind, size=size, **more: kind(4, 6, 3, dilated_kernel_size=size, **more)
        for kind, size in kinds
    ]


def parameters(module: nn.Module) -> dict[str, Tensor]:
    """The whole parameters."""
    whole = {}
    for name, parameter in module.named_parameters():
        value: Any = parameter.detach()
        whole[name] = (value.full_tensor() if hasattr(value, "full_tensor") else value).clone()
    return whole


def assert_same(got: nn.Module, want: nn.Module) -> None:
    values, wanted = parameters(got), parameters(want)
    assert values.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(values[name], value), (type(want), name)


def placed_parameters(mesh: DeviceMesh) -> None:
    """DTensors of each placement are edited as plain tensors are, in their memory."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    for make in makers():
        for placement in (Shard(0), Shard(1), Shard(-1), Replicate()):
            torch.manual_seed(0)
            plain = make()
            with torch.no_grad():
                plain.P.mul_(40)
            shared = copy.deepcopy(plain)
            for name, parameter in plain.named_parameters():
                where = Shard(0) if name == "bias" and placement != Replicate() else placement
                value = distribute_tensor(parameter.detach().clone(), mesh, [where])
                setattr(shared, name, nn.Parameter(value))
            memory = shared.P.to_local().data_ptr()
            before = plain.P.detach().clone()
            plain.clamp_parameters()
            shared.clamp_parameters()
            assert not torch.equal(plain.P, before)
            assert_same(shared, plain)
            torch.manual_seed(1)
            plain.reset_parameters()
            with torch.no_grad():
                for parameter in shared.parameters():
                    parameter.fill_(torch.nan)
            torch.manual_seed(1 + dist.get_rank())  # that of the first process counts
            shared.reset_parameters()
            assert_same(shared, plain)
            assert shared.P.to_local().data_ptr() == memory
        # A plain layer, whole in each process.
        assert_same(shared.to_conv(), plain.to_conv())


def meta_then_shards(mesh: DeviceMesh) -> None:
    """Some classes as large models start: meta device, fully_shard, to_empty, reset."""
    from torch.distributed.fsdp import fully_shard

    for make in makers()[1::3]:
        model = nn.Sequential(make(device="meta"))
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
        model[0].reset_parameters()
        model.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(torch.nan)
        torch.manual_seed(1)
        model[0].reset_parameters()
        torch.manual_seed(1)
        plain = nn.Sequential(make())
        assert_same(model, plain)
        with torch.no_grad():
            for parameter in (model[0].P, plain[0].P):
                parameter.mul_(40)
        model[0].clamp_parameters()
        plain[0].clamp_parameters()
        assert_same(model, plain)
        x = torch.randn(2, 4, *(9,) * len(plain[0].stride))
        assert_close(model(x), plain(x), 1e-5)


def gathered(mesh: DeviceMesh) -> None:
    """What fully_shard holds during a forward is a copy: an edit of it would be lost."""
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(Dcls2d(4, 4, 3, dilated_kernel_size=(3, 5)))
    fully_shard(model, mesh=mesh)
    with torch.no_grad():
        model(torch.randn(1, 4, 9, 9))
    assert not hasattr(model[0].P, "placements")
    for method in (model[0].clamp_parameters, model[0].reset_parameters):
        with pytest.raises(RuntimeError, match=r"reshard\(\)"):
            method()
    model.reshard()
    with torch.no_grad():
        model[0].P.fill_(9)
    model[0].clamp_parameters()
    assert parameters(model)["0.P"].amax((1, 2, 3)).tolist() == [2, 1]


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x

    def right_inverse(self, x: Tensor) -> Tensor:
        return x / 2


def computed_from_shards(mesh: DeviceMesh) -> None:
    """Parametrized and pruned positions of a sharded layer."""
    from torch.distributed.fsdp import fully_shard

    def parametrized(layer: nn.Module) -> None:
        parametrize.register_parametrization(layer, "P", Scaled())

    def pruned(layer: nn.Module) -> None:
        torch.manual_seed(2)
        prune.random_unstructured(layer, "P", 0.3)

    x = torch.randn(1, 4, 9, 9)
    for way in (parametrized, pruned):
        torch.manual_seed(0)
        plain = Dcls2d(4, 6, 3, dilated_kernel_size=(3, 6))
        with torch.no_grad():
            plain.P.mul_(40)
        shared = copy.deepcopy(plain)
        for layer in (plain, shared):
            way(layer)
        fully_shard(shared, mesh=mesh)
        far = plain(x)
        assert_close(shared(x), far, 1e-5)
        shared.reshard()
        plain.clamp_parameters()
        shared.clamp_parameters()
        assert (plain(x) - far).abs().max() > 1e-3
        assert_close(shared(x), plain(x), 1e-5)
        shared.reshard()
        assert_same(shared, plain)


WORK = [placed_parameters, meta_then_shards, gathered, computed_from_shards]


def process(rank: int, world: int, folder: str) -> None:
    """What each process runs."""
    with process_group(rank, world, folder):
        mesh = init_device_mesh("cpu", (world,))
        for work in WORK if FULLY_SHARDS else WORK[:1]:
            work(mesh)


@pytest.mark.parametrize("world", [1, 2])
def test_edits_reach_the_parts_that_processes_hold(world: int, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(process, (world, str(tmp_path)), nprocs=world)
