"""Where infinite values and NaN go: to what meets them, and to nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from support import SIGMA_VERSIONS, VERSIONS
from torch import Tensor

from DCLS.functional import construct_support, direct_conv, im2col, im2col_conv

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
INF, NAN = float("inf"), float("nan")


@dataclass(frozen=True)
class Shape:
    """A convolution in which each cell reads some input: torch visits padding, too."""

    size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    batch: int = 1
    groups: int = 1
    inputs: int = 1  # channels of a group
    outputs: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    last: bool = False

    @property
    def settings(self) -> tuple[int, ...]:
        return self.stride, self.padding, self.dilation, self.groups


SHAPES = [
    Shape((7,), (3,)),
    Shape((50,), (9,), padding=4, groups=3),
    Shape((2000,), (5,), stride=2, padding=2),
    Shape((40,), (5,), batch=20, groups=2),  # the batch as lanes
    Shape((40,), (5,), batch=20, inputs=2, outputs=3),
    Shape((40,), (4,), stride=3, dilation=2, inputs=2),
    Shape((9, 10), (3, 3), padding=1, inputs=2, outputs=2),
    Shape((15, 17), (7, 5), padding=2, groups=2),
    Shape((15, 17), (7, 5), padding=2, groups=2, last=True),
    Shape((12, 13), (3, 4), stride=2, padding=1, dilation=2),
    Shape((90, 300), (5, 3), padding=1),  # several tiles
    Shape((42, 30), (13, 13), padding=6, groups=2),  # the fast FIR algorithm
    Shape((7, 7), (3, 3), batch=17, padding=1, groups=3),
    Shape((7, 7), (3, 3), batch=17, padding=1, inputs=3, outputs=2, last=True),
    Shape((5, 6, 7), (3, 2, 3), padding=1, groups=2),
    Shape((5, 6, 7), (2, 3, 3), stride=2, dilation=2, padding=2, inputs=2, last=True),
]


def kinds(tensor: Tensor) -> Tensor:
    """0 for a number, 1 and 2 for the infinities, 3 for NaN."""
    return (tensor == INF) + 2 * (tensor == -INF) + 3 * tensor.isnan()


def ones(shape: Shape, *, dtype: torch.dtype) -> list[Tensor]:
    """Input and kernel: values of both signs, and no zero."""
    generator = torch.Generator().manual_seed(sum(shape.size))
    sizes = (
        (shape.batch, shape.groups * shape.inputs, *shape.size),
        (shape.groups * shape.outputs, shape.inputs, *shape.kernel_size),
    )
    tensors = [torch.randint(0, 2, s, generator=generator).mul(2).sub(1).to(dtype) for s in sizes]
    if shape.last:
        tensors[0] = tensors[0].contiguous(memory_format=CHANNELS_LAST[len(shape.size)])
    return tensors


def passes(function, x: Tensor, kernel: Tensor, grad: Tensor, settings) -> list[Tensor]:
    x, kernel = x.detach().requires_grad_(), kernel.detach().requires_grad_()
    output = function(x, kernel, None, *settings)
    return [output.detach(), *torch.autograd.grad(output, (x, kernel), grad)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("where", ["input", "kernel", "grad_output"])
def test_the_pattern_is_that_of_torch(where, shape, dtype, device):
    conv = CONV[len(shape.size)]
    plain = [t.to(device) for t in ones(shape, dtype=dtype)]
    grad = torch.ones_like(direct_conv(*plain, None, *shape.settings))
    tensors = dict(zip(("input", "kernel", "grad_output"), (*plain, grad), strict=True))
    count = tensors[where].numel()
    for value, places in ((INF, [0]), (NAN, [count - 1]), (-INF, [count // 3, count // 2])):
        changed = dict(tensors)
        flat = tensors[where].flatten()
        flat[places] = value
        layout = CHANNELS_LAST[len(shape.size)] if shape.last else torch.contiguous_format
        whole = flat.view(tensors[where].shape)
        changed[where] = whole if where == "kernel" else whole.contiguous(memory_format=layout)
        got = passes(direct_conv, *changed.values(), shape.settings)
        wide = [t.double().cpu() for t in changed.values()]
        want = passes(conv, *wide, shape.settings)
        for name, a, b in zip(("output", "grad_input", "grad_kernel"), got, want, strict=True):
            assert torch.equal(kinds(a.cpu()), kinds(b)), (name, value, places)


def test_the_gradient_beside_an_infinite_input(device):
    x = torch.tensor([[[0.0, 0, 0, 0, 0, 0, INF]]], device=device)
    kernel = torch.ones(1, 1, 3, device=device, requires_grad=True)
    direct_conv(x, kernel).sum().backward()
    assert kernel.grad.flatten().tolist() == [0, 0, INF]


def test_zero_cells_are_not_visited(device):
    x = torch.ones(1, 1, 9, 9, device=device)
    x[0, 0, 4, 4] = NAN
    kernel = torch.zeros(1, 1, 5, 5, device=device)
    kernel[0, 0, 1, 3] = 2
    assert direct_conv(x, kernel, padding=2).isnan().sum() == 1
    assert F.conv2d(x, kernel, padding=2).isnan().sum() == 25


@pytest.mark.parametrize("layout", ["first", "last"])
def test_a_kernel_that_is_all_nan(layout, device):
    x = torch.ones(2, 3, 20, 20, device=device, requires_grad=True)
    given = x if layout == "first" else x.contiguous(memory_format=torch.channels_last)
    kernel = torch.full((3, 1, 5, 5), NAN, device=device, requires_grad=True)
    output = direct_conv(given, kernel, padding=2, groups=3)
    output.sum().backward()
    assert output.isnan().all()
    assert x.grad.isnan().all()
    assert kernel.grad.isfinite().all()


@pytest.mark.parametrize("value", [INF, NAN])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(
    ("size", "grid"), [((40,), (9,)), ((9, 21), (4, 5)), ((5, 6, 18), (2, 3, 4))], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_im2col_reaches_the_points_of_its_elements(dtype, size, grid, stride, value, device):
    ndim, generator = len(size), torch.Generator().manual_seed(5)
    position = torch.float64 if dtype == torch.float64 else torch.float32
    P = ((torch.rand(ndim, 2, 3, generator=generator) - 0.5) * 2).to(device, position)
    options = {"dilated_kernel_size": grid, "version": "v1"}
    cells = construct_support(P.unsqueeze(-1), None, **options)  # (channel, element, *grid)
    x = torch.ones(2, 2, *size, device=device, dtype=dtype)
    x[0, 0].view(-1)[x[0, 0].numel() // 2] = value
    x[1, 1].view(-1)[-1] = value
    x.requires_grad_()
    P.requires_grad_()
    columns = im2col(x, P, padding=2, stride=stride, **options)
    bad = (~x.detach().isfinite()).double()
    cells = cells.flatten(0, 1).unsqueeze(1).double()
    met = CONV[ndim](bad, cells, None, stride, 2, 1, 2).view(columns.shape) > 0
    assert torch.equal(~columns.detach().isfinite(), met)
    by_x, by_P = torch.autograd.grad(columns, (x, P), torch.ones_like(columns))
    assert by_x.isfinite().all()
    meets = met.flatten(3).any(-1).any(0)
    assert torch.equal(~by_P.isfinite().all(0), meets)

    # Back: an infinite gradient of the columns.
    grad = torch.ones_like(columns)
    middle = tuple(length // 2 for length in columns.shape[3:])
    grad[0, 1, 2][middle] = value
    finite = torch.ones_like(x).detach().requires_grad_()
    output = im2col(finite, P, padding=2, stride=stride, **options)
    by_x, by_P = torch.autograd.grad(output, (finite, P), grad)
    probe = torch.zeros_like(bad).requires_grad_()
    there = (~grad.isfinite()).double().flatten(1, 2)
    CONV[ndim](probe, cells, None, stride, 2, 1, 2).backward(there)
    assert torch.equal(~by_x.isfinite(), probe.grad > 0)
    there = torch.zeros(2, 3, dtype=torch.bool, device=device)
    there[1, 2] = True
    assert torch.equal(~by_P.isfinite().all(0), there)


@pytest.mark.parametrize(
    ("version", "name"),
    [(v, "P") for v in VERSIONS] + [(v, "SIG") for v in SIGMA_VERSIONS],
)
@pytest.mark.parametrize(("size", "grid"), [((40,), (9,)), ((9, 21), (4, 5))], ids=str)
def test_an_element_of_im2col_that_is_nan(size, grid, version, name, device):
    ndim, generator = len(size), torch.Generator().manual_seed(6)
    P = ((torch.rand(ndim, 2, 3, generator=generator) - 0.5) * 2).to(device)
    SIG = torch.full_like(P, 0.7) if version in SIGMA_VERSIONS else None
    of = {"P": P, "SIG": SIG}
    of[name][-1, 0, 1] = NAN  # on one axis of one element
    learned = [t.requires_grad_() for t in of.values() if t is not None]
    x = torch.ones(2, 2, *size, device=device, requires_grad=True)
    columns = im2col(x, P, SIG, dilated_kernel_size=grid, padding=4, version=version)
    here = torch.zeros(2, 3, dtype=torch.bool, device=device)
    here[0, 1] = True
    assert torch.equal(columns.isnan().flatten(3).all(-1), here.expand(2, 2, 3))
    assert torch.equal(columns.isnan().flatten(3).any(-1), here.expand(2, 2, 3))
    by_x, *grads = torch.autograd.grad(columns, (x, *learned), torch.ones_like(columns))
    assert by_x[:, 0].isnan().all()
    assert by_x[:, 1].isfinite().all()
    for grad in grads:
        assert torch.equal(grad.isnan().all(0), here)
        assert torch.equal(grad.isnan().any(0), here)


def test_im2col_conv_mixes_no_outputs(device):
    x = torch.ones(1, 2, 30, device=device)
    x[0, 0, 29] = INF
    weight = torch.ones(3, 2, 2, device=device)
    P = torch.full((1, 2, 2), 0.5, device=device)
    output = im2col_conv(x, weight, None, P, dilated_kernel_size=3, padding=1, version="v1")
    assert output.isfinite().sum() == 3 * 28
    assert output[..., 28:].isinf().all()
