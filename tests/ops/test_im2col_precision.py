"""Sixteen bits in im2col_conv: gradients of columns have neither their range nor their rounding."""

from __future__ import annotations

import pytest
import torch
from support import relative_error

from DCLS.functional import DEFAULT_WORKSPACE, im2col_conv
from DCLS.im2col.modules import Dcls1d

HALVES = [torch.float16, torch.bfloat16]
#: Their rounding: half a unit in the last place.
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
LEAVES = ("input", "weight", "P", "SIG")


def gradients(tensors, grad, dtype, **options):
    """Of input, weight, P and SIG; the last two have at least float32."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    dtypes = dict(zip(LEAVES, (dtype, dtype, wide, wide), strict=True))
    leaves = {n: tensors[n].to(dtypes[n]).detach().requires_grad_() for n in LEAVES}
    x, weight, P, SIG = leaves.values()
    im2col_conv(x, weight, None, P, SIG, version="gauss", **options).backward(grad.to(dtype))
    return {name: leaf.grad for name, leaf in leaves.items()}


def problem(dtype, outputs, scale, size, grid):
    """Values that the dtype holds, in float64."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tensors = {
        "input": normal(2, 4, size).to(dtype).double(),
        "weight": (normal(outputs, 4, 3) * scale).to(dtype).double(),
        "P": (normal(1, 4, 3) * grid / 8).float().double(),
        "SIG": torch.full((1, 4, 3), 2.0, dtype=torch.float64),
    }
    return tensors, generator


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("workspace", [None, 200])
def test_results_that_fit_do_not_overflow(dtype, workspace, device):
    # The gradient of a column is about 1e5, which float16 does not hold; that of the input is not,
    # since an element of this width has taps of a tenth.
    tensors, _ = problem(dtype, 100, 0.0, 300, 31)
    tensors["weight"] += 1e3
    options = {"dilated_kernel_size": 31, "stride": 15, "workspace": workspace}
    grad = torch.full((2, 100, (300 - 31) // 15 + 1), 0.9, dtype=dtype).double()
    want = gradients(tensors, grad, torch.float64, **options)
    moved = {name: tensor.to(device) for name, tensor in tensors.items()}
    got = gradients(moved, grad.to(device), dtype, **options)
    assert 1e4 < want["input"].abs().max() < 6e4
    for name in LEAVES:
        assert relative_error(got[name].cpu(), want[name]) < ROUNDING[dtype], name


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("workspace", [None, 200])
def test_gradients_are_rounded_once(dtype, workspace, device):
    tensors, generator = problem(dtype, 20, 0.1, 300, 31)
    options = {"dilated_kernel_size": 31, "stride": 2, "workspace": workspace}
    grad = torch.randn(2, 20, (300 - 31) // 2 + 1, generator=generator).to(dtype).double()
    want = gradients(tensors, grad, torch.float64, **options)
    moved = {name: tensor.to(device) for name, tensor in tensors.items()}
    got = gradients(moved, grad.to(device), dtype, **options)
    for name in ("input", "weight"):  # a rounding's error is spread evenly: its norm is smaller
        assert relative_error(got[name].cpu(), want[name]) < 0.6 * ROUNDING[dtype], name
    for name in ("P", "SIG"):  # no sixteen bits on the way
        assert relative_error(got[name].cpu(), want[name]) < 1e-5, name


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_pieces_are_added_in_float32(dtype, device):
    # Each of 600 outputs adds as much as the one before: in sixteen bits the sum stops growing.
    tensors = {
        "input": torch.ones(1, 1, 600),
        "weight": torch.ones(1, 1, 1),
        "P": torch.zeros(1, 1, 1),
        "SIG": torch.full((1, 1, 1), 1000.0),
    }
    grad = torch.ones(1, 1, 600, dtype=torch.float64)
    options = {"dilated_kernel_size": 601, "padding": 300, "workspace": 8}
    want = gradients(tensors, grad, torch.float64, **options)
    moved = {name: tensor.to(device) for name, tensor in tensors.items()}
    got = gradients(moved, grad.to(device), dtype, **options)
    assert relative_error(got["input"].cpu(), want["input"]) < ROUNDING[dtype]
    assert relative_error(got["weight"].cpu(), want["weight"]) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_the_default_workspace_grows_to_one_output(dtype, device):
    channels, elements = 65_536, 64 if dtype == torch.float32 else 96
    least = channels * elements * dtype.itemsize
    assert least > DEFAULT_WORKSPACE["cpu"]
    layer = Dcls1d(channels, 1, elements, dilated_kernel_size=3, version="v1", bias=False)
    layer = layer.to(device, dtype)
    x = torch.ones(1, channels, 4, device=device, dtype=dtype, requires_grad=True)
    output = layer(x)
    assert output.shape == (1, 1, 2)
    output.sum().backward()
    assert x.grad.isfinite().all()
    layer.workspace = least - 1
    with pytest.raises(ValueError, match=f"workspace must be at least {least} bytes"):
        layer(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (4, 4), (4, 1)])
def test_the_least_workspace_is_enough(dtype, channels, groups, device):
    x = torch.ones(2, channels, 20, device=device, dtype=dtype, requires_grad=True)
    weight = torch.ones(channels, channels // groups, 3, device=device, dtype=dtype)
    P = torch.zeros(1, channels, 3, device=device).to(torch.promote_types(dtype, torch.float32))
    options = {"dilated_kernel_size": 5, "version": "v1", "groups": groups}
    with pytest.raises(ValueError, match="workspace must be at least") as raised:
        im2col_conv(x, weight, None, P, workspace=1, **options)
    least = int(str(raised.value).split("at least ")[1].split()[0])
    for tensors in ((x, weight, None, P), (x.to("meta"), weight.to("meta"), None, P.to("meta"))):
        with pytest.raises(ValueError, match=f"at least {least} bytes"):
            im2col_conv(*tensors, workspace=least - 1, **options)
    weight.requires_grad_()
    P.requires_grad_()
    im2col_conv(x, weight, None, P, workspace=least, **options).sum().backward()
    assert all(t.grad.isfinite().all() for t in (x, weight, P))
