"""Processes that compute together, for the tests of torch.distributed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist


@contextlib.contextmanager
def process_group(rank: int, world: int, folder: str, seconds: int = 60) -> Iterator[None]:
    """What each process computes in. They meet through a file: no port can be taken by another."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=seconds),
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def run_processes(
    process: Callable[[int, str], None], folder: Path, world: int, limit: int
) -> None:
    """Runs ``process(rank, folder)`` in each of ``world`` processes, which end in any case."""
    context = torch.multiprocessing.start_processes(
        process, (str(folder),), nprocs=world, join=False, start_method="spawn"
    )
    try:
        for _ in range(limit):
            if context.join(timeout=1):
                break
        else:
            pytest.fail(f"the processes did not end within {limit} s")
    finally:
        for worker in context.processes:
            if worker.is_alive():
                worker.kill()
            worker.join()
