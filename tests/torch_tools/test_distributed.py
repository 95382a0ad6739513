"""DDP and FSDP2 with two processes over gloo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from layers import assert_close
from processes import process_group, run_processes
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from DCLS.construct.modules import Dcls1d, Dcls2d

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch has no torch.distributed")
WORLD, STEPS = 2, 3
LIMIT = 120  # seconds
#: torch 2.6's fully_shard calls what the streams of its CPUs do not have.
FULLY_SHARDS = hasattr(torch.cpu.Stream, "record_event")


def build() -> nn.Sequential:
    """Two layers of which one shares its positions with the other, the same in each process."""
    torch.manual_seed(0)
    first, second = (Dcls2d(4, 4, 3, padding=2, dilated_kernel_size=5, groups=4) for _ in range(2))
    second.P = first.P
    return nn.Sequential(first, nn.ReLU(), second).double()


def build_for_shards() -> nn.Sequential:
    """Layers whose first axes two processes divide evenly, and unevenly (P and SIG)."""
    torch.manual_seed(0)
    return nn.Sequential(
        Dcls1d(2, 4, 3, padding=2, dilated_kernel_size=5),
        nn.ReLU(),
        Dcls1d(4, 3, 2, padding=2, dilated_kernel_size=5, version="max"),
    ).double()


def batches(shape: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(STEPS)]


def train(model: nn.Module, inputs: list[Tensor]) -> None:
    """A few steps; the optimizer is that of whoever holds the parameters."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x in inputs:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def trained_by_one(make: Callable[[], nn.Sequential], shape: tuple[int, ...]) -> nn.Sequential:
    model = make()
    train(model, batches(shape))
    return model


def data_parallel(rank: int) -> dict[str, Tensor]:
    model = build()
    mine = [x.chunk(WORLD)[rank] for x in batches((4, 4, 8, 8))]
    parallel = DistributedDataParallel(model)
    train(parallel, mine)
    for layer in (model[0], model[2]):
        layer.clamp_parameters()
    return {name.removeprefix("module."): p for name, p in parallel.state_dict().items()}


def sharded(rank: int) -> dict[str, Tensor]:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    model = build_for_shards()
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in model:
        if isinstance(layer, Dcls1d):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    assert model[0].weight.to_local().shape[0] == model[0].weight.shape[0] // WORLD
    train(model, [x.chunk(WORLD)[rank] for x in batches((4, 2, 12))])
    return {name: p.full_tensor() for name, p in model.state_dict().items()}


def process(rank: int, folder: str) -> None:
    """What each process runs."""
    with process_group(rank, WORLD, folder):
        for work in (data_parallel, sharded) if FULLY_SHARDS else (data_parallel,):
            result = {name: value.detach().clone() for name, value in work(rank).items()}
            torch.save(result, Path(folder) / f"{work.__name__}-{rank}.pt")
        dist.barrier()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs two processes, which end in any case, and returns where they saved their parameters."""
    folder = tmp_path_factory.mktemp("distributed")
    run_processes(process, folder, WORLD, LIMIT)
    return folder


def of_both(saved: Path, work: Callable[[int], dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [
        torch.load(saved / f"{work.__name__}-{rank}.pt", weights_only=True) for rank in range(WORLD)
    ]


def test_data_parallel_training_equals_that_of_one_process(saved: Path) -> None:
    first, second = of_both(saved, data_parallel)
    model = trained_by_one(build, (4, 4, 8, 8))
    for layer in (model[0], model[2]):
        layer.clamp_parameters()
    start = build().state_dict()
    assert first.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert not torch.equal(value, start[name]), name
        assert torch.equal(first[name], second[name]), name
        assert_close(first[name], value)


@pytest.mark.skipif(not FULLY_SHARDS, reason="fully_shard of this torch needs a GPU")
def test_sharded_training_equals_that_of_one_process(saved: Path) -> None:
    first, second = of_both(saved, sharded)
    model = trained_by_one(build_for_shards, (4, 2, 12))
    start = build_for_shards().state_dict()
    assert first.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        # The widths of `max` start at 0, where the derivative of abs is 0.
        assert torch.equal(value, start[name]) == (name == "2.SIG"), name
        assert torch.equal(first[name], second[name]), name
        if value.any():
            assert_close(first[name], value)
