"""The operators as citizens of torch: autograd, compiler, transforms, autocast."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from support import SIGMA_VERSIONS, VERSIONS, make_problem
from torch.func import grad, jacrev, vmap

from DCLS import reference
from DCLS._spec import SIGMA_MIN
from DCLS.functional import construct_kernel


def arguments(problem):
    return (
        problem.weight,
        problem.P,
        problem.SIG,
        list(problem.size),
        problem.version,
        SIGMA_MIN[problem.version],
    )


def smooth_problem(version, size, device="cpu", **options):
    """Without the kinks, where no numeric derivative exists."""
    problem = make_problem(version, size, device=device, **options)
    with torch.no_grad():
        problem.P.copy_(problem.P.clamp(-2, 2).floor() + 0.2 + 0.6 * torch.rand_like(problem.P))
        if problem.SIG is not None:
            # Off the integers, too: max's support must not end at a grid point.
            problem.SIG.copy_(problem.P.frac().abs() * 0.1 + 0.11)
    return problem


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", [(7,), (4, 5), (3, 4, 3)], ids=str)
def test_gradcheck(version, size, device):
    problem = smooth_problem(version, size, device, lead=(2,), elements=3)

    def function(*inputs):
        return construct_kernel(*inputs, dilated_kernel_size=size, version=version)

    assert torch.autograd.gradcheck(function, problem.inputs)


@pytest.mark.parametrize("version", VERSIONS)
def test_gradgradcheck(version, device):
    problem = smooth_problem(version, (4, 5), device, lead=(2,), elements=2)

    def function(*inputs):
        return construct_kernel(*inputs, dilated_kernel_size=(4, 5), version=version)

    assert torch.autograd.gradgradcheck(function, problem.inputs)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_opcheck(version, dtype, device):
    problem = make_problem(version, (4, 5), dtype=dtype, device=device)
    torch.library.opcheck(torch.ops.dcls.construct_kernel, arguments(problem))
    plain = [t.detach() if isinstance(t, torch.Tensor) else t for t in arguments(problem)]
    has_sigma = version in SIGMA_VERSIONS
    for mask in ([True, True, has_sigma], [False, True, False], [True, False, False]):
        torch.library.opcheck(
            torch.ops.dcls.construct_kernel_backward, (problem.cotangent, *plain, mask)
        )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(version, dynamic, device):
    torch.compiler.reset()  # the limit on recompilations counts all tests of the process

    @torch.compile(fullgraph=True, dynamic=dynamic)
    def compiled(weight, P, SIG):
        return construct_kernel(weight, P, SIG, dilated_kernel_size=(4, 5), version=version).sin()

    for rows in (3, 4, 7):
        problem = make_problem(version, (4, 5), lead=(rows, 2), device=device)
        got = compiled(problem.weight, problem.P, problem.SIG)
        expected = construct_kernel(
            *(problem.weight, problem.P, problem.SIG), dilated_kernel_size=(4, 5), version=version
        ).sin()
        torch.testing.assert_close(got, expected)
        got = torch.autograd.grad(got.sum(), problem.inputs)
        for a, b in zip(got, torch.autograd.grad(expected.sum(), problem.inputs), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("version", VERSIONS)
def test_vmap(version, device):
    problem = make_problem(version, (4, 5), lead=(6, 2), device=device)
    weight, P = problem.weight.detach(), problem.P.detach()
    SIG = None if problem.SIG is None else problem.SIG.detach()
    expected = problem.run()[0]

    def one(weight, P, SIG):
        return construct_kernel(weight, P, SIG, dilated_kernel_size=(4, 5), version=version)

    sigma_dim = None if SIG is None else 1
    got = vmap(one, (0, 1, sigma_dim))(weight, P, SIG)
    assert torch.equal(got, expected)
    # An argument that is shared by the batch, another batch dimension, and vmap within vmap.
    shared = vmap(one, (0, None, None))(weight, P[:, 0], None if SIG is None else SIG[:, 0])
    for i in range(6):
        assert torch.equal(shared[i], one(weight[i], P[:, 0], None if SIG is None else SIG[:, 0]))
    got = vmap(one, (1, 2, None if SIG is None else 2), out_dims=1)(weight, P, SIG)
    assert torch.equal(got, expected)
    twice = vmap(vmap(one, (0, 1, sigma_dim)), (0, 1, sigma_dim))(weight, P, SIG)
    assert torch.equal(twice, expected)


@pytest.mark.parametrize("version", VERSIONS)
def test_func_transforms(version, device):
    """grad, vmap of grad (per-sample gradients), and second derivatives by jacrev of grad."""
    problem = smooth_problem(version, (4, 5), device, lead=(3, 2), elements=2)
    tensors = [t.detach() for t in problem.inputs]
    argnums = tuple(range(len(tensors)))

    def loss(function):
        def of(*inputs):
            kernel = function(*inputs, dilated_kernel_size=(4, 5), version=version)
            return (kernel.sin() * kernel).sum()

        return of

    ours, oracle = loss(construct_kernel), loss(reference.construct_kernel)
    for a, b in zip(grad(ours, argnums)(*tensors), grad(oracle, argnums)(*tensors), strict=True):
        torch.testing.assert_close(a, b)
    dims = (0, *(1 for _ in tensors[1:]))
    per_sample = vmap(grad(ours, argnums), dims)(*tensors)
    for i in range(3):
        sample = [tensors[0][i], *(t[:, i] for t in tensors[1:])]
        for a, b in zip(per_sample, grad(oracle, argnums)(*sample), strict=True):
            torch.testing.assert_close(a[i], b)
    second = jacrev(grad(ours, 1), 1)(*tensors)
    torch.testing.assert_close(second, jacrev(grad(oracle, 1), 1)(*tensors))
    assert second.abs().max() > 1e-3


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_computes_in_float32(low, device):
    problem = make_problem("gauss", (7, 7), dtype=torch.float32, device=device)
    expected = problem.run()
    with torch.autocast(device, low):
        kernel = construct_kernel(
            problem.weight.to(low), problem.P, problem.SIG, dilated_kernel_size=(7, 7)
        )
        assert kernel.dtype == torch.float32
        widths = construct_kernel(
            problem.weight, problem.P, problem.SIG.to(low), dilated_kernel_size=(7, 7)
        )
        assert widths.dtype == torch.float32
        got = problem.run()
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("version", VERSIONS)
def test_autocast_leaves_further_derivatives_in_float32(version, device):
    """They come from plain torch, whose products autocast would round to 8 bits."""
    problem = smooth_problem(version, (5, 4), device, dtype=torch.float32)

    def derivatives():
        grads = problem.run(create_graph=True)[1:]
        second = torch.autograd.grad([g.sin().sum() for g in grads], problem.inputs)
        primals = tuple(t.detach() for t in problem.inputs)

        def build(*tensors):
            return construct_kernel(*tensors, dilated_kernel_size=(5, 4), version=version)

        return *second, torch.func.jvp(build, primals, tuple(t.cos() for t in primals))[1]

    expected = derivatives()
    with torch.autocast(device, torch.bfloat16):
        got = derivatives()
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


def test_meta_tensors():
    problem = make_problem("gauss", (4, 5)).to(torch.float32)
    meta = [t.detach().to("meta").requires_grad_() for t in problem.inputs]
    kernel = construct_kernel(*meta, dilated_kernel_size=(4, 5))
    assert kernel.is_meta
    assert kernel.shape == (3, 2, 4, 5)
    kernel.sum().backward()
    assert [t.grad.shape for t in meta] == [t.shape for t in meta]


def test_inference_mode_and_no_grad(device):
    problem = make_problem("gauss", (4, 5), device=device)
    expected = problem.run()[0]
    with torch.inference_mode():
        assert torch.equal(construct_kernel(*problem.inputs, dilated_kernel_size=(4, 5)), expected)
    with torch.no_grad():
        kernel = construct_kernel(*problem.inputs, dilated_kernel_size=(4, 5))
    assert torch.equal(kernel, expected)
    assert not kernel.requires_grad


def test_export_keeps_the_operator():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(3, 2, 4))
            self.P = torch.nn.Parameter(torch.randn(1, 3, 2, 4))

        def forward(self, x):
            kernel = construct_kernel(self.weight, self.P, dilated_kernel_size=5, version="v1")
            return torch.nn.functional.conv1d(x, kernel)

    layer, x = Layer(), torch.randn(2, 2, 9)
    exported = torch.export.export(layer, (x,))
    assert "dcls.construct_kernel.default" in str(exported.graph)
    torch.testing.assert_close(exported.module()(x), layer(x))


#: torch 2.5 has no _any_requires_grad.
OLD_TORCH = """
import torch
if hasattr(torch._C, "_any_requires_grad"):
    del torch._C._any_requires_grad
import DCLS
layer = DCLS.Dcls1d(2, 3, 2, dilated_kernel_size=7, dtype=torch.float64, version="gauss")
layer.requires_grad_(False)
x = torch.randn(1, 2, 9, dtype=torch.float64)
def of(P):
    return torch.func.functional_call(layer, {"P": P}, (x,)).square().sum()
P = layer.P.detach()
assert not of(P).requires_grad
P.requires_grad_()
assert torch.autograd.gradcheck(of, P)
assert torch.autograd.gradgradcheck(of, P)
assert torch.allclose(torch.func.grad(of)(P), torch.autograd.grad(of(P), P)[0])
"""


def test_derivatives_of_the_oldest_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OLD_TORCH], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
