"""One layer called from several threads at once, with a global interpreter lock and without."""

from __future__ import annotations

import copy
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from layers import FORWARD, TRANSPOSED, Layer, assert_close, layer_id
from torch import Tensor, nn

import DCLS
from DCLS.delays import DelayLinear
from DCLS.im2col import modules as im2col

#: It runs with torch expressions, too: see conftest.
pytestmark = pytest.mark.any_backend

#: The first calls of a process are those of its threads.
FIRST_CALLS = """
import sys, threading
sys.setswitchinterval(1e-6)
import torch, DCLS
torch.manual_seed(0)
kinds = DCLS.Dcls1d, DCLS.Dcls2d, DCLS.Dcls3d
layers = [kind(2, 2, 3, dilated_kernel_size=5, version="gauss") for kind in kinds]
inputs = [torch.randn(2, 2, *(9,) * ndim) for ndim in (1, 2, 3)]
barrier, results = threading.Barrier(8), []

def run():
    barrier.wait()
    outputs = [layer(x) for layer, x in zip(layers, inputs)]
    results.append([*outputs, *torch.autograd.grad(sum(y.sum() for y in outputs), layers[1].P)])

threads = [threading.Thread(target=run) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(results) == 8
for result in results:
    for one, other in zip(result, results[0], strict=True):
        torch.testing.assert_close(one, other)
"""


@pytest.fixture(autouse=True)
def _restless() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def at_once(
    function: Callable[[Any], Any], arguments: Sequence[Any], rounds: int
) -> list[list[Any]]:
    """Calls a function in a thread for each argument, round by round; returns the results."""
    barrier = threading.Barrier(len(arguments))

    def run(argument: Any) -> list[Any]:
        barrier.wait()
        return [function(argument) for _ in range(rounds)]

    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(run, arguments))


def assert_same(module: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Threads with an input each compute what one thread computes, gradients included."""
    parameters = list(module.parameters())

    def step(x: Tensor) -> list[Tensor]:
        output = module(x)
        return [output.detach(), *torch.autograd.grad(output.square().sum(), [x, *parameters])]

    inputs = [x.requires_grad_() for x in inputs]
    expected = [step(x) for x in inputs]
    for results, want in zip(at_once(step, inputs, 10), expected, strict=True):
        for got in results:
            for one, other in zip(got, want, strict=True):
                assert_close(one, other)


@pytest.mark.parametrize(
    ("layer", "method"),
    [(layer, "auto") for layer in TRANSPOSED]
    + [(layer, method) for layer in FORWARD for method in ("conv", "direct")],
    ids=lambda value: value if isinstance(value, str) else layer_id(value),
)
def test_threads_compute_what_one_does(layer: Layer, method: str) -> None:
    module = layer.make(version="gauss", dtype=torch.float64)
    module.method = method
    assert_same(module, [layer.input(module, batch) for batch in (1, 2, 3, 4)])


def test_threads_of_im2col_layers() -> None:
    module = im2col.Dcls2d(2, 3, 3, dilated_kernel_size=5, version="gauss", dtype=torch.float64)
    sizes = (8, 9, 10, 11)
    assert_same(module, [torch.randn(2, 2, size, 9, dtype=torch.float64) for size in sizes])


def test_threads_take_steps_of_whole_delays() -> None:
    """The first step sorts the delays."""
    module = DelayLinear(5, 4, max_delay=6, count=2, version="v1", dtype=torch.float64)
    DCLS.round_(module)
    states = [module.initial_state(batch).normal_() for batch in (1, 2, 3, 4)]
    copied = copy.deepcopy(module)  # which sorts its own

    def step(layer: DelayLinear, state: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            return layer.step(torch.ones(state.shape[2], 5, dtype=torch.float64), state)

    expected = [step(copied, state) for state in states]
    for results, want in zip(at_once(partial(step, module), states, 300), expected, strict=True):
        for got in results:
            for one, other in zip(got, want, strict=True):
                assert_close(one, other)


def run_in_a_process(code: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_calls_are_those_of_threads() -> None:
    run_in_a_process(FIRST_CALLS)


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python always has its lock"
)
def test_the_lock_stays_off() -> None:
    """A module that did not promise to do without would switch it on."""
    code = "import sys, torch, DCLS; print(DCLS.__version__, sys._is_gil_enabled())"
    assert run_in_a_process(code).split() == [DCLS.__version__, "False"]
