"""Large strides, dilations and paddings: time and memory grow with what is read and written."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F

from DCLS import reference
from DCLS.functional import direct_conv, im2col_conv

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
FAR = 32768  # the largest stride, dilation and kernel

#: Input, kernel, stride, padding, dilation.
GEOMETRIES = [
    ((3 * FAR + 5,), (FAR,), FAR, 7, 1),
    ((FAR,), (3,), FAR, 1, 1),
    ((10,), (3,), 3, FAR, FAR),
    ((100,), (5,), 1, 100_000, 1),
    ((2 * FAR + 9,), (3,), 1, 0, FAR),
    ((500, 700), (3, 2), (100, 333), 1, 1),
    ((130, 140), (64, 70), (64, 70), 0, 1),
    ((9, 9), (3, 3), 2, 1000, (1000, 999)),
    ((5, 5), (2, 2), (FAR, 1), 1, 1),
    ((30, 31, 32), (10, 11, 9), (10, 11, 16), 2, 1),
    ((20, 1, 20), (2, 1, 2), (7, FAR, 19), 3, 1),
]


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_far_geometries_against_torch(geometry, layout, device):
    size, kernel_size, *settings = geometry
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-4, 5, (2, 3, *size), generator=generator).double()
    kernel = torch.randint(-4, 5, (3, 1, *kernel_size), generator=generator).double()
    want_x, want_kernel = x.clone().requires_grad_(), kernel.clone().requires_grad_()
    want = CONV[len(size)](want_x, want_kernel, None, *settings, groups=3)
    grad = torch.randint(-4, 5, want.shape, generator=generator).double()
    want.backward(grad)
    if layout == "last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    x, kernel = (t.to(device).requires_grad_() for t in (x, kernel))
    got = direct_conv(x, kernel, None, *settings, groups=3)
    got.backward(grad.to(device))
    assert torch.equal(got.cpu(), want)
    assert torch.equal(x.grad.cpu(), want_x.grad)
    assert torch.equal(kernel.grad.cpu(), want_kernel.grad)


def seconds(function) -> float:
    """Of this process's processors, at least."""
    times = []
    for _ in range(3):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.parametrize("backward", ["input", "kernel", None], ids=str)
def test_time_grows_with_the_stride_and_not_with_its_square(backward):
    def step(stride):
        x = torch.ones(1, 1, stride, requires_grad=backward == "input")
        kernel = torch.ones(1, 1, stride, requires_grad=backward == "kernel")

        def run():
            output = direct_conv(x, kernel, stride=stride)
            if backward is not None:
                output.sum().backward()

        return run

    few, many = seconds(step(FAR // 16)), seconds(step(FAR))
    assert many < 80 * max(few, 1e-3)  # 16 times the values; quadratic: 256


_PEAK = """
import resource, torch
from DCLS.functional import direct_conv, im2col_conv
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
torch.set_num_threads(1)
x = torch.ones(1, 1, 2500, 2500, requires_grad=True)
small = torch.ones(1, 1, 9, 9, requires_grad=True)
kernel = torch.ones(1, 1, {size}, requires_grad=True)
P = torch.zeros(2, 1, 1)
def run(x, kernel, stride, grid):
    if {direct}:
        direct_conv(x, kernel, stride=stride).sum().backward()
    else:
        weight = torch.ones(1, 1, 1)
        im2col_conv(x, weight, None, P, version="v1", dilated_kernel_size=grid,
                    stride=stride).sum().backward()
run(small, torch.ones(1, 1, 2, 2, requires_grad=True), (2, 2), (2, 2))
x.grad = torch.zeros_like(x)
before = peak()
run(x, kernel, (100, 1000), ({size}))
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts memory as Linux does")
@pytest.mark.parametrize("method", ["direct", "im2col"])
@pytest.mark.parametrize("size", ["3, 3", "100, 1000"])
def test_memory_grows_with_the_tensors(size, method):
    program = _PEAK.format(size=size, direct=method == "direct")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    # The input has 25 MB, and so has its gradient, which is then added to another.
    assert int(done.stdout) < 110e6


@pytest.mark.parametrize("stride", [1, 7, 50, FAR])
def test_im2col_with_far_strides(stride, device):
    generator = torch.Generator().manual_seed(1)
    size = min(stride, 40) + 30
    x = torch.randn(2, 2, size, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 2, 4, generator=generator, dtype=torch.float64)
    P = torch.randn(1, 2, 4, generator=generator, dtype=torch.float64) * 8
    SIG = torch.rand(1, 2, 4, generator=generator, dtype=torch.float64) * 3

    def run(function, device):
        leaves = [t.to(device).requires_grad_() for t in (x.clone(), weight.clone(), P.clone())]
        output = function(
            *leaves[:2],
            None,
            leaves[2],
            SIG.to(device),
            dilated_kernel_size=[40],
            stride=[stride],
            padding=[9, 9] if function is reference.im2col_conv else [9],
            groups=1,
            version="gauss",
            sigma_min=0.3,
        )
        return [output, *torch.autograd.grad(output.square().sum(), leaves)]

    for got, want in zip(run(im2col_conv, device), run(reference.im2col_conv, "cpu"), strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-9, atol=1e-9)
