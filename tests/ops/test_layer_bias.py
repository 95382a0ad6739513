"""The gradient of a layer's bias: a sum over batch and space that may be long."""

from __future__ import annotations

import pytest
import torch

from DCLS import Dcls2d


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_long_sums_keep_their_digits(
    dtype: torch.dtype, layout: torch.memory_format, device: str
) -> None:
    """A million equal values in one float32 sum would be off by a thousandth."""
    module = Dcls2d(3, 3, 1, dilated_kernel_size=1, groups=3, version="v1", method="direct")
    module = module.to(device, dtype)
    output = module(
        torch.zeros(1, 3, 1024, 1024, device=device, dtype=dtype).to(memory_format=layout)
    )
    value = torch.tensor(0.0007, dtype=dtype)
    output.backward(torch.full_like(output, value.item()))
    want = torch.full((3,), value.double().item() * 2**20, dtype=torch.float64)
    # Float32 sums of 256 values, which are added up in float64; 16 bits round once.
    eps = torch.finfo(dtype).eps / 2 * (256 if dtype == torch.float32 else 1)
    assert module.bias.grad is not None
    torch.testing.assert_close(module.bias.grad.cpu().double(), want, rtol=eps, atol=0)
