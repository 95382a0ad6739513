"""Widths from the smallest to the largest number: finite where the reference is."""

from __future__ import annotations

import math

import pytest
import torch
from support import SIGMA_VERSIONS

from DCLS import reference
from DCLS.functional import construct_kernel, im2col

#: From a denormal number to the largest; float64 has further ones.
WIDTHS = [1e-45, 1e-42, 1e-39, 1.2e-38, 1e-37, 1e-30, 1e-19, 1e-10, 1e-3, 1.0, 1e3, 1e19, 1e37]
WIDER = [5e-324, 1e-310, 1e-200, *WIDTHS, 1e38, 1e100, 1e150]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float64: 1e-12}


def widths(dtype):
    return WIDER if dtype == torch.float64 else WIDTHS


@pytest.mark.parametrize("as_sigma_min", [True, False])
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("version", SIGMA_VERSIONS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_any_width(dtype, version, ndim, as_sigma_min, device):
    size = (5, 4, 3)[:ndim]
    wide = torch.promote_types(dtype, torch.float32)
    # On grid points and off them; an element has one of these on all axes.
    P = torch.tensor([0.0, 1.0, -1.0, 0.25, -0.5]).expand(ndim, 1, 5)
    for width in widths(dtype):
        stored = torch.tensor(width, dtype=torch.float64).to(dtype)
        if not as_sigma_min and (stored == 0 or stored.isinf()):
            continue  # not a width of this dtype
        raw = torch.zeros(ndim, 1, 5) if as_sigma_min else torch.full((ndim, 1, 5), 1.0)
        raw = raw.double() * (1 if as_sigma_min else width)
        options = {
            "dilated_kernel_size": size,
            "version": version,
            "sigma_min": width if as_sigma_min else min(width, 1e-3),
        }
        if not as_sigma_min and width < 1e-3:
            options["sigma_min"] = 1e-45

        def run(function, dtype, device, raw=raw, options=options):
            leaves = [
                t.to(device, dtype).detach().requires_grad_()
                for t in (torch.arange(1.0, 6).expand(1, 5), P, raw)
            ]
            kernel = function(*leaves, **options)
            return [kernel, *torch.autograd.grad(kernel.sum(0).square().sum(), leaves)]

        got = run(construct_kernel, dtype, device)
        # The gradients of such narrow elements pass the range of their dtype.
        want = [t.to(dtype) for t in run(reference.construct_kernel, wide, "cpu")]
        for name, a, b in zip(("kernel", "weight", "P", "SIG"), got, want, strict=True):
            a = a.detach().cpu()
            finite = b.isfinite()
            assert a[finite].isfinite().all(), (name, width, a, b)
            if name in ("kernel", "weight"):
                torch.testing.assert_close(
                    a[finite], b[finite].detach(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
                )


@pytest.mark.parametrize("version", SIGMA_VERSIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_any_width_of_im2col(dtype, version, device):
    x = torch.arange(1.0, 9, dtype=dtype, device=device).view(1, 1, 8).requires_grad_()
    for width in widths(dtype):
        if width > 1e30 and dtype == torch.float32:
            continue  # sums of the taps of max, before they are normalised, pass the range
        P = torch.tensor([[[0.0, 1.0, 0.25]]], dtype=dtype, device=device).requires_grad_()
        SIG = torch.zeros_like(P).requires_grad_()
        columns = im2col(x, P, SIG, dilated_kernel_size=3, version=version, sigma_min=width)
        assert columns.isfinite().all(), width
        by_x, by_P, _ = torch.autograd.grad(columns.sum(), (x, P, SIG))
        assert by_x.isfinite().all(), width
        assert math.isfinite(by_P.abs().max()), width


@pytest.mark.parametrize("raw", [1e-45, -1e-40, 1e-39])
def test_the_sign_of_a_denormal_width(raw, device):
    P = torch.tensor([[0.3]], device=device)
    weight = torch.ones(1, device=device)
    SIG = torch.tensor([[raw]], device=device, requires_grad=True)
    kernel = construct_kernel(weight, P, SIG, dilated_kernel_size=5, sigma_min=0.5)
    kernel[2].backward()
    more = torch.tensor([[abs(raw)]], device=device, requires_grad=True)
    construct_kernel(weight, P, more, dilated_kernel_size=5, sigma_min=0.5)[2].backward()
    assert SIG.grad.item() == math.copysign(1, raw) * more.grad.item() != 0
