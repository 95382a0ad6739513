"""Surgery on models as users have them: of timm, with what is in them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layers import assert_close
from packages import import_or_skip, without_their_warnings
from torch import nn

import DCLS


def is_regular(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)


@without_their_warnings
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("name", "size", "count", "more"),
    [
        ("convnext_atto", 17, 12, {}),
        ("mobilenetv3_small_100", 17, 11, {}),
        ("resnet18", 5, 16, {"filter_fn": is_regular}),
    ],
)
def test_the_trained_kernels_stay(
    name: str, size: int, count: int, more: Any, dtype: torch.dtype
) -> None:
    timm = import_or_skip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).to(dtype).eval()
    with torch.no_grad():
        # As created, scales of 0 and 1e-6 hide the convolutions from the output.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1)
    x = torch.randn(1, 3, 64, 64, dtype=dtype)
    relative = 1e-12 if dtype == torch.float64 else 1e-5
    with torch.no_grad():
        want = model(x)
        report = DCLS.convert_(model, start="kernel", dilated_kernel_size=size, **more)
        assert len(report) == count
        assert_close(model(x), want, relative)
        assert_close(DCLS.fold(model)(x), want, relative)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model(torch.cat([x, -x])).square().mean().backward()
    layers = [m for m in model.modules() if hasattr(m, "clamp_parameters")]
    before = [m.P.clone() for m in layers]
    optimizer.step()
    assert len(layers) == count
    moved = [not torch.equal(m.P, P) for m, P in zip(layers, before, strict=True)]
    assert all(moved)
    model.eval()
    with torch.no_grad():
        want = model(x)
        assert (want - DCLS.fold(model, inplace=True)(x)).abs().max() <= relative * want.abs().max()
    assert not any(type(m).__module__.startswith("DCLS") for m in model.modules())
