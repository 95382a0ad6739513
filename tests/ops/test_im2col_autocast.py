"""im2col under autocast, where it is not the whole step that runs under it."""

from __future__ import annotations

import pytest
import torch
from im2col_problem import make_im2col
from torch import Tensor

from DCLS.functional import im2col


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_positions_of_columns_stay_in_float32(low: torch.dtype, device: str) -> None:
    """7.9999 is 8 in 16 bits."""
    x = torch.arange(40.0, device=device).reshape(1, 1, 40)
    P = torch.full((1, 1, 1), 7.75, device=device)
    P += 0.2499
    options = {"dilated_kernel_size": 21, "version": "v0"}
    with torch.autocast(device, low):
        got = im2col(x.sin() * 1e4, P, **options)
    want = im2col((x.sin() * 1e4).to(low), P, **options)
    assert got.dtype == low
    assert torch.equal(got, want)
    assert not torch.equal(want, im2col((x.sin() * 1e4).to(low), P.round(), **options))


@pytest.mark.parametrize("name", ["columns", "conv"])
def test_a_backward_pass_alone_under_autocast_is_that_of_float32(name: str, device: str) -> None:
    """Its matrix products are those of the forward pass, which ran without."""
    problem = make_im2col("gauss", (7, 8), (3, 4), dtype=torch.float32, device=device)
    tensors = list((problem.tensors if name == "conv" else problem.column_tensors).values())

    def grads(autocast: bool) -> tuple[Tensor, ...]:
        output = getattr(problem, name)()
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            return torch.autograd.grad(output, tensors, torch.ones_like(output))

    for got, want in zip(grads(True), grads(False), strict=True):
        assert torch.equal(got, want)


def test_a_kernel_one_point_too_large_is_refused() -> None:
    P = torch.zeros(1, 1, 1)
    assert im2col(torch.ones(1, 1, 5), P, dilated_kernel_size=5, version="v1").shape[-1] == 1
    with pytest.raises(ValueError, match="dilated_kernel_size must not exceed"):
        im2col(torch.ones(1, 1, 4), P, dilated_kernel_size=5, version="v1")
