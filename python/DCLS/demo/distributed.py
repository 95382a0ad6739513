"""Where the demo runs: the device, and the other processes under ``torchrun``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class DeviceError(ValueError):
    """The device asked for is not known or not there."""


@dataclass(frozen=True)
class Team:
    """The processes that train together, as one of them sees it.

    Args:
        device: the device of this process.
        rank: number of this process, 0 for the one that speaks and writes.
        size: number of processes.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    def shard(self, indices: Tensor) -> Tensor:
        """This process's part of a global batch: every ``size``-th index; may be empty."""
        return indices[self.rank :: self.size]

    def sum(self, values: Tensor) -> Tensor:
        """Sums ``values`` over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def wrap(self, network: nn.Module) -> nn.Module:
        """Makes the gradients of ``network`` the mean over the processes; alone: does nothing."""
        return DistributedDataParallel(network) if self.size > 1 else network


def _environment(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def this_rank() -> int:
    """Number of this process under ``torchrun``; 0 without it."""
    return _environment("RANK", 0)


def cuda_problem() -> str:
    """Why DCLS cannot train on CUDA here; empty if it can."""
    from DCLS import _C

    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            return "this torch is built without CUDA"
        return "torch finds no CUDA device"
    status = _C.cuda_status()
    return "" if status["available"] else f"DCLS cannot use CUDA: {status['reason']}"


def choose_device(name: str) -> torch.device:
    """Returns the device of this process.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` for ``cuda`` where torch and DCLS can both
            use it and ``cpu`` elsewhere. Under ``torchrun`` ``cuda`` is the device of the local
            rank.

    Raises:
        DeviceError: the name is not one of these, or there is no such device.
    """
    kind, colon, number = name.partition(":")
    if name == "auto":
        kind = "cpu" if cuda_problem() else "cuda"
    elif name not in ("cpu", "cuda") and not re.fullmatch("cuda:[0-9]{1,4}", name):
        raise DeviceError(f"must be auto, cpu, cuda or cuda:N, got {name!r}")
    if kind == "cpu":
        return torch.device("cpu")
    if problem := cuda_problem():
        raise DeviceError(f"got {name!r}, but {problem}")
    count = torch.cuda.device_count()
    here = _environment("LOCAL_WORLD_SIZE", 1)
    if here > 1 and colon:
        raise DeviceError(f"must be cuda under torchrun, a GPU for each process, got {name!r}")
    if here > count:
        raise DeviceError(f"got {name!r}, but {here} processes share {count} GPU(s): one each")
    index = int(number) if colon else _environment("LOCAL_RANK", 0) if here > 1 else None
    if index is None:
        return torch.device("cuda", torch.cuda.current_device())
    if index >= count:
        raise DeviceError(f"got {name!r}, but the last of {count} device(s) is cuda:{count - 1}")
    return torch.device("cuda", index)


@contextmanager
def gather_team(device: torch.device) -> Iterator[Team]:
    """Joins the processes that ``torchrun`` started, if it did, for the time of the context.

    They talk through NCCL on GPUs and gloo on CPUs.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if _environment("WORLD_SIZE", 1) == 1:
        yield Team(device)
        return
    if device.type == "cuda":
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        yield Team(device, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
