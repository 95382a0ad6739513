"""Derivatives and transforms of ``torch.ops.dcls`` called directly, and of exported programs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_cases import OPERATORS, arguments, function, results
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from DCLS import Dcls2d
from DCLS import im2col as im2col_package

DIFFERENTIABLE = [name for name in OPERATORS if name != "construct_support"]
#: What the forward pass of a layer saves must stay with the tensors of that pass.
OF_ALL_ORDERS = [name for name in DIFFERENTIABLE if name != "layer_backward"]


def close(got: Tensor, want: Tensor, tolerance: float = 1e-9) -> None:
    assert got.shape == want.shape
    assert (got - want).abs().max() <= tolerance * want.abs().max().clamp_min(1e-3)


def pushed(function: Any, tensors: list[Tensor], tangents: list[Tensor]) -> list[Tensor]:
    """The tangents of the results by reverse mode alone, without torch.func."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    outputs = function(*leaves)
    weights = [torch.randn_like(o).requires_grad_() for o in outputs]
    pulled = torch.autograd.grad(outputs, leaves, weights, create_graph=True)
    total = sum((p * t).sum() for p, t in zip(pulled, tangents, strict=True))
    return list(torch.autograd.grad(total, weights))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_forward_mode_is_that_of_reverse_mode(name: str) -> None:
    args = arguments(name)
    of, tensors = function(name, args)
    tangents = [torch.randn_like(t) for t in tensors]
    want = pushed(of, tensors, tangents)
    assert all(w.any() for w in want)
    for got, w in zip(jvp(of, tuple(tensors), tuple(tangents))[1], want, strict=True):
        close(got, w)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, v) for t, v in zip(tensors, tangents, strict=True)]
        for got, w in zip(of(*duals), want, strict=True):
            close(forward_ad.unpack_dual(got).tangent, w)
            assert not forward_ad.unpack_dual(got).tangent.requires_grad
        with torch.no_grad():
            for got, w in zip(of(*duals), want, strict=True):
                close(forward_ad.unpack_dual(got).tangent, w)
        # One argument with a tangent is enough.
        for i in range(len(tensors)):
            only = [v if i == j else torch.zeros_like(v) for j, v in enumerate(tangents)]
            mixed = [*tensors[:i], duals[i], *tensors[i + 1 :]]
            for got, w in zip(of(*mixed), pushed(of, tensors, only), strict=True):
                tangent = forward_ad.unpack_dual(got).tangent
                close(torch.zeros_like(got) if tangent is None else tangent, w)
    # The primal is what the operator computes without a tangent.
    for got, w in zip(jvp(of, tuple(tensors), tuple(tangents))[0], of(*tensors), strict=True):
        assert torch.equal(got, w)


@pytest.mark.parametrize("name", OF_ALL_ORDERS)
def test_second_derivatives_agree_in_all_modes(name: str) -> None:
    of, tensors = function(name, arguments(name))

    def loss(*given: Tensor) -> Tensor:
        return sum(o.sin().sum() for o in of(*given))

    directions = tuple(torch.randn_like(t) for t in tensors)
    numbers = tuple(range(len(tensors)))

    def by_reverse(*given: Tensor) -> Tensor:
        return sum(
            (g * d).sum() for g, d in zip(grad(loss, numbers)(*given), directions, strict=True)
        )

    want = grad(by_reverse, numbers)(*tensors)
    forward_over_reverse = jvp(grad(loss, numbers), tuple(tensors), directions)[1]
    reverse_over_forward = grad(lambda *t: jvp(loss, t, directions)[1], numbers)(*tensors)
    for a, b, w in zip(forward_over_reverse, reverse_over_forward, want, strict=True):
        close(a, w)
        close(b, w)
    forward_twice = jvp(lambda *t: jvp(loss, t, directions)[1], tuple(tensors), directions)[1]
    close(forward_twice, sum((w * d).sum() for w, d in zip(want, directions, strict=True)))
    # Forward over reverse with one level, that of torch.autograd.
    with forward_ad.dual_level():
        leaves = [t.detach().requires_grad_() for t in tensors]
        duals = [forward_ad.make_dual(t, d) for t, d in zip(leaves, directions, strict=True)]
        for create_graph in (False, True):
            grads = torch.autograd.grad(loss(*duals), leaves, create_graph=create_graph)
            for g, w in zip(grads, want, strict=True):
                close(forward_ad.unpack_dual(g).tangent, w)


