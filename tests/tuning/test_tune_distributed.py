"""``DCLS.tune`` in two processes: the first one measures, and nobody waits for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import process_group, run_processes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from DCLS import Dcls2d, set_tuning, tune
from DCLS.tuning import facts, forget, measure
from DCLS.tuning.decide import Decision, Trial

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch has no torch.distributed")
WORLD = 2
LIMIT = 120  # seconds
#: torch 2.6's fully_shard calls what the streams of its CPUs do not have.
FULLY_SHARDS = hasattr(torch.cpu.Stream, "record_event")


def build() -> nn.Sequential:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"padding": 4, "dilated_kernel_size": 9, "groups": 4}
    return nn.Sequential(
        Dcls2d(4, 4, 3, version="v1", **settings), Dcls2d(4, 4, 3, version="v1", **settings)
    )


class Fails(nn.Module):
    """Fails in one of the processes, after a layer has asked."""

    def __init__(self, rank: int, where: int) -> None:
        super().__init__()
        self.layers, self.fails = build(), rank == where

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        if self.fails:
            raise KeyError("only here")
        return y


def outcome(model: nn.Module, x: Tensor) -> str:
    try:
        return ", ".join(f"{row.method} {row.source}" for row in tune(model, x).rows)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def work(rank: int) -> dict[str, Any]:
    measured: list[object] = []

    def bench(*arguments: object) -> Decision:
        """Each process would choose another way."""
        measured.append(arguments)
        method = "direct" if rank else "conv"
        return Decision(method, {"conv": Trial(1e-3), "direct": Trial(1e-3)})

    measure.measure = bench  # type: ignore[assignment]
    set_tuning("memory")
    results: dict[str, Any] = {}
    x = torch.randn(2, 4, 10, 10)
    results["in a group"] = facts.reason_not_to_measure([x])
    model = build()
    parallel = DistributedDataParallel(model)
    results["together"] = outcome(parallel, x)
    results["explained"] = model[0].explain(x)[:1] + model[0].explain(x)[2:]
    results["measured"] = len(measured)
    for _ in range(2):  # DDP has not counted the forward pass of tune
        parallel(x).sum().backward()
    forget()
    results["other sizes"] = outcome(model, x[..., : 10 - rank])
    forget()
    results["fails in the second"] = outcome(Fails(rank, 1), x)
    forget()
    results["fails in the first"] = outcome(Fails(rank, 0), x)
    set_tuning("off" if rank else "memory")
    forget()
    results["off in the second"] = outcome(model, x)
    set_tuning("memory" if rank else "off")
    forget()
    results["off in the first"] = outcome(model, x)
    set_tuning("memory")
    if FULLY_SHARDS:
        from torch.distributed.fsdp import fully_shard

        sharded = build()
        fully_shard(sharded)
        forget()
        results["sharded"] = outcome(sharded, x)
        sharded(x).sum().backward()
    return results


def process(rank: int, folder: str) -> None:
    with process_group(rank, WORLD, folder):
        Path(folder, f"{rank}.json").write_text(json.dumps(work(rank)))
        dist.barrier()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both processes saw. They end in any case."""
    folder = tmp_path_factory.mktemp("distributed")
    run_processes(process, folder, WORLD, LIMIT)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


def test_the_first_process_decides_for_all(results: list[dict[str, Any]]) -> None:
    first, second = results
    assert first["together"] == "conv measured here, conv measured here"
    assert second["together"] == "conv rank 0, conv rank 0"
    assert first["explained"] == ["conv", "measured here"]
    assert second["explained"] == ["conv", "rank 0"]
    assert (first["measured"], second["measured"]) == (2, 0)


def test_no_forward_pass_measures_in_a_group(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert "DCLS.tune measures for all of them" in result["in a group"]


def test_what_the_first_process_did_not_meet_is_static(results: list[dict[str, Any]]) -> None:
    first, second = results
    assert first["other sizes"] == "conv measured here, conv measured here"
    assert second["other sizes"] == "direct CPU rule, direct CPU rule"


def test_a_process_that_fails_leaves_no_other_waiting(results: list[dict[str, Any]]) -> None:
    first, second = results
    assert second["fails in the second"] == "KeyError: 'only here'"
    assert first["fails in the second"] == "conv measured here, conv measured here"
    assert first["fails in the first"] == "KeyError: 'only here'"
    assert second["fails in the first"] == (
        "RuntimeError: the first process could not measure: KeyError: 'only here'"
    )


def test_off_in_one_process_leaves_no_other_waiting(results: list[dict[str, Any]]) -> None:
    first, second = results
    assert first["off in the second"] == "conv measured here, conv measured here"
    assert second["off in the second"] == "direct CPU rule, direct CPU rule"
    assert first["off in the first"] == second["off in the first"]
    assert first["off in the first"] == "direct CPU rule, direct CPU rule"


@pytest.mark.skipif(not FULLY_SHARDS, reason="this torch does not shard on CPUs")
def test_a_sharded_model_trains_on(results: list[dict[str, Any]]) -> None:
    first, second = results
    assert first["sharded"] == "conv measured here, conv measured here"
    assert second["sharded"] == "conv rank 0, conv rank 0"
