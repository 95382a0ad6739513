"""Tiles that lie in the padding, wholly or in part: what is around a tensor is not touched."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from DCLS.functional import direct_conv

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}

#: Size of the input, kernel, padding, stride, images, channels.
GEOMETRIES = [
    ((1, 4), (3, 3), 300, 1, 1, 1),
    ((4, 1), (3, 3), 300, 1, 1, 1),
    ((1, 4), (3, 3), 300, (2, 3), 2, 3),
    ((5,), (3,), 3000, 1, 1, 2),
    ((5,), (3,), 3000, 2, 17, 1),
    ((1, 2, 3), (2, 1, 3), (40, 20, 40), 1, 1, 1),
    ((2, 1), (3, 3), 40, 1, 17, 2),
]


def amid_nan(values: Tensor) -> Tensor:
    """The same values in the midst of NaN, in the same layout."""
    margin = 1 << 17
    room = values.new_full((values.numel() + 2 * margin,), math.nan)
    inside = room[margin:-margin].as_strided(values.shape, values.stride(), margin)
    return inside.copy_(values)


@pytest.mark.sanitizer
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_paddings_beyond_the_input(geometry: tuple, channels_last: bool, device: str) -> None:
    size, kernel_size, padding, stride, batch, channels = geometry
    if channels_last and len(size) == 1:
        pytest.skip("a line has one layout")
    layout = CHANNELS_LAST[len(size)] if channels_last else torch.contiguous_format
    torch.manual_seed(0)
    x = torch.randn(batch, channels, *size, device=device, dtype=torch.float64)
    x = amid_nan(x.to(memory_format=layout)).requires_grad_()
    kernel = torch.randn(channels, 1, *kernel_size, device=device, dtype=torch.float64)
    kernel = amid_nan(kernel).requires_grad_()
    arguments = (x, kernel, None, stride, padding, 1, channels)
    got, want = direct_conv(*arguments), CONV[len(size)](*arguments)
    assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)
    cotangent = amid_nan(torch.randn_like(want).to(memory_format=layout))
    for a, b in zip(
        torch.autograd.grad(got, (x, kernel), cotangent),
        torch.autograd.grad(want, (x, kernel), cotangent),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)
