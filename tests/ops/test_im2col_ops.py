"""The im2col operators as citizens of torch: autograd, compiler, transforms, autocast."""

from __future__ import annotations

import pytest
import torch
from im2col_problem import assert_same, make_im2col, results
from support import VERSIONS
from torch.func import grad, jacrev, vmap

from DCLS._spec import SIGMA_MIN
from DCLS.functional import im2col, im2col_conv

SIZES = [((6,), (5,)), ((4, 5), (3, 4)), ((3, 4, 3), (3, 2, 3))]


def smooth(version, input_size, size, **options):
    """Without the kinks, where no numeric derivative exists."""
    options = {"batch": 2, "channels": 2, "out_channels": 2, "elements": 2, "groups": 1, **options}
    problem = make_im2col(version, input_size, size, **options)
    with torch.no_grad():
        P = problem.P.clamp(-1.5, 1.5).floor()
        problem.P.copy_(P + 0.2 + 0.6 * torch.rand_like(P))
        if problem.SIG is not None:
            problem.SIG.copy_(problem.P.frac().abs() * 0.1 + 0.11)
    return problem


def present(tensors):
    return [t for t in tensors if t is not None]


def function_of(problem, kind):
    """The function of all tensors that are there, in the order of the arguments."""
    names = list(problem.column_tensors if kind == "columns" else problem.tensors)
    options = dict(problem.options)
    if kind == "conv":
        options["groups"] = problem.groups

    def function(*tensors):
        given = dict(zip(names, tensors, strict=True))
        if kind == "columns":
            return im2col(given["input"], given["P"], given.get("SIG"), **options)
        order = ("input", "weight", "bias", "P", "SIG")
        return im2col_conv(*(given.get(name) for name in order), **options)

    return function, [getattr(problem, name) for name in names]


@pytest.mark.parametrize("kind", ["columns", "conv"])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_gradcheck(kind, version, shape, device):
    function, tensors = function_of(smooth(version, *shape, device=device), kind)
    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("kind", ["columns", "conv"])
@pytest.mark.parametrize("version", VERSIONS)
def test_gradgradcheck(kind, version, device):
    problem = smooth(version, (4, 5), (3, 4), batch=1, stride=(2, 1), device=device)
    function, tensors = function_of(problem, kind)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize(
    ("version", "dtype"),
    [
        ("v0", torch.float64),
        ("v1", torch.float32),
        ("max", torch.float64),
        ("gauss", torch.float32),
    ],
    ids=str,
)
def test_opcheck(version, dtype, device):
    problem = make_im2col(version, (6, 7), (4, 5), dtype=dtype, device=device)
    sides = [2, 2, 2, 2]
    spec = ([4, 5], [1, 1], sides, version, SIGMA_MIN[version])
    conv = (*spec, 2, 2000)
    tensors = (problem.input, problem.P, problem.SIG)
    every = (problem.input, problem.weight, problem.bias, problem.P, problem.SIG)
    torch.library.opcheck(torch.ops.dcls.im2col, (*tensors, *spec))
    torch.library.opcheck(torch.ops.dcls.im2col_conv, (*every, *conv))
    plain = [None if t is None else t.detach() for t in tensors]
    plain_every = [None if t is None else t.detach() for t in every if t is not problem.bias]
    has_sigma = problem.SIG is not None
    grad_columns = torch.randn_like(problem.columns())
    grad_output = torch.randn_like(problem.conv())
    for mask in ([True, True, has_sigma], [False, True, False]):
        torch.library.opcheck(torch.ops.dcls.im2col_backward, (grad_columns, *plain, *spec, mask))
        torch.library.opcheck(
            torch.ops.dcls.im2col_conv_backward,
            (grad_output, *plain_every, *conv, [mask[0], mask[2], *mask[1:]]),
        )


