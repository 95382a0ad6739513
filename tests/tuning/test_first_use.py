"""The comparison of a process's first kernel on a GPU with the reference."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from DCLS import set_tuning
from DCLS._native import dense, first_use

CPU = torch.device("cpu")


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A process that has used no GPU, and the comparisons that it makes."""
    devices: list[torch.device] = []
    monkeypatch.setattr(first_use, "pending", True)
    # A torch without CUDA cannot answer.
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(first_use, "compare", lambda device, _construct: devices.append(device))
    return devices


def test_a_right_kernel_says_nothing() -> None:
    first_use.compare(CPU, dense.construct)


@pytest.mark.parametrize("factor", [1 + 1e-4, 0.0, float("nan"), float("inf")])
def test_a_wrong_kernel_is_said(factor: float) -> None:
    def wrong(*arguments: Any) -> Tensor:
        return dense.construct(*arguments) * factor

    with pytest.warns(RuntimeWarning, match="differs from the reference") as warned:
        first_use.compare(CPU, wrong)
    assert len(warned) == 1
    assert "dcls check --output FILE" in str(warned[0].message)


def test_one_wrong_cell_is_said() -> None:
    def wrong(*arguments: Any) -> Tensor:
        kernel = dense.construct(*arguments)
        kernel[0, 2, 3] += 1e-3
        return kernel

    with pytest.warns(RuntimeWarning, match="differs"):
        first_use.compare(CPU, wrong)


def test_what_cannot_be_built_is_left_to_the_call() -> None:
    def fail(*_: Any) -> Tensor:
        raise RuntimeError("no kernel image is available")

    first_use.compare(CPU, fail)


def test_surroundings_do_not_matter() -> None:
    before = torch.get_rng_state()
    x = torch.ones(2, requires_grad=True)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("error")
        first_use.compare(CPU, dense.construct)
    assert torch.equal(before, torch.get_rng_state())
    assert x.grad is None


def test_once_in_a_process(compared: list[torch.device]) -> None:
    threads = [
        threading.Thread(target=first_use.before_use, args=(CPU, dense.construct)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compared == [CPU]
    assert not first_use.pending


def test_not_in_a_capture(compared: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        first_use.before_use(CPU, dense.construct)
    assert compared == []
    first_use.before_use(CPU, dense.construct)
    assert compared == [CPU]


def test_off_by_the_switch(compared: list[torch.device]) -> None:
    set_tuning("off")
    first_use.before_use(CPU, dense.construct)
    assert compared == []
    assert not first_use.pending


def test_a_cpu_is_not_compared(compared: list[torch.device]) -> None:
    dense._execution(CPU)
    assert compared == []
    assert first_use.pending


def test_a_gpu_is_compared_before_its_first_call(
    compared: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream:
        cuda_stream = 0

    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: Stream)
    device = torch.device("cuda", 0)
    dense._execution(device)
    dense._execution(device)
    assert compared == [device]


@pytest.mark.gpu
def test_the_first_kernel_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    first_use.compare(torch.device("cuda", 0), dense.construct)
