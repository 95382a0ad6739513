"""Torch expressions, where there is no native kernel: equal to it, and differentiable as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import make_problem
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import DCLS
from DCLS import VERSIONS, _backend, functional, reference
from DCLS._ops import _expressions
from DCLS._ops.im2col_conv import _im2col_conv_backward_by_torch

TESTS = Path(__file__).parents[1]


def child(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=TESTS,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def with_gradients(function, *tensors: Tensor) -> list[Tensor]:
    """The result and, of a sum with weights, the first and second derivatives."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    result = function(*leaves)
    draws = torch.Generator().manual_seed(1)
    cotangent = torch.randn(result.shape, generator=draws, dtype=result.dtype)
    first = torch.autograd.grad((result * cotangent).sum(), leaves, create_graph=True)
    total = sum((grad * (i + 1)).sin().sum() for i, grad in enumerate(first))
    second = torch.autograd.grad(total, leaves, materialize_grads=True, allow_unused=True)
    return [result, *first, *second]


def assert_equal(got: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def rows(version: str, ndim: int, *lead: int) -> list[Tensor]:
    draws = torch.Generator().manual_seed(0)
    P = torch.randn((ndim, *lead), generator=draws, dtype=torch.float64) * 1.5 + 0.01
    return [P, P.abs() / 3 + 0.1] if version in ("max", "gauss") else [P]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", [(9,), (4, 7), (3, 4, 5)])
def test_construct_is_that_of_the_library(version: str, size: tuple[int, ...]) -> None:
    problem = make_problem(version, size)
    tensors = [t.detach() for t in (problem.weight, problem.P, problem.SIG) if t is not None]
    smallest = DCLS._spec.SIGMA_MIN[version]

    def by_torch(weight: Tensor, P: Tensor, SIG: Tensor | None = None) -> Tensor:
        return _expressions.construct_kernel(weight, P, SIG, size, version, smallest)

    def native(*tensors: Tensor) -> Tensor:
        return functional.construct_kernel(*tensors, dilated_kernel_size=size, version=version)

    assert_equal(with_gradients(by_torch, *tensors), with_gradients(native, *tensors))
    SIG = tensors[2] if len(tensors) > 2 else None
    marks = _expressions.construct_support(tensors[1], SIG, size, version, smallest)
    expected = functional.construct_support(
        tensors[1], SIG, dilated_kernel_size=size, version=version
    )
    assert torch.equal(marks, expected)


class Calls(TorchDispatchMode):
    """Counts the calls of torch's operators, which take the time where a kernel is small."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("version", VERSIONS)
def test_axes_of_one_size_share_their_calls(version: str) -> None:
    counts = []
    for ndim in (1, 2, 3):
        weight = torch.ones(2, 3, requires_grad=True)
        P, SIG = (*rows(version, ndim, 2, 3), None)[:2]
        spec = ((5,) * ndim, version, DCLS._spec.SIGMA_MIN[version])
        with Calls() as calls:
            kernel = _expressions.construct_kernel(weight, P, SIG, *spec)
            forward = calls.count
            torch.autograd.grad(kernel, weight, torch.ones_like(kernel))
        counts.append((forward, calls.count))
    one, two, three = (forward for forward, _ in counts)
    # The sum and the products of one more axis; its taps alone would be as many again.
    assert max(two - one, three - two) <= 6, counts
    assert one <= 40, counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_taps_of_a_gaussian(dtype: torch.dtype) -> None:
    """They are 0, not numbers that slow arithmetic down, and their derivatives are finite."""
    tiny = torch.finfo(dtype).tiny
    P = torch.tensor([[0, 0.3, -40, 1e4, 3e38]], dtype=dtype).requires_grad_()
    weight = torch.ones(5, dtype=dtype, requires_grad=True)
    for smallest in (tiny, 1e-30, 0.27, 1.0):
        SIG = torch.zeros_like(P).requires_grad_()
        taps = reference.taps(P[0], SIG[0], 101, "gauss", smallest)
        assert ((taps == 0) | (taps > tiny)).all()
        kernel = _expressions.construct_kernel(weight, P, SIG, [101], "gauss", smallest)
        for grad in torch.autograd.grad(kernel.square().sum(), (weight, P, SIG)):
            assert grad.isfinite().all(), smallest


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_element_beyond_its_reach_has_no_support(version: str, dtype: torch.dtype) -> None:
    P = torch.tensor([[[60.0, 1e6]], [[0.0, 0.0]]], dtype=dtype)
    SIG = None if version in ("v0", "v1", "spline") else torch.zeros_like(P)
    smallest = DCLS._spec.SIGMA_MIN[version]
    for part in (slice(1), slice(1, 2)):
        widths = None if SIG is None else SIG[..., part]
        marks = _expressions.construct_support(P[..., part], widths, [9, 9], version, smallest)
        assert not marks.any()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", [(9,), (4, 5), (3, 2, 3)])
def test_im2col_is_that_of_the_library(version: str, size: tuple[int, ...]) -> None:
    ndim = len(size)
    draws = torch.Generator().manual_seed(0)
    x = torch.randn((2, 4, *(length + 3 for length in size)), generator=draws, dtype=torch.float64)
    weight = torch.randn(6, 2, 3, generator=draws, dtype=torch.float64)
    sides, stride = [1, 2] * ndim, [2] * ndim
    smallest = DCLS._spec.SIGMA_MIN[version]
    spec = (size, stride, sides, version, smallest)
    positions = rows(version, ndim, 4, 3)

    def columns(op):
        return lambda x, P, SIG=None: op(x, P, SIG, *spec)

    got = with_gradients(columns(_expressions.im2col), x, *positions)
    assert_equal(got, with_gradients(columns(torch.ops.dcls.im2col), x, *positions))

    def conv(op):
        return lambda x, w, b, P, SIG=None: op(x, w, b, P, SIG, *spec, 2, 1 << 20)

    tensors = (x, weight, weight[:, 0, 0], *positions)
    got = with_gradients(conv(_expressions.im2col_conv), *tensors)
    assert_equal(got, with_gradients(conv(torch.ops.dcls.im2col_conv), *tensors))


def test_cells_outside_of_the_support_are_constants() -> None:
    draws = torch.Generator().manual_seed(0)
    x, kernel = (
        torch.randn(shape, generator=draws, dtype=torch.float64)
        for shape in ((2, 4, 9, 8), (6, 2, 3, 2))
    )
    support = kernel > 0
    geometry = ([1, 2], [1, 0], [2, 1], 2)

    def convolve(op):
        return lambda x, kernel: op(x, kernel, None, support, *geometry)

    got = with_gradients(convolve(_expressions.direct_conv), x, kernel)
    assert_equal(got, with_gradients(convolve(torch.ops.dcls.direct_conv), x, kernel))


def test_backward_operators_have_the_same_gradients() -> None:
    draws = torch.Generator().manual_seed(0)
    shapes = ((2, 6, 9), (2, 4, 9), (6, 2, 3))
    grad, x, weight = (torch.randn(s, generator=draws, dtype=torch.float64) for s in shapes)
    P, SIG = rows("gauss", 1, 4, 3)
    rest = ([5], [1], [2, 2], "gauss", 0.27, 2, 1 << 20)
    for mask in ([True] * 4, [False, True, False, True]):
        args = (grad, x, weight, P, SIG, *rest, mask)
        got = _im2col_conv_backward_by_torch(*args)
        assert_equal(list(got), list(torch.ops.dcls.im2col_conv_backward(*args)))


@pytest.mark.parametrize("op", ["construct_kernel", "im2col", "im2col_conv", "direct_conv"])
def test_nothing_to_compute(op: str) -> None:
    """Zero rows, channels, elements or images: zeros with gradients, as from the library."""
    for batch, channels, elements in ((0, 2, 3), (2, 0, 3), (2, 2, 0)):
        x = torch.ones(batch, channels, 7, dtype=torch.float64)
        weight = torch.ones(4, channels, elements, dtype=torch.float64)
        P = torch.zeros(1, channels, elements, dtype=torch.float64)
        spec = ([5], [1], [2, 2], "v1", 0.0)
        tensors, rest = {
            "construct_kernel": ((weight, weight.unsqueeze(0) * 0), ([5], "v1", 0.0)),
            "im2col": ((x, P), spec),
            "im2col_conv": ((x, weight, weight.new_ones(4), P), (*spec, 1, 1 << 20)),
            "direct_conv": ((x, weight.new_ones(4, channels, 5)), ([1], [2], [1], 1)),
        }[op]
        none = [None, None] if op == "direct_conv" else [None]
        found = []
        for function in (getattr(_expressions, op), getattr(torch.ops.dcls, op)):
            leaves = [t.detach().requires_grad_() for t in tensors]
            result = function(*leaves, *none, *rest)
            found.append([result, *torch.autograd.grad(result.sum(), leaves)])
        assert_equal(*found)


# Which of them computes


def test_native_devices() -> None:
    assert all(map(_backend.is_native, ("cpu", "cuda", "meta")))
    for other in ("mps", "xpu", "privateuseone"):
        assert not _backend.is_native(other)
        assert _backend.why_not_native(other) == f"the native library has no kernels for {other}"


def test_rocm_is_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert not _backend.is_native("cuda")
    assert "ROCm" in _backend.why_not_native("cuda")
    assert "CPU, torch expressions" in _backend.describe()


def test_every_operator_has_an_expression() -> None:
    for name in ("construct_kernel", "construct_support", "direct_conv", "im2col", "im2col_conv"):
        for operator in (name, f"{name}_backward", "layer", "layer_backward"):
            if hasattr(torch.ops.dcls, operator):
                assert torch._C._dispatch_has_kernel_for_dispatch_key(
                    f"dcls::{operator}", "CompositeExplicitAutograd"
                ), operator


SECOND_DEVICE = """
import logging
logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
import torch
import second_device
import DCLS

torch.manual_seed(0)
layers = [
    (DCLS.Dcls1d, {}, (2, 4, 12)),
    (DCLS.Dcls2d, {"groups": 4, "padding": 2}, (2, 4, 9, 9)),
    (DCLS.Dcls2d, {"method": "direct", "version": "v1"}, (2, 4, 9, 9)),
    (DCLS.Dcls3d, {"version": "max"}, (1, 4, 6, 5, 7)),
    (DCLS.im2col.Dcls2d, {"groups": 2}, (2, 4, 9, 9)),
]
for cls, options, shape in layers:
    options = {"dilated_kernel_size": 5, "dtype": torch.float64, **options}
    here, there = (cls(4, 4, 3, **options) for _ in range(2))
    there.to(second_device.NAME).load_state_dict(here.state_dict())
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = x.detach().to(second_device.NAME).requires_grad_()
    results = []
    for layer, input in ((here, x), (there, y)):
        output = layer(input)
        output.sin().sum().backward()
        results.append([output, input.grad, *(p.grad for p in layer.parameters())])
    for one, other in zip(*results, strict=True):
        assert other.device.type == second_device.NAME
        torch.testing.assert_close(one, other.cpu(), rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(here(x), there(y).cpu(), rtol=1e-11, atol=1e-11)
layer = DCLS.Dcls2d(4, 4, 3, dilated_kernel_size=5).to(second_device.NAME)
print(layer.explain(torch.zeros(1, 4, 9, 9).to(second_device.NAME)).method)
"""


def test_a_second_device_of_torch() -> None:
    pytest.importorskip("torch.utils.backend_registration")
    from torch.utils import backend_registration

    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip(f"torch {torch.__version__} takes no device in Python")
    done = child(SECOND_DEVICE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "conv"
    said = [line for line in done.stderr.splitlines() if line.startswith("DCLS: ")]
    assert len(said) == 1
    assert said[0].startswith("DCLS: on elsewhere torch expressions compute: the native library")


BY_TORCH = """
import sys, torch, DCLS
from DCLS.cli import main
assert "DCLS._C" not in sys.modules
layer = DCLS.Dcls2d(4, 4, 3, dilated_kernel_size=5, groups=4)
x = torch.ones(1, 4, 9, 9)
with torch.inference_mode():
    layer(x)
    elements = (layer.weight, layer.P.flip(0), layer.SIG.flip(0))  # by axis of the kernel
    kernel = torch.ops.dcls.construct_kernel(*elements, [5, 5], "gauss", 0.27)
torch.testing.assert_close(kernel, layer.kernel())
compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
torch.testing.assert_close(compiled(x), layer(x))
torch.func.vmap(torch.func.grad(lambda x: layer(x).sum()))(x.expand(2, 3, 4, 9, 9))
print(layer.explain(x))
print(main(["info"]))
print(main(["cmake-dir"]))
"""


def test_it_can_be_asked_for() -> None:
    done = child(BY_TORCH, DCLS_BACKEND="torch")
    assert done.returncode == 0, done.stderr
    assert "method='conv', reason='on cpu torch computes'" in done.stdout
    line = next(line for line in done.stdout.splitlines() if line.startswith("backend"))
    assert line.split(maxsplit=1)[1] == (
        "torch expressions compute on all devices: DCLS_BACKEND=torch"
    )
    assert "there is no C++ library here: DCLS_BACKEND=torch" in done.stderr
    assert done.stdout.splitlines()[-1] == "1"


def test_another_wish_is_refused() -> None:
    done = child("import DCLS", DCLS_BACKEND="fast")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: DCLS_BACKEND must be one of auto, native, torch, got 'fast'"
    )


BROKEN = """
import sys, types
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "DCLS._C":
            raise ImportError({error})
sys.meta_path.insert(0, Broken())
import torch, DCLS
print(DCLS.Dcls1d(1, 1, 1, dilated_kernel_size=3)(torch.ones(1, 1, 5)).shape)
"""


def test_a_library_that_cannot_be_loaded_is_said() -> None:
    script = BROKEN.format(error='"libgomp.so.1: no such file"')
    done = child(script)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([1, 1, 3])" in done.stdout
    assert "the native library cannot be loaded, torch expressions compute: libgomp" in done.stderr
    done = child(script, DCLS_BACKEND="native")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ImportError: libgomp.so.1: no such file"
