"""What a layer leaves for its backward pass: so many bytes, in one form; and who sees it run."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from DCLS import Dcls1d
from DCLS._native.layer import Layer, Spec


@pytest.mark.parametrize("for_parameters", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_behind_what_is_saved_is_written(dtype: torch.dtype, for_parameters: bool) -> None:
    spec = Spec((9, 9), (1, 0), "v1", 1.0, (9, 9), (1, 1), (4, 4), 4)
    x = torch.ones(1, 4, 8, 8, dtype=dtype)
    layer = Layer(
        x, torch.ones(4, 1, 3), torch.zeros(2, 4, 1, 3), None, (8, 8), spec, True, for_parameters
    )
    count = layer.saved_bytes()
    memory = torch.full((count + (1 << 16),), 77, dtype=torch.uint8)
    output = torch.empty_like(x)
    layer.forward(None, output, memory[:count])
    assert output.isfinite().all()
    assert (memory[count:] == 77).all()


def test_saved_has_one_dtype_and_any_layout() -> None:
    numbers = ([3], [0], "v1", 1.0, [3], [1], [1], 1, [True, True])
    x, weight, P = torch.ones(1, 1, 6), torch.ones(1, 1, 2), torch.zeros(1, 1, 1, 2)
    output, saved = torch.ops.dcls.layer(x, weight, P, None, None, *numbers)
    given = (torch.ones_like(output), x, weight, P, None)
    expected = torch.ops.dcls.layer_backward(*given, saved, *numbers, [True] * 5)
    apart = torch.stack([saved, saved], 1)[:, 0]
    got = torch.ops.dcls.layer_backward(*given, apart, *numbers, [True] * 5)
    assert all(map(torch.equal, got, expected))
    with pytest.raises(ValueError, match="saved must be what layer returned"):
        torch.ops.dcls.layer_backward(*given, saved.view(torch.int8), *numbers, [True] * 5)


def test_the_backward_pass_rounds_as_the_forward_pass_did(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    class Recorded(Layer):
        """A layer whose saved bytes tell whether it is rounded to TF32, as on a GPU."""

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.tf32 = args[-1]

        def saved_bytes(self) -> int:
            return super().saved_bytes() + 8 * self.tf32

        def backward(self, *args: Any) -> None:
            used.append(self.tf32)
            super().backward(*args)

    ops = importlib.import_module("DCLS._ops.layer")
    monkeypatch.setattr(ops._native, "Layer", Recorded)
    numbers = ([3], [0], "v1", 1.0, [3], [1], [1], 1, [True, True])
    x, weight, P = torch.ones(1, 1, 6), torch.ones(1, 1, 2), torch.zeros(1, 1, 1, 2)
    for allowed in (True, False):
        monkeypatch.setattr(ops, "allows_tf32", lambda _, allowed=allowed: allowed)
        output, saved = torch.ops.dcls.layer(x, weight, P, None, None, *numbers)
        monkeypatch.setattr(ops, "allows_tf32", lambda _, allowed=allowed: not allowed)
        given = (torch.ones_like(output), x, weight, P, None, saved)
        torch.ops.dcls.layer_backward(*given, *numbers, [True] * 5)
    assert used == [True, False]


def test_a_profiler_sees_the_operators() -> None:
    module = Dcls1d(2, 2, 2, dilated_kernel_size=5, version="v1", method="direct")
    with torch.autograd.profiler.profile() as profile:
        module(torch.ones(1, 2, 8)).sum().backward()
    names = {event.name for event in profile.function_events}
    assert {"dcls::layer", "dcls::layer_backward"} <= names


def test_gradients_of_an_input_that_is_negated_when_it_is_read() -> None:
    module = Dcls1d(2, 2, 3, dilated_kernel_size=5, method="direct").double()
    values = torch.randn(1, 2, 9, dtype=torch.float64)
    grads = []
    for x in (torch._neg_view(values), -values):
        x.requires_grad_()
        output = module(x)
        towards = torch.linspace(-1, 1, 5, dtype=torch.float64).expand(output.shape)
        grads.append(torch.autograd.grad(output, [x, *module.parameters()], towards))
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want)