@pytest.mark.parametrize("name", ["construct_kernel", "direct_conv", "im2col_conv", "layer"])
@pytest.mark.parametrize(
    "nest",
    [
        hessian,
        lambda f: jacfwd(jacfwd(f)),
        lambda f: jacrev(jacfwd(f)),
        lambda f: lambda x: vmap(jacfwd(grad(f)))(x[None])[0],
        lambda f: functionalize(jacfwd(grad(f))),
    ],
    ids=["hessian", "jacfwd jacfwd", "jacrev jacfwd", "vmap jacfwd grad", "functionalize"],
)
def test_nests(name: str, nest: Any) -> None:
    of, tensors = function(name, arguments(name))

    def loss(x: Tensor) -> Tensor:
        return of(tensors[0], x, *tensors[2:])[0].sin().sum()

    close(nest(loss)(tensors[1]), jacrev(jacrev(loss))(tensors[1]))


@pytest.mark.parametrize("name", OPERATORS)
def test_functionalize_and_vjp(name: str) -> None:
    args = arguments(name)
    operator = getattr(torch.ops.dcls, name)
    want = results(operator(*args))
    for got, w in zip(results(functionalize(operator)(*args)), want, strict=True):
        assert torch.equal(got, w)
    if name in OF_ALL_ORDERS:
        of, tensors = function(name, args)
        outputs, pull = vjp(of, *tensors)
        leaves = [t.detach().requires_grad_() for t in tensors]
        expected = torch.autograd.grad(of(*leaves), leaves, [o.sin() for o in outputs])
        for a, b in zip(pull(tuple(o.sin() for o in outputs)), expected, strict=True):
            close(a, b)


def test_a_jvp_without_gradients_needs_no_graph() -> None:
    of, tensors = function("layer", arguments("layer"))
    with forward_ad.dual_level(), torch.no_grad():
        dual = forward_ad.make_dual(tensors[1].requires_grad_(), tensors[1].detach())
        (output,) = of(tensors[0], dual, *tensors[2:])
        assert not output.requires_grad
        assert not forward_ad.unpack_dual(output).tangent.requires_grad


@pytest.mark.parametrize("name", ["construct_kernel_backward", "im2col_backward", "layer_backward"])
def test_arguments_that_depend_on_each_other(name: str) -> None:
    """Derivatives by the arguments are partial ones, although one argument is made of another."""
    args = arguments(name)
    place = 3 if name.startswith("layer") else args.index([3, 4]) - 2
    leaf = args[place].detach().requires_grad_()

    def total(P: Tensor) -> Tensor:
        given = [*args[:place], P, P.square() * 0.1 + 0.2, *args[place + 2 :]]
        if name.startswith("layer"):
            with torch.no_grad():
                given[5] = torch.ops.dcls.layer(*given[1:5], None, *given[6:-1])[1]
        return sum(o.sin().sum() for o in getattr(torch.ops.dcls, name)(*given))

    (got,) = torch.autograd.grad(total(leaf), leaf)
    step = 1e-6 * torch.randn_like(leaf)
    difference = (total(leaf.detach() + step) - total(leaf.detach() - step)) / 2
    assert torch.allclose((got * step).sum(), difference, rtol=1e-5)


@pytest.mark.parametrize("method", ["conv", "direct", "im2col"])
def test_jvp_of_an_exported_layer(method: str) -> None:
    torch.manual_seed(0)
    options = {"dilated_kernel_size": (5, 5), "padding": 2, "dtype": torch.float64}
    if method == "im2col":
        layer: Any = im2col_package.modules.Dcls2d(2, 2, 2, **options)
    else:
        layer = Dcls2d(2, 2, 2, groups=2, method=method, **options)
    x, v = torch.randn(2, 1, 2, 6, 6, dtype=torch.float64)
    program = torch.export.export(layer, (x,)).module()
    want = jvp(layer, (x,), (v,))[1]
    assert want.any()
    close(jvp(program, (x,), (v,))[1], want)
    with forward_ad.dual_level():
        close(forward_ad.unpack_dual(program(forward_ad.make_dual(x, v))).tangent, want)


