"""The direct convolution against torch's own in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from support import SIGMA_VERSIONS, VERSIONS, relative_error
from torch import Tensor

from DCLS import _C
from DCLS.functional import construct_kernel, direct_conv

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}

#: Largest norm-wise error against float64; half types round their results once.
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 3e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}


@dataclass
class Case:
    """A convolution: shapes and settings."""

    size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    batch: int = 2
    groups: int = 1
    inputs: int = 1  # channels of a group
    outputs: int = 1
    stride: tuple[int, ...] | int = 1
    padding: tuple[int, ...] | int = 0
    dilation: tuple[int, ...] | int = 1
    density: float = 0.4
    bias: bool = True
    channels_last: bool = False

    @property
    def settings(self) -> tuple[object, ...]:
        return self.stride, self.padding, self.dilation, self.groups

    def tensors(self, dtype: torch.dtype, device: str, seed: int = 0) -> list[Tensor]:
        """Input, kernel, bias and support, as leaves."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            values = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return values.to(device=device, dtype=dtype)

        x = normal(self.batch, self.groups * self.inputs, *self.size)
        kernel = normal(self.groups * self.outputs, self.inputs, *self.kernel_size)
        support = torch.rand(kernel.shape, generator=generator) < self.density
        support = support.to(device)
        if self.channels_last:
            x = x.to(memory_format=CHANNELS_LAST[len(self.size)])
        bias = normal(len(kernel)) if self.bias else None
        return [x, kernel * support, bias, support]


def run(function, case: Case, tensors: list[Tensor], seed: int = 1) -> dict[str, Tensor]:
    """The output and the gradients that `function` gives."""
    x, kernel, bias = (None if t is None else t.detach().requires_grad_() for t in tensors[:3])
    leaves = [t for t in (x, kernel, bias) if t is not None]
    output = function(x, kernel, bias, *case.settings)
    generator = torch.Generator().manual_seed(seed)
    cotangent = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    # Rounded as the tested dtype rounds, so that both sides get the same numbers.
    cotangent = cotangent.to(tensors[3].dtype if tensors[3].is_floating_point() else output.dtype)
    grads = torch.autograd.grad(output, leaves, cotangent.to(output))
    return dict(zip(("output", "input", "kernel", "bias"), (output, *grads), strict=False))


