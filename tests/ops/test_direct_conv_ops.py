"""The direct convolution as a citizen of torch, and its errors."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jacrev, vmap

from DCLS import _C
from DCLS.functional import direct_conv

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def tensors(ndim: int, device: str = "cpu", dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Input, kernel, bias: 4 to 6 channels in 2 groups."""
    torch.manual_seed(ndim)
    shapes = (2, 4, *(5, 6, 4)[:ndim]), (6, 2, *(3, 2, 3)[:ndim]), (6,)
    return [torch.randn(shape, device=device, dtype=dtype).requires_grad_() for shape in shapes]


def op_arguments(ndim: int, device: str = "cpu") -> list[object]:
    x, kernel, bias = tensors(ndim, device)
    support = torch.rand_like(kernel) < 0.6
    return [x, kernel, bias, support, [2] * ndim, [1] * ndim, [1] * ndim, 2]


def is_slow(device: str) -> bool:
    """Whether gradcheck's thousands of tiny calls would take a minute: each waits for the GPU."""
    return device == "cuda"


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_gradcheck_twice(ndim: int, device: str) -> None:
    x, kernel, bias = tensors(ndim, device)

    def conv(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        return direct_conv(x, kernel, bias, 2, 1, 1, 2)

    assert torch.autograd.gradcheck(conv, (x, kernel, bias), fast_mode=is_slow(device))
    assert torch.autograd.gradgradcheck(conv, (x, kernel, bias), fast_mode=is_slow(device))


def test_gradcheck_with_support(device: str) -> None:
    x, kernel, bias = tensors(2, device)
    support = torch.rand_like(kernel) < 0.5

    def conv(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        # The gradient of a cell that is masked out is zero: the mask says so on both sides.
        return direct_conv(x, kernel * support, bias, 1, 2, 2, 2, support)

    assert torch.autograd.gradcheck(conv, (x, kernel, bias), fast_mode=is_slow(device))
    assert torch.autograd.gradgradcheck(conv, (x, kernel, bias), fast_mode=is_slow(device))


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_frozen_arguments_get_no_gradient(frozen: int, device: str) -> None:
    leaves = tensors(2, device)
    leaves[frozen].requires_grad_(False)
    direct_conv(*leaves, 1, 1, 1, 2).square().sum().backward()
    for i, leaf in enumerate(leaves):
        assert (leaf.grad is None) == (i == frozen)


@pytest.mark.parametrize("frozen", [0, 1, 2, None])
def test_second_derivatives_with_frozen_arguments(frozen: int | None, device: str) -> None:
    leaves = tensors(2, device)
    if frozen is not None:
        leaves[frozen].requires_grad_(False)
    moving = [t for t in leaves if t.requires_grad]

    def second(conv) -> tuple[Tensor, ...]:
        output = conv(*leaves, 1, 1, 1, 2).sin().sum()
        grads = torch.autograd.grad(output, moving, create_graph=True)
        return torch.autograd.grad(sum(g.sin().sum() for g in grads), moving)

    for got, want in zip(second(direct_conv), second(F.conv2d), strict=True):
        assert torch.allclose(got, want)


def test_autocast_accepts_no_more_dtypes(device: str) -> None:
    x, kernel, bias = (t.detach() for t in tensors(2, device, torch.float32))
    with torch.autocast(device, torch.bfloat16), pytest.raises(TypeError, match="input must have"):
        direct_conv(x.long(), kernel, bias, 1, 1, 1, 2)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_opcheck(ndim: int, device: str) -> None:
    arguments = op_arguments(ndim, device)
    torch.library.opcheck(torch.ops.dcls.direct_conv.default, arguments)
    x, kernel, _, support, *geometry = arguments
    output = torch.ops.dcls.direct_conv(*arguments)
    for mask in ([True, True, True], [False, True, False]):
        torch.library.opcheck(
            torch.ops.dcls.direct_conv_backward.default,
            (torch.randn_like(output), x, kernel, support, *geometry, mask),
        )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(layout: torch.memory_format, dynamic: bool, device: str) -> None:
    torch._dynamo.reset()
    x, kernel, bias = tensors(2, device)
    x = x.detach().to(memory_format=layout).requires_grad_()

    def step(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        return direct_conv(x.sin(), kernel.abs(), bias, 1, "same", 1, 2).cos()

    got = torch.compile(step, fullgraph=True, dynamic=dynamic)(x, kernel, bias)
    expected = step(x, kernel, bias)
    assert torch.allclose(got, expected)
    for a, b in zip(
        torch.autograd.grad(got.sum(), (x, kernel, bias)),
        torch.autograd.grad(expected.sum(), (x, kernel, bias)),
        strict=True,
    ):
        assert torch.allclose(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_is_that_of_torchs_convolutions(dtype: torch.dtype, device: str) -> None:
    x, kernel, bias = tensors(2, device, torch.float32)
    with torch.autocast(device, dtype):
        got = direct_conv(x, kernel, bias, 1, 1, 1, 2)
        expected = F.conv2d(x, kernel, bias, 1, 1, 1, 2)
    assert got.dtype == expected.dtype == dtype
    assert torch.allclose(got.float(), expected.float(), atol=0.05)
    got.float().sum().backward()
    assert {t.grad.dtype for t in (x, kernel, bias)} == {torch.float32}
    with torch.autocast(device, dtype):
        double = [t.detach().double() for t in (x, kernel, bias)]
        assert direct_conv(*double, 1, 1, 1, 2).dtype == torch.float64


@pytest.mark.parametrize(
    "in_dims",
    [
        *[dims for dims in itertools.product((0, None), repeat=3) if any(d == 0 for d in dims)],
        (1, 2, 1),
    ],
    ids=str,
)
def test_vmap(in_dims: tuple[int | None, ...], device: str) -> None:
    batch = [
        t.detach() if d is None else torch.stack([t.detach() * n for n in (1, 2, 3)], d)
        for t, d in zip(tensors(2, device), in_dims, strict=True)
    ]

    def with_conv(conv):
        return vmap(lambda x, k, b: conv(x, k, b, 2, 1, 1, 2), in_dims=in_dims)(*batch)

    assert torch.allclose(with_conv(direct_conv), with_conv(F.conv2d))


def test_functional_transforms(device: str) -> None:
    x, kernel, bias = (t.detach() for t in tensors(1, device))

    def loss(conv):
        def of(kernel: Tensor, x: Tensor) -> Tensor:
            return conv(x[None], kernel, bias, 1, 1, 1, 2).square().sum()

        return of

    for transform in (
        lambda f: vmap(grad(f), in_dims=(None, 0))(kernel, x),  # per-sample gradients
        lambda f: grad(lambda k: vmap(f, in_dims=(None, 0))(k, x).sum())(kernel),
        lambda f: jacrev(grad(f))(kernel, x[0]),
    ):
        assert torch.allclose(transform(loss(direct_conv)), transform(loss(F.conv1d)))


def test_export(device: str) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, kernel: Tensor) -> Tensor:
            return direct_conv(x, kernel, padding=1, groups=2)

    x, kernel, _ = (t.detach() for t in tensors(2, device))
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        Model(), (x, kernel), dynamic_shapes={"x": {0: batch}, "kernel": None}
    )
    assert torch.allclose(program.module()(x[:1], kernel), Model()(x[:1], kernel))


def good(**changes: object) -> dict[str, object]:
    x, kernel, bias = (t.detach() for t in tensors(2))
    return {"input": x, "kernel": kernel, "bias": bias, "groups": 2, **changes}


HALF = torch.float16
BAD = {
    "input: list": (good(input=[1.0]), TypeError, "input must be a Tensor, got list"),
    "kernel: None": (good(kernel=None), TypeError, "kernel must be a Tensor, got NoneType"),
    "bias: float": (good(bias=0.0), TypeError, "bias must be a Tensor or None, got float"),
    "support: list": (good(support=[]), TypeError, "support must be a Tensor or None, got list"),
    "input: integer": (
        good(input=torch.ones(2, 4, 5, 6, dtype=torch.int64)),
        TypeError,
        "input must have a dtype out of .*float32.*, got torch.int64",
    ),
    "input: axes": (good(input=torch.ones(4).double()), ValueError, "input must have shape"),
    "input: channels": (
        good(input=torch.ones(2, 3, 5, 6).double()),
        ValueError,
        r"input must have groups \* kernel.shape\[1\] = 4 channels, got 3",
    ),
    "kernel: axes": (
        good(kernel=torch.ones(6, 2)),
        ValueError,
        r"kernel must have shape .* with 1 to 3 axes, got \(6, 2\)",
    ),
    "kernel: 4 axes": (good(kernel=torch.ones(1, 1, 1, 1, 1, 1)), ValueError, "1 to 3 axes"),
    "kernel: dtype": (
        good(kernel=torch.ones(6, 2, 3, 3, dtype=HALF)),
        TypeError,
        "kernel must have the dtype of input, torch.float64, got torch.float16",
    ),
    "kernel: device": (
        good(kernel=torch.ones(6, 2, 3, 3, dtype=torch.float64, device="meta")),
        ValueError,
        "kernel must be on the device of input, cpu, got meta",
    ),
    "kernel: too large": (
        good(kernel=torch.ones(6, 2, 3, 9, dtype=torch.float64)),
        ValueError,
        "kernel must fit the padded input: on axis 1 it spans 9 points of 6",
    ),
    "kernel: too large by dilation": (good(dilation=(3, 1)), ValueError, "spans 7 points of 5"),
    "bias: shape": (
        good(bias=torch.ones(5).double()),
        ValueError,
        r"bias must have shape \(out_channels,\) = \(6,\), got \(5,\)",
    ),
    "bias: dtype": (good(bias=torch.ones(6)), TypeError, "bias must have the dtype of input"),
    "support: dtype": (
        good(support=torch.ones(6, 2, 3, 2)),
        TypeError,
        "support must have dtype torch.bool, got torch.float32",
    ),
    "support: shape": (
        good(support=torch.ones(6, 2, 3, 3, dtype=torch.bool)),
        ValueError,
        r"support must have the shape of kernel, \(6, 2, 3, 2\), got \(6, 2, 3, 3\)",
    ),
    "support: device": (
        good(support=torch.ones(6, 2, 3, 2, dtype=torch.bool, device="meta")),
        ValueError,
        "support must be on the device of input",
    ),
    "stride: zero": (good(stride=0), ValueError, r"stride must have 2 entries of at least 1"),
    "stride: float": (good(stride=1.5), TypeError, "stride must be an int or a sequence"),
    "stride: floats": (good(stride=(1.0, 2.0)), TypeError, "stride must hold ints"),
    "stride: too many": (good(stride=(1, 1, 1)), ValueError, "stride must have 1 or 2 entries"),
    "padding: negative": (good(padding=-1), ValueError, "padding must have .* at least 0"),
    "padding: word": (good(padding="full"), ValueError, "padding must be 'same', 'valid'"),
    "padding: None": (good(padding=None), TypeError, "padding must be an int or a sequence"),
    "padding: same and stride": (
        good(padding="same", stride=2),
        ValueError,
        "padding='same' takes a stride of 1 only, got stride=",
    ),
    "dilation: zero": (good(dilation=(1, 0)), ValueError, "dilation must have .* at least 1"),
    "dilation: bool": (good(dilation=True), TypeError, "dilation must be an int or a sequence"),
    "groups: zero": (good(groups=0), ValueError, "groups must be at least 1 and divide"),
    "groups: no divisor": (good(groups=4), ValueError, "groups must be at least 1 and divide"),
    "groups: float": (good(groups=2.0), TypeError, "groups must be an int"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        direct_conv(**arguments)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kernel": torch.ones(6, 2, 3, 0)},
            r"kernel must have from 1 to 16777216 points .*3, 0\)",
        ),
        ({"stride": (1, 2**24 + 1)}, "stride must have .* at most 16777216, got"),
        ({"dilation": 2**24 + 1, "padding": 2**25}, "dilation must have .* at most 16777216, got"),
        ({"padding": 2**31 + 1}, "padding must have .* at most 2147483648, got"),
    ],
    ids=str,
)
def test_bounds_are_those_of_the_native_library(
    changes: dict[str, object], message: str, device: str
) -> None:
    arguments = {**good(), **changes}
    tensors = {k: v.double().to(device) for k, v in arguments.items() if isinstance(v, Tensor)}
    with pytest.raises(ValueError, match=message):
        direct_conv(**{**arguments, **tensors})


@pytest.mark.parametrize(
    ("grad_output", "error"),
    [
        (torch.ones(2, 6, 3, 4, dtype=torch.float64), ValueError),
        (torch.ones(2, 6, 3, 5), TypeError),
        (torch.ones(2, 6, 3, 5, dtype=torch.float64, device="meta"), ValueError),
    ],
)
def test_bad_grad_output(grad_output: Tensor, error: type[Exception]) -> None:
    x, kernel, _ = (t.detach() for t in tensors(2))
    geometry = ([1, 1], [0, 0], [1, 1], 2)
    with pytest.raises(error, match="grad_output must"):
        torch.ops.dcls.direct_conv_backward(
            grad_output, x, kernel, None, *geometry, [True, True, True]
        )


GOOD_PROBLEM = (0, 0, 1, 2, 2, 1, [4], [4], [3], [1], [1], [1])
EXECUTION = (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, 7, "dtype has no enumerator 7"),
        (1, 2, "layout has no enumerator 2"),
        (2, -1, "batch must be between"),
        (3, 3, "in_channels must be a multiple"),
        (4, -2, "out_channels must be between"),
        (5, 0, "groups must be between"),
        (6, [-1], r"input_size\[0\] must be between"),
        (7, [1 << 40], r"output_size\[0\] must be between"),
        (8, [0], r"kernel_size\[0\] must be between"),
        (8, [1 << 30], r"kernel_size\[0\] must be between"),
        (9, [0], r"stride\[0\] must be between"),
        (10, [1 << 40], r"padding\[0\] must be between"),
        (11, [0], r"dilation\[0\] must be between"),
        (9, [1, 1], "stride must have 1 to 3 entries"),
        (8, [], "kernel_size must have 1 to 3 entries"),
        (2, 1 << 62, "is too large"),
    ],
)
def test_bad_problems_of_the_native_library(at: int, value: object, message: str) -> None:
    problem = list(GOOD_PROBLEM)
    problem[at] = value
    if at == 3:
        problem[5] = 2
    with pytest.raises(ValueError, match=message):
        _C.direct_conv_workspace(_C.ConvProblem(*problem), 0, _C.Execution(*EXECUTION))


def test_bytes_of_the_kernel_are_bounded() -> None:
    """2^62 values: their number fits 64 bits, their bytes do not."""
    problem = list(GOOD_PROBLEM)
    problem[4], problem[8], problem[10] = 1 << 37, [1 << 24], [1 << 24]
    with pytest.raises(ValueError, match="the kernel is too large"):
        _C.direct_conv_workspace(_C.ConvProblem(*problem), 0, _C.Execution(*EXECUTION))


def test_null_pointers_are_refused() -> None:
    problem, where = _C.ConvProblem(*GOOD_PROBLEM), _C.Execution(*EXECUTION)
    assert _C.direct_conv_workspace(problem, 2, where) == 0
    with pytest.raises(ValueError, match="pass has no enumerator 3"):
        _C.direct_conv_workspace(problem, 3, where)
    with pytest.raises(ValueError, match="input must not be null"):
        _C.direct_conv(problem, 0, 0, 0, 0, 0, where)
    with pytest.raises(ValueError, match="grad_output must not be null"):
        _C.direct_conv_backward_input(problem, 0, 0, 0, 0, where)
    with pytest.raises(ValueError, match="grad_output must not be null"):
        _C.direct_conv_backward_kernel(problem, 0, 0, 0, 0, 0, where)