@pytest.mark.parametrize("name", ["construct_kernel", "direct_conv", "im2col_conv"])
def test_jvp_within_a_compiled_function(name: str) -> None:
    torch.compiler.reset()
    of, tensors = function(name, arguments(name))

    def derivative(x: Tensor) -> Tensor:
        return jvp(lambda x: of(tensors[0], x, *tensors[2:])[0].sin(), (x,), (x.cos(),))[1]

    want = derivative(tensors[1])
    assert want.any()
    close(torch.compile(derivative, backend="aot_eager")(tensors[1]), want)


def test_a_layer_that_ran_before_the_dual_level() -> None:
    """Its backward pass carries the tangents of the cotangent."""
    torch.manual_seed(0)
    layer = Dcls2d(2, 2, 2, dilated_kernel_size=5, padding=2, groups=2, method="direct").double()
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    output = layer(x)
    cotangent, v = torch.randn(2, *output.shape, dtype=torch.float64)
    want = torch.autograd.grad(output, layer.P, v, retain_graph=True)[0]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(cotangent, v)
        (got,) = torch.autograd.grad(output, layer.P, dual, retain_graph=True)
        close(forward_ad.unpack_dual(got).tangent, want)
    both = torch.autograd.grad(output, layer.P, torch.stack([v, 2 * v]), is_grads_batched=True)[0]
    close(both, torch.stack([want, 2 * want]))


def direct(x: Tensor, kernel: Tensor, bias: Tensor, support: Tensor) -> Tensor:
    return torch.ops.dcls.direct_conv(x, kernel, bias, support, [2, 1], [1, 0], [1, 1], 2)


def masked(x: Tensor, kernel: Tensor, bias: Tensor, support: Tensor) -> Tensor:
    kernel = torch.where(support, kernel, kernel.detach())
    return torch.nn.functional.conv2d(x, kernel, bias, (2, 1), (1, 0), 1, 2)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_cells_outside_of_the_support_are_constants_in_all_orders(order: int) -> None:
    """In every nest of modes, by input, kernel and bias together."""
    *tensors, support = arguments("direct_conv", with_support=True)[:4]
    directions = [tuple(torch.randn_like(t) for t in tensors) for _ in range(order)]

    def derivative(conv: Any, modes: tuple[str, ...]) -> tuple[Tensor, ...]:
        def loss(*given: Tensor) -> Tensor:
            return conv(*given, support).sin().sum()

        for mode, d in zip(modes, directions, strict=True):
            before = loss
            if mode == "forward":
                loss = lambda *t, f=before, d=d: jvp(f, t, d)[1]  # noqa: E731
            else:
                loss = lambda *t, f=before, d=d: sum(  # noqa: E731
                    (g * e).sum() for g, e in zip(grad(f, (0, 1, 2))(*t), d, strict=True)
                )
        return (loss(*tensors), *grad(loss, (0, 1, 2))(*tensors))

    for bits in range(2**order):
        modes = tuple("forward" if bits >> i & 1 else "reverse" for i in range(order))
        # The reference detaches at all levels, which a jvp of the reference can do as well.
        for got, want in zip(derivative(direct, modes), derivative(masked, modes), strict=True):
            close(got, want)
    everything = derivative(direct, ("reverse",) * order)
    without = derivative(
        lambda x, k, b, s: direct(x, k, b, torch.ones_like(s)), ("reverse",) * order
    )
    assert not torch.allclose(everything[2], without[2])


def test_vmap_of_derivatives_with_support() -> None:
    x, kernel, bias, support = arguments("direct_conv", with_support=True)[:4]
    kernels, supports = torch.stack([kernel, kernel.flip(0)]), torch.stack([support, ~support])

    def second(conv: Any) -> Any:
        return lambda k, s: jvp(grad(lambda k: conv(x, k, bias, s).sin().sum()), (k,), (k.cos(),))[
            1
        ]

    close(vmap(second(direct))(kernels, supports), vmap(second(masked))(kernels, supports))