def test_opcheck_of_a_weight_that_is_dense_but_not_contiguous(device):
    problem = make_im2col("v1", (6, 7), (4, 5), device=device)
    tensors = [t.detach() for t in (problem.input, problem.weight, problem.P)]
    # Output channels innermost: the other two axes merge without a copy.
    weight = tensors[1].permute(1, 2, 0).contiguous().permute(2, 0, 1).requires_grad_()
    assert not weight.is_contiguous()
    rest = (tensors[2], None, [4, 5], [1, 1], [2, 2, 2, 2], "v1", 0.0, 2, 2000)
    forward = (tensors[0], weight, None, *rest)
    torch.library.opcheck(torch.ops.dcls.im2col_conv, forward)
    grad_output = torch.randn_like(torch.ops.dcls.im2col_conv(*forward)).detach()
    torch.library.opcheck(
        torch.ops.dcls.im2col_conv_backward,
        (grad_output, tensors[0], weight.detach(), *rest, [True, True, True, False]),
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(version, dynamic, device):
    torch.compiler.reset()  # the limit on recompilations counts all tests of the process
    compiled = None
    for batch, length in ((2, 6), (3, 7), (5, 9)):
        problem = make_im2col(version, (length, 7), (4, 5), batch=batch, device=device)
        function, tensors = function_of(problem, "conv")
        if compiled is None:
            compiled = torch.compile(
                lambda *args, function=function: function(*args).sin(),
                fullgraph=True,
                dynamic=dynamic,
                backend="aot_eager",
            )
        got = results(compiled(*tensors), problem.tensors)
        want = results(function(*tensors).sin(), problem.tensors)
        assert_same(got, want, 1e-12)


def test_compile_with_inductor(device):
    torch.compiler.reset()
    problem = make_im2col("gauss", (6, 7), (4, 5), device=device)
    compiled = torch.compile(lambda *args: im2col_conv(*args, **options).relu(), fullgraph=True)
    options = {**problem.options, "groups": 2}
    tensors = (problem.input, problem.weight, problem.bias, problem.P, problem.SIG)
    want = im2col_conv(*tensors, **options).relu()
    assert_same(results(compiled(*tensors), problem.tensors), results(want, problem.tensors), 1e-12)


@pytest.mark.parametrize("kind", ["columns", "conv"])
@pytest.mark.parametrize("version", ["v1", "gauss"])
def test_vmap_and_grad(kind, version, device):
    """vmap over any tensor or all, per-sample gradients, second derivatives."""
    problems = [smooth(version, (4, 5), (3, 4), device=device, seed=s) for s in range(3)]
    function, tensors = function_of(problems[0], kind)
    every = [function_of(problem, kind)[1] for problem in problems]
    plain = [[t.detach() for t in tensors] for tensors in every]
    stacked = [torch.stack(copies) for copies in zip(*plain, strict=True)]
    want = torch.stack([function(*tensors) for tensors in plain])
    torch.testing.assert_close(vmap(function)(*stacked), want, rtol=1e-12, atol=1e-12)
    moved = [t.movedim(0, 1) for t in stacked]
    got = vmap(function, in_dims=1, out_dims=1)(*moved).movedim(1, 0)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)

    def loss(*tensors):
        return function(*tensors).square().sum()

    numbers = tuple(range(len(tensors)))
    for chosen in numbers:  # the others are shared by the copies
        dims = tuple(0 if i == chosen else None for i in numbers)
        mixed = [stacked[i] if i == chosen else plain[0][i] for i in numbers]
        got = vmap(function, in_dims=dims)(*mixed)
        per_sample = vmap(grad(loss, numbers), in_dims=dims)(*mixed)
        for i in range(3):
            one = [stacked[j][i] if j == chosen else plain[0][j] for j in numbers]
            torch.testing.assert_close(got[i], function(*one), rtol=1e-12, atol=1e-12)
            leaves = [t.clone().requires_grad_() for t in one]
            want_grads = torch.autograd.grad(loss(*leaves), leaves)
            for a, b in zip(per_sample, want_grads, strict=True):
                torch.testing.assert_close(a[i], b, rtol=1e-10, atol=1e-10)
    place = list(problems[0].column_tensors if kind == "columns" else problems[0].tensors).index(
        "P"
    )
    second = jacrev(grad(loss, place), place)(*plain[0])
    step = 1e-6
    shifted = [t.clone() for t in plain[0]]
    shifted[place][0, 0, 0] += step
    difference = (grad(loss, place)(*shifted) - grad(loss, place)(*plain[0])) / step
    torch.testing.assert_close(second[:, :, :, 0, 0, 0], difference, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("version", ["v1", "gauss"])
def test_autocast(low, version, device):
    """The columns and the product in autocast's dtype, positions in float32, as without it."""
    problem = make_im2col(version, (9, 10), (5, 6), dtype=torch.float32, device=device)
    with torch.no_grad():
        problem.P.add_(2**-11)  # which no 16-bit type would keep
    with torch.autocast(device, low):
        columns, output = problem.columns(), problem.conv()
        got = results(output, problem.tensors)
    assert columns.dtype == output.dtype == low
    mixed = problem.to(low, torch.float32)
    want = results(mixed.conv(), mixed.tensors)
    for name, value in got.items():
        assert name == "output" or value.dtype == torch.float32
        torch.testing.assert_close(value, want[name].to(value.dtype), rtol=0, atol=0)
    double = problem.to(torch.float64)
    with torch.autocast(device, low):
        assert double.conv().dtype == torch.float64
    with torch.autocast(device, enabled=False):
        assert problem.conv().dtype == torch.float32


def test_meta_tensors():
    problem = make_im2col("gauss", (9, 10), (5, 6), dtype=torch.float32)
    for name, tensor in problem.tensors.items():
        setattr(problem, name, tensor.detach().to("meta").requires_grad_())
    output = problem.conv()
    assert output.is_meta
    assert output.shape == (2, 6, 9, 11)
    assert problem.columns().shape == (2, 4, 3, 9, 11)
    output.sum().backward()
    for tensor in problem.tensors.values():
        assert tensor.grad.shape == tensor.shape


def test_inference_mode_and_export(device):
    problem = make_im2col("gauss", (9, 10), (5, 6), device=device)
    want = problem.conv()
    with torch.inference_mode():
        assert torch.equal(problem.conv(), want)

    class Layer(torch.nn.Module):
        def forward(self, input, weight, P, SIG):
            return im2col_conv(
                input, weight, None, P, SIG, dilated_kernel_size=(5, 6), groups=2, padding=2
            )

    tensors = (problem.input, problem.weight, problem.P, problem.SIG)
    exported = torch.export.export(Layer(), tensors)
    assert "dcls.im2col_conv.default" in str(exported.graph)
    torch.testing.assert_close(exported.module()(*tensors), Layer()(*tensors))
