"""The two ways on synthetic tensors, and the surroundings of a measurement."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from support import VERSIONS
from torch import Tensor

from DCLS import _cpu_rule
from DCLS._threads import in_a_thread
from DCLS.functional import construct_support
from DCLS.method import expected_cells
from DCLS.tuning import candidates, facts, measure
from DCLS.tuning.candidates import CudaClock, HostClock, Synthetic, relative_error
from DCLS.tuning.decide import LIMITS, Limits
from DCLS.tuning.problem import Geometry, Problem

QUICK = Limits(seconds=0.05, rounds=1, warmups=0)


def problem(
    size: tuple[int, ...] = (7, 9),
    version: str = "v1",
    dtype: torch.dtype = torch.float32,
    grads: tuple[bool, bool] = (True, True),
    batch: int = 2,
    **changes: Any,
) -> Problem:
    fields: dict[str, Any] = {
        "device_type": "cpu",
        "device_index": None,
        "dtype": dtype,
        "input_dtype": dtype,
        "weight_dtype": dtype,
        "channels_last": False,
        "in_channels": 4,
        "out_channels": 4,
        "groups": 4,
        "kernel_size": size,
        "dense_kernel_size": (),
        "dilated_kernel_size": size,
        "stride": (1,) * len(size),
        "padding": tuple(n // 2 for n in size),
        "version": version,
        "kernel_count": 5,
        "sigma_min": None,
        "cells": 20,
        "bias": True,
        "grad_input": grads[0],
        "grad_kernel": grads[1],
    }
    spatial = tuple(11 + axis for axis in range(len(size)))
    return Problem(Geometry(**{**fields, **changes}), batch, spatial, facts.flags("cpu"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", [(25,), (7, 9), (3, 5, 4)])
def test_the_candidates_agree(size: tuple[int, ...], version: str, dtype: torch.dtype) -> None:
    """With room: a tenth of what is allowed."""
    for channels_last in (False, True):
        for groups in (4, 1):
            given = problem(size, version, dtype, channels_last=channels_last, groups=groups)
            synthetic = Synthetic(given, 2)
            if version in ("max", "gauss"):
                assert synthetic.SIG is not None
            steps = synthetic.steps()
            got, expected = steps["direct"](), steps["conv"]()
            assert synthetic.differs(got, expected) == ""
            assert len(got) == len(expected) == (5 if synthetic.SIG is None else 6)
            for one, other in zip(got, expected, strict=True):
                assert one.dtype == other.dtype
                tolerance = candidates.TOLERANCES[dtype]
                assert relative_error(one, other) < tolerance / 3


def test_under_autocast_the_parameters_stay_float32() -> None:
    given = problem(dtype=torch.bfloat16, input_dtype=torch.float32, weight_dtype=torch.float32)
    synthetic = Synthetic(given, 2)
    for step in synthetic.steps().values():
        output, *grads = step()
        assert output.dtype == torch.bfloat16
        assert all(grad.dtype == torch.float32 for grad in grads)
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("grads", "results"),
    [((False, False), 1), ((True, False), 2), ((False, True), 4), ((True, True), 5)],
)
def test_the_wanted_gradients_and_no_others(grads: tuple[bool, bool], results: int) -> None:
    for step in Synthetic(problem(grads=grads), 2).steps().values():
        assert len(step()) == results


def test_dense_axes_strides_and_flat_kernels() -> None:
    shapes = [
        {"dense_kernel_size": (3,), "dilated_kernel_size": (6,), "kernel_size": (3, 6)},
        {"dense_kernel_size": (), "dilated_kernel_size": (6,), "kernel_size": (1, 6)},
        {"stride": (2, 3), "padding": (0, 1)},
        {"in_channels": 6, "out_channels": 4, "groups": 2, "bias": False},
        {"sigma_min": 1.0, "version": "gauss"},
    ]
    for changes in shapes:
        steps = Synthetic(problem(**changes), 1)
        results = {name: step() for name, step in steps.steps().items()}
        assert steps.differs(results["direct"], results["conv"]) == ""


def test_what_differs_is_named() -> None:
    synthetic = Synthetic(problem(version="gauss"), 2)
    expected = synthetic.steps()["conv"]()
    names = ["output", "of the input", "of weight", "of P", "of SIG", "of SIG or bias"]
    for index, name in enumerate(names):
        for wrong in (expected[index] * 1.001, torch.full_like(expected[index], torch.nan)):
            got = [*expected[:index], wrong, *expected[index + 1 :]]
            assert name in synthetic.differs(got, expected)
    with_tf32 = pytest.MonkeyPatch()
    with_tf32.setattr(candidates, "may_round_float32", lambda _: True)
    got = [tensor * 1.001 for tensor in expected]
    assert synthetic.differs(got, expected) == ""
    assert synthetic.differs([tensor * 1.1 for tensor in expected], expected) != ""
    with_tf32.undo()
    assert synthetic.differs(got, expected) != ""


def test_elements_are_spread() -> None:
    """They touch most of the cells that the rule expects; those of a new layer do not."""
    given = problem((17, 17), kernel_count=34, in_channels=64, out_channels=64, groups=64)
    synthetic = Synthetic(given, 1)
    support = construct_support(synthetic.P, dilated_kernel_size=(17, 17), version="v1")
    cells = support.sum().item() / 64
    expected = expected_cells("v1", 34, (), (17, 17))
    assert 0.7 * expected < cells < expected
    assert synthetic.P.min() < -7.5
    assert synthetic.P.max() > 7.5


def test_a_known_width_is_taken() -> None:
    given = problem(version="gauss")
    assert Synthetic(given, 1, 3.0).SIG.unique().tolist() == [3.0]  # type: ignore[union-attr]
    new = Synthetic(given, 1).SIG
    assert new is not None
    assert new.unique().tolist() == pytest.approx([0.23])


def test_random_numbers_stay() -> None:
    before = torch.get_rng_state()
    measure.measure(problem(), 2, None, QUICK)
    assert torch.equal(before, torch.get_rng_state())


def test_a_measurement() -> None:
    decision = measure.measure(problem((17, 17), kernel_count=2), 4, None, Limits(seconds=0.5))
    assert decision.taken in ("direct", "conv")
    assert decision.complaint == ""
    assert all(0 < trial.seconds < 1 for trial in decision.trials.values())


@pytest.mark.parametrize("batch", [0, 1])
def test_nothing_to_measure(batch: int) -> None:
    empty = problem((99, 99), padding=(0, 0)) if batch else problem()
    assert measure.measure(empty, batch, None) == (None, {}, "")


def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    given, batches = problem(), []

    class Counted(Synthetic):
        def __init__(self, problem: Problem, batch: int, width: float | None) -> None:
            batches.append(batch)
            super().__init__(problem, batch, width)

    monkeypatch.setattr(measure, "Synthetic", Counted)
    room = candidates.bytes_needed(given, 30) / measure.MEMORY_PART
    monkeypatch.setattr(facts, "free_memory", lambda _device: room)
    measure.measure(given, 100, None, QUICK)
    assert batches == [25]
    monkeypatch.setattr(facts, "free_memory", lambda _device: 10)
    assert measure.measure(given, 100, None, QUICK).taken is None
    assert batches == [25]


def test_memory_that_runs_out_while_tensors_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(measure, "Synthetic", fail)
    assert measure.measure(problem(), 1, None, QUICK).taken is None


def test_a_direct_convolution_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: Synthetic) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Synthetic, "_direct", fail)
    decision = measure.measure(problem(), 1, None, QUICK)
    assert (decision.taken, decision.complaint) == ("conv", "")


def test_a_wrong_direct_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Synthetic._direct
    monkeypatch.setattr(Synthetic, "_direct", lambda self: right(self) * 1.01)
    decision = measure.measure(problem(), 2, None, QUICK)
    assert decision.taken == "conv"
    assert "output by 1.0e-02 in norm" in decision.complaint


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert facts.is_out_of_memory(error) is expected


def test_a_real_lack_of_memory_is_told() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert facts.is_out_of_memory(caught.value)


# The surroundings


def test_surroundings_do_not_reach_a_measurement() -> None:
    """Neither modes nor hooks: activation checkpointing counts the tensors that are saved."""
    saved: list[Tensor] = []

    def state() -> tuple[bool, ...]:
        x = torch.ones(2, requires_grad=True)
        (x * x).sum().backward()
        return (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            x.is_inference(),
        )

    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t)
    for surrounding in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu"), hooks):
        with surrounding:
            assert in_a_thread(state) == (True, False, False, False)
    assert saved == []


def test_a_measurement_in_any_surroundings() -> None:
    saved: list[Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), hooks:
        decision = measure.measure(problem(), 2, None, QUICK)
    assert (decision.taken is not None, decision.complaint) == (True, "")
    assert saved == []


def test_errors_come_out_of_the_thread() -> None:
    def fail() -> None:
        raise KeyError(threading.current_thread().name)

    with pytest.raises(KeyError, match="DCLS tuning"):
        in_a_thread(fail)


def test_the_threads_of_torch_are_those_of_the_caller() -> None:
    assert in_a_thread(torch.get_num_threads) == torch.get_num_threads()


def test_the_clock_of_the_host() -> None:
    calls = []
    seconds = HostClock().time(lambda: calls.append(1), 10)
    assert len(calls) == 10
    assert 0 < seconds < 0.1
    assert HostClock().now() <= HostClock().now()


def test_facts_of_a_cpu() -> None:
    machine = facts.machine(torch.device("cpu"))
    assert machine["torch"] == torch.__version__
    assert all(machine[name] for name in ("DCLS", "device", "capability", "simd"))
    assert 1 << 20 < facts.free_memory(torch.device("cpu")) <= float("inf")
    assert facts._from_linux("no such file", "x") == facts._from_linux("meminfo", "x") == ""


@pytest.mark.gpu
@pytest.mark.parametrize("version", VERSIONS)
def test_the_candidates_agree_on_a_gpu(version: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    for dtype in (torch.float32, torch.bfloat16):
        given = problem((17, 17), version, dtype, device_type="cuda", device_index=0)
        decision = measure.measure(given._replace(flags=facts.flags("cuda")), 8, None, LIMITS)
        assert decision.taken in ("direct", "conv")
        assert decision.complaint == ""
        assert CudaClock().time(lambda: None, 1) >= 0


def test_torch_is_not_measured_where_it_errs(monkeypatch):
    monkeypatch.setattr(_cpu_rule, "TORCH_HAS_AVX512", True)
    given = problem(kernel_size=(20, 3), padding=(10, 0))._replace(spatial=(9, 31))
    decision = measure.measure(given, 2, None, QUICK)
    assert decision.taken is None
    assert decision.trials["conv"].failure == _cpu_rule.TORCH_ERRS
    forward = given._replace(geometry=given.geometry._replace(grad_kernel=False))
    assert not measure._torch_errs(forward)