def check(case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu") -> None:
    tensors = case.tensors(dtype, device)
    support = tensors[3]
    conv = CONV[len(case.size)]
    # On the CPU: on a GPU, what watches kernels should see only ours.
    wide = [None if t is None else t.cpu().double() for t in tensors[:3]]
    # The last entry tells run() how to round the cotangent.
    expected = run(conv, case, [*wide, torch.empty(0, dtype=dtype)])
    got = run(lambda *args: direct_conv(*args, support), case, tensors)
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        assert tensor.dtype == dtype
        want = expected[name] * support.cpu() if name == "kernel" else expected[name]
        if name == "bias" and dtype in (torch.float16, torch.bfloat16):
            continue  # a sum of torch's own
        error = relative_error(tensor, want, floor=1e-3)
        assert error <= TOLERANCE[dtype], f"{name}: {error:.1e} in {case}"
    if not tensors[0].is_contiguous():  # channels last, and not both at once
        assert got["output"].is_contiguous(memory_format=CHANNELS_LAST[len(case.size)])


USUAL = [
    Case((56, 50), (17, 17), groups=5, padding=8, density=0.5),
    Case((28, 28), (23, 23), groups=20, padding=11, density=1.0, channels_last=True),
    Case((14, 14), (7, 7), groups=18, padding=3, channels_last=True),
    # So many cells that the CPU takes the fast FIR algorithm.
    Case((60, 45), (17, 19), groups=3, padding=(8, 12), density=0.9),
    Case((64, 40), (14, 17), groups=3, outputs=2, padding=(0, 8), density=0.9, channels_last=True),
    Case((7, 7), (17, 17), groups=4, padding=8),
    Case((200,), (129,), groups=6, padding=64, density=0.2),
    Case((100,), (25,), inputs=40, outputs=33, padding=12, density=0.08, batch=3),
    Case((6, 16, 18), (5, 5, 5), groups=3, padding=2, density=0.2),
    Case((20, 21), (5, 4), inputs=6, outputs=7, groups=2, stride=(2, 3), padding=(2, 1)),
    Case((30, 31), (5, 3), groups=3, dilation=(2, 3), stride=(2, 1), padding=4),
    # Batches that are worth a vector, which the CPU takes for columns.
    Case((100,), (25,), inputs=40, outputs=33, padding=12, density=0.08, batch=33),
    Case((7, 7), (17, 17), groups=18, padding=8, density=0.4, batch=16),
    Case((5, 6), (4, 5), inputs=3, outputs=5, groups=6, padding=2, batch=20, channels_last=True),
]

ODD = [
    Case((300, 260), (9, 9), groups=2, padding=4),  # several tiles
    Case((3000,), (700,), groups=2, padding=350, density=0.05),
    Case((100000,), (17,), groups=1, padding=8, batch=1),
    Case((40, 40, 60), (5, 3, 3), groups=1, padding=1, batch=1),
    Case((150, 200), (5, 5), inputs=3, outputs=2, stride=2, padding=2),
    Case((1, 40), (3, 9), padding=(1, 4), groups=2),  # a single row
    Case((40, 1), (9, 3), padding=(4, 1), groups=2),
    Case((5, 1, 40), (3, 3, 9), padding=(1, 1, 4), groups=2),
    Case((1, 1), (3, 3), padding=7, groups=3),  # one pixel, padding beyond it
    Case((2, 3), (9, 9), padding=(4, 4), groups=2),  # a kernel larger than the input
    Case((12, 12), (3, 3), stride=5, groups=2),  # cells that some phases lack
    Case((9, 9), (3, 3), batch=1, groups=1, inputs=200, outputs=3),  # blocks of channels
    Case((9, 9), (3, 3), batch=1, groups=1, inputs=2, outputs=150, channels_last=True),
    Case((3000,), (5,), inputs=3, outputs=2, padding=2, batch=40),  # the batch as columns, in tiles
    Case((70, 4), (5, 3), groups=2, stride=(3, 1), dilation=(2, 1), padding=(4, 1), batch=150),
    Case((1, 1), (3, 3), padding=7, groups=3, batch=17, channels_last=True),
    Case((23,), (11,), inputs=2, outputs=3, padding=30, dilation=4, batch=16),
]


def entries(ndim: int, numbers: st.SearchStrategy[int]) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[numbers] * ndim)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    ndim = draw(st.integers(1, 3))
    longest = {1: 70, 2: 21, 3: 8}[ndim]
    size = draw(entries(ndim, st.integers(1, longest)))
    kernel_size = draw(entries(ndim, st.integers(1, {1: 40, 2: 9, 3: 4}[ndim])))
    dilation = draw(entries(ndim, st.integers(1, 3)))
    # At least as much as the kernel needs, sometimes more than the whole input.
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel_size, strict=True)]
    least = [max(0, -(-(span - n) // 2)) for span, n in zip(spans, size, strict=True)]
    padding = tuple(
        draw(st.sampled_from([n, n + 1, n + (span - 1) // 2, n + span]))
        for n, span in zip(least, spans, strict=True)
    )
    depthwise = draw(st.booleans())
    return Case(
        size,
        kernel_size,
        batch=draw(st.integers(1, 3) | st.integers(8, 40)),
        groups=draw(st.integers(1, 19 if depthwise else 3)),
        inputs=1 if depthwise else draw(st.integers(1, 5)),
        outputs=draw(st.integers(1, 3)),
        stride=draw(entries(ndim, st.integers(1, 3))),
        padding=padding,
        dilation=dilation,
        density=draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
        bias=draw(st.booleans()),
        channels_last=ndim > 1 and draw(st.booleans()),
    )


@settings(deadline=None, max_examples=150)
@given(cases())
def test_random_shapes(case: Case) -> None:
    check(case)


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", USUAL, ids=str)
def test_usual_shapes(case: Case, dtype: torch.dtype, device: str) -> None:
    check(case, dtype, device)


@pytest.mark.sanitizer
@pytest.mark.parametrize("case", ODD, ids=str)
def test_odd_shapes(case: Case, device: str) -> None:
    check(case, torch.float64, device)


def test_empty_batch(device: str) -> None:
    x = torch.randn(0, 4, 9, 9, device=device, requires_grad=True)
    kernel = torch.randn(4, 1, 5, 5, device=device, requires_grad=True)
    output = direct_conv(x, kernel, padding=2, groups=4)
    assert output.shape == (0, 4, 9, 9)
    grad_input, grad_kernel = torch.autograd.grad(output.sum(), (x, kernel))
    assert grad_input.shape == x.shape
    assert torch.equal(grad_kernel, torch.zeros_like(kernel))


def test_empty_axis(device: str) -> None:
    """An input without points gives outputs nevertheless, if there is padding enough."""
    x = torch.randn(2, 4, 0, 8, device=device, requires_grad=True)
    kernel = torch.randn(4, 1, 3, 3, device=device, requires_grad=True)
    output = direct_conv(x, kernel, padding=2, groups=4)
    assert torch.equal(output, torch.zeros(2, 4, 2, 10, device=device))
    grad_input, grad_kernel = torch.autograd.grad(output.sum(), (x, kernel))
    assert grad_input.shape == x.shape
    assert torch.equal(grad_kernel, torch.zeros_like(kernel))


# torch's own, about its own way of padding an even kernel.
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_unbatched_and_named_paddings(device: str) -> None:
    x = torch.randn(4, 9, 11, dtype=torch.float64, device=device)
    for size in ((3, 5), (4, 6), (1, 2)):
        kernel = torch.randn(4, 1, *size, dtype=torch.float64, device=device)
        for padding in ("same", "valid", 2, (1, 3), [2]):
            for dilation in (1, 2):
                expected = F.conv2d(x, kernel, None, 1, padding, dilation, 4)
                got = direct_conv(x, kernel, None, 1, padding, dilation, 4)
                assert torch.allclose(got, expected, atol=1e-12), (size, padding, dilation)


def test_input_that_is_not_contiguous(device: str) -> None:
    whole = torch.randn(4, 6, 20, 22, dtype=torch.float64, device=device)
    kernel = torch.randn(3, 6, 3, 5, dtype=torch.float64, device=device).transpose(2, 3)
    for x in (whole[::2, :, 3:, ::2], whole.transpose(2, 3), whole.expand(4, 6, 20, 22)[:, :6]):
        expected = F.conv2d(x, kernel, padding=1)
        assert torch.allclose(direct_conv(x, kernel, padding=1), expected, atol=1e-12)


def test_zero_cells_are_not_visited(device: str) -> None:
    """An infinite input reaches an output through a non-zero cell only."""
    x = torch.zeros(1, 1, 9, device=device)
    x[0, 0, 4] = torch.inf
    kernel = torch.tensor([[[0.0, 2.0, 0.0]]], device=device)
    got = direct_conv(x, kernel, padding=1)
    assert got[0, 0, 4] == torch.inf
    assert torch.equal(got.isfinite().sum(), torch.tensor(8, device=device))


def test_nan_in_the_kernel_reaches_the_output(device: str) -> None:
    kernel = torch.zeros(2, 1, 3, 3, device=device)
    kernel[1, 0, 1, 1] = torch.nan
    output = direct_conv(torch.ones(1, 2, 5, 5, device=device), kernel, padding=1, groups=2)
    assert output[0, 0].isfinite().all()
    assert output[0, 1].isnan().all()


def test_support_of_a_constructed_kernel_is_all_its_elements_need(device: str) -> None:
    weight = torch.randn(6, 1, 5, dtype=torch.float64, device=device, requires_grad=True)
    P = (torch.randn(2, 6, 1, 5, dtype=torch.float64, device=device) * 3).requires_grad_()
    SIG = torch.rand_like(P).detach().requires_grad_()
    x = torch.randn(2, 6, 12, 13, dtype=torch.float64, device=device)
    for version in VERSIONS:
        inputs = [weight, P, SIG] if version in SIGMA_VERSIONS else [weight, P]
        kernel, support = construct_kernel(
            *inputs, dilated_kernel_size=(9, 11), version=version, return_support=True
        )
        output = direct_conv(x, kernel, padding=(4, 5), groups=6, support=support)
        cotangent = torch.randn_like(output)
        got = torch.autograd.grad(output, inputs, cotangent, retain_graph=True)
        expected = F.conv2d(x, kernel, padding=(4, 5), groups=6)
        for a, b in zip(got, torch.autograd.grad(expected, inputs, cotangent), strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-9), version


def results(threads: int) -> list[Tensor]:
    case = Case((40, 37), (9, 9), groups=7, outputs=2, padding=4, batch=5)
    tensors = case.tensors(torch.float32, "cpu")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        one = run(lambda *args: direct_conv(*args, tensors[3]), case, tensors)
        dense = Case((60,), (9,), inputs=20, outputs=24, padding=4, batch=9)
        two = run(direct_conv, dense, dense.tensors(torch.float32, "cpu"))
        folded = Case((60,), (9,), inputs=20, outputs=24, padding=4, batch=32)
        three = run(direct_conv, folded, folded.tensors(torch.float32, "cpu"))
    finally:
        torch.set_num_threads(before)
    return [*one.values(), *two.values(), *three.values()]


def test_results_do_not_depend_on_the_thread_count() -> None:
    expected = results(1)
    for threads in (2, 3, 7):
        for a, b in zip(results(threads), expected, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("level", _C.build_info()["simd_compiled"])
def test_every_instruction_set(level: str) -> None:
    """The usual and the odd shapes with each set of kernels that can run here."""
    program = (
        "import torch\n"
        "from tests.ops.test_direct_conv import ODD, USUAL, check\n"
        "from DCLS import _C\n"
        "for case in USUAL + ODD:\n"
        "    for dtype in (torch.float64, torch.float16, torch.bfloat16):\n"
        "        check(case, dtype)\n"
        "print(_C.build_info()['simd'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "DCLS_SIMD": level, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "DCLS_SIMD must be one of" in done.stderr:
        pytest.skip(f"this machine cannot run {level}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == level


# The last gives ties for odd significands, half of which round down to an even one.
@pytest.mark.parametrize("factor", [1.0, 1 + 2**-7, 1.5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_every_half_value_is_converted_as_torch_does(
    layout: torch.memory_format, dtype: torch.dtype, factor: float, device: str
) -> None:
    """All bit patterns in, and rounded products out: the products are exact in float32."""
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    x = bits.view(dtype).reshape(1, 64, 32, 32).to(device).to(memory_format=layout)
    kernel = torch.full((64, 1, 1, 1), factor, dtype=dtype, device=device)
    got = direct_conv(x, kernel, groups=64)
    expected = (x.float() * factor).to(dtype)
    # Denormal float32 values, which only bfloat16 has, are flushed to zero.
    tiny = x.float().abs() < 2**-125
    same = (got == expected) | (got.isnan() & expected.isnan()) | (tiny & (got.abs() < 2**-125))
    assert same.all()
