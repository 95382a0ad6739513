"""Forward-mode derivatives, by torch.func and by torch.autograd.forward_ad."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from im2col_problem import make_im2col
from layers import LAYERS, Layer, assert_close, layer_id
from support import SIGMA_VERSIONS, VERSIONS
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, hessian, jacfwd, jacrev, jvp, vmap

from DCLS import im2col as im2col_package
from DCLS import reference
from DCLS.functional import construct_kernel, direct_conv, im2col, im2col_conv

Function = Callable[..., Tensor]
SIZE = (4, 5)


def off_the_kinks(P: Tensor, SIG: Tensor | None) -> None:
    """Moves positions and widths, in place, to where the taps have a derivative."""
    P.copy_(P.clamp(-1.5, 1.5).floor() + 0.2 + 0.6 * torch.rand_like(P))
    if SIG is not None:
        SIG.copy_(P.frac().abs() * 0.1 + 0.11)


def make_construct(version: str, device: str = "cpu") -> tuple[Function, Function, list[Tensor]]:
    torch.manual_seed(0)
    weight = torch.randn(2, 3, dtype=torch.float64, device=device)
    P = torch.randn(2, 2, 3, dtype=torch.float64, device=device)
    SIG = torch.empty_like(P) if version in SIGMA_VERSIONS else None
    off_the_kinks(P, SIG)
    options: dict[str, Any] = {"dilated_kernel_size": SIZE, "version": version}
    tensors = [weight, P] if SIG is None else [weight, P, SIG]
    return (
        lambda *tensors: construct_kernel(*tensors, **options),
        lambda *tensors: reference.construct_kernel(*tensors, **options),
        tensors,
    )


def make_of_im2col(
    name: str, version: str, device: str = "cpu"
) -> tuple[Function, Function, list[Tensor]]:
    torch.manual_seed(0)
    few = {"batch": 2, "channels": 2, "out_channels": 2, "elements": 2, "groups": 2}
    problem = make_im2col(version, (4, 5), (3, 4), stride=(2, 1), device=device, **few)
    tensors = {name: tensor.detach() for name, tensor in problem.tensors.items()}
    off_the_kinks(tensors["P"], tensors.get("SIG"))
    options, ours, plain = dict(problem.options), im2col, reference.im2col
    order: tuple[str, ...] = ("input", "P", "SIG")
    if name == "im2col_conv":
        options["groups"], ours, plain = 2, im2col_conv, reference.im2col_conv
        order = ("input", "weight", "bias", "P", "SIG")
    sides = [side for amount in problem.padding for side in (amount, amount)]
    return (
        lambda *tensors: ours(*tensors, **options),
        lambda *tensors: plain(*tensors, **{**options, "padding": sides}),
        [tensors[key] for key in order if key in tensors],
    )


def make_direct_conv(device: str = "cpu") -> tuple[Function, Function, list[Tensor]]:
    torch.manual_seed(0)
    shapes = ((2, 4, 5, 6), (6, 2, 3, 2), (6,))
    tensors = [torch.randn(shape, dtype=torch.float64, device=device) for shape in shapes]
    geometry = (2, 1, 1, 2)
    return (
        lambda x, kernel, bias: direct_conv(x, kernel, bias, *geometry),
        lambda x, kernel, bias: torch.nn.functional.conv2d(x, kernel, bias, *geometry),
        tensors,
    )


CASES = {
    **{f"construct_kernel-{v}": (make_construct, (v,)) for v in VERSIONS},
    **{
        f"{name}-{v}": (make_of_im2col, (name, v))
        for name in ("im2col", "im2col_conv")
        for v in VERSIONS
    },
    "direct_conv": (make_direct_conv, ()),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest, device: str) -> tuple[Function, Function, list[Tensor]]:
    """A function, the same in plain torch, and arguments where both have derivatives."""
    make, arguments = request.param
    return make(*arguments, device=device)  # type: ignore[no-any-return]


def test_forward_mode_agrees_with_numeric_derivatives(
    case: tuple[Function, Function, list[Tensor]],
) -> None:
    function, _, tensors = case
    leaves = [t.requires_grad_() for t in tensors]
    checks = {"check_forward_ad": True, "check_batched_forward_grad": True, "fast_mode": False}
    assert gradcheck(function, leaves, check_backward_ad=False, **checks)
    assert gradgradcheck(function, leaves, check_fwd_over_rev=True, fast_mode=True)


def test_jvp_is_that_of_plain_torch(case: tuple[Function, Function, list[Tensor]]) -> None:
    function, plain, tensors = case
    tangents = tuple(torch.randn_like(t) for t in tensors)
    output, tangent = jvp(function, tuple(tensors), tangents)
    assert torch.equal(output, function(*tensors))
    assert_close(tangent, jvp(plain, tuple(tensors), tangents)[1])
    with forward_ad.dual_level():
        # A single argument with a tangent is enough.
        for i, t in enumerate(tensors):
            given = [*tensors[:i], forward_ad.make_dual(t, tangents[i]), *tensors[i + 1 :]]
            got = forward_ad.unpack_dual(function(*given)).tangent
            assert_close(got, forward_ad.unpack_dual(plain(*given)).tangent)
        assert forward_ad.unpack_dual(function(*tensors)).tangent is None


@pytest.mark.parametrize(
    "transform",
    [
        hessian,
        lambda f: jacrev(jacfwd(f)),
        lambda f: jacfwd(jacfwd(f)),
        lambda f: lambda x: vmap(lambda v: jvp(jacrev(f), (x,), (v,))[1])(torch.ones_like(x)[None]),
        lambda f: lambda x: jvp(lambda x: vmap(f)(torch.stack([x, x.sin()])), (x,), (x,))[1],
    ],
    ids=["hessian", "jacrev of jacfwd", "jacfwd of jacfwd", "vmap of jvp of jacrev", "jvp of vmap"],
)
@pytest.mark.parametrize(
    ("name", "argument"),
    [("construct_kernel-max", 1), ("im2col-gauss", 1), ("im2col_conv-v1", 3), ("direct_conv", 1)],
)
def test_forward_mode_with_the_other_transforms(
    name: str, argument: int, transform: Callable[[Function], Function], device: str
) -> None:
    make, arguments = CASES[name]
    function, plain, tensors = make(*arguments, device=device)

    def loss(function: Function) -> Function:
        def of(x: Tensor) -> Tensor:
            return function(*tensors[:argument], x, *tensors[argument + 1 :]).sin().sum()

        return of

    got = transform(loss(function))(tensors[argument])
    assert got.abs().max() > 1e-3
    assert_close(got, transform(loss(plain))(tensors[argument]))


def test_a_cell_outside_of_the_support_is_a_constant_in_either_mode(device: str) -> None:
    _, _, (x, kernel, bias) = make_direct_conv(device)
    support = torch.rand_like(kernel) < 0.5

    def of_kernel(kernel: Tensor) -> Tensor:
        return direct_conv(x, kernel, bias, 2, 1, 1, 2, support)

    forward = jacfwd(of_kernel)(kernel)
    assert_close(forward, jacrev(of_kernel)(kernel))
    assert not forward[..., ~support].any()
    assert forward[..., support].any()

    def second(transform: Callable[[Function], Function]) -> Tensor:
        return transform(jacrev(lambda kernel: of_kernel(kernel).sin().sum()))(kernel)

    assert_close(second(jacfwd), second(jacrev))


def test_mixed_derivatives_count_cells_outside_of_the_support_as_constant(device: str) -> None:
    """By input and kernel, in either order, as with a kernel that is masked."""
    x, kernel, bias = make_direct_conv(device)[2]
    x, kernel = x[:1], kernel[:2, :, :2]
    support = torch.rand_like(kernel) < 0.5

    def ours(x: Tensor, kernel: Tensor) -> Tensor:
        return direct_conv(x, kernel, bias[:2], 2, 1, 1, 2, support).sin().sum()

    def masked(x: Tensor, kernel: Tensor) -> Tensor:
        kernel = torch.where(support, kernel, kernel.detach())
        return torch.nn.functional.conv2d(x, kernel, bias[:2], 2, 1, 1, 2).sin().sum()

    for first, second in ((0, 1), (1, 0), (1, 1)):
        got, want = (jacrev(jacrev(f, first), second)(x, kernel) for f in (ours, masked))
        assert want.abs().max() > 1e-3
        assert_close(got, want)


@pytest.mark.parametrize("method", ["conv", "direct"])
@pytest.mark.parametrize("layer", LAYERS, ids=layer_id)
def test_jacobian_of_every_layer(layer: Layer, method: str) -> None:
    torch.manual_seed(1)
    module = layer.make(dtype=torch.float64, in_channels=2, out_channels=2, kernel_count=2)
    if not layer.transposed:
        module.method = method
    with torch.no_grad():
        off_the_kinks(module.P, module.SIG)
    x = layer.input(module, 1)
    parameters = dict(module.named_parameters())

    def output(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(module, parameters, (x,))

    forward, backward = jacfwd(output)(parameters), jacrev(output)(parameters)
    for name in parameters:
        assert forward[name].any()
        assert_close(forward[name], backward[name])


def test_jacobian_of_an_im2col_layer() -> None:
    torch.manual_seed(1)
    module = im2col_package.modules.Dcls2d(
        *(2, 2, 2), padding="same", dilated_kernel_size=SIZE, dtype=torch.float64
    )
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    parameters = dict(module.named_parameters())

    def output(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(module, parameters, (x,))

    forward, backward = jacfwd(output)(parameters), jacrev(output)(parameters)
    for name in parameters:
        assert forward[name].any()
        assert_close(forward[name], backward[name])


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("name", "argument"),
    [("construct_kernel-gauss", 1), ("im2col-v1", 1), ("im2col_conv-gauss", 3), ("direct_conv", 1)],
)
def test_transforms_within_autocast(
    name: str, argument: int, low: torch.dtype, device: str
) -> None:
    """The derivatives are those at the tensors that the operator computes with."""
    make, arguments = CASES[name]
    function, plain, tensors = make(*arguments, device=device)
    # Numbers that 16 bits hold: then the cast changes none of them.
    tensors = [t.to(low).float() for t in tensors]

    def of(function: Function) -> Function:
        return lambda x: function(*tensors[:argument], x, *tensors[argument + 1 :]).float()

    chosen, v = tensors[argument], torch.randn_like(tensors[argument])
    with torch.autocast(device, low):
        got = jvp(of(function), (chosen,), (v,))[1], jacrev(of(function))(chosen)
        second = jacfwd(jacrev(lambda x: of(function)(x).square().sum()))(chosen)
    want = jvp(of(plain), (chosen,), (v,))[1], jacrev(of(plain))(chosen)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() <= 0.02 * b.norm()
    assert second.dtype == torch.float32
    want_second = jacfwd(jacrev(lambda x: of(plain)(x).square().sum()))(chosen)
    assert (second - want_second).norm() <= 0.02 * want_second.norm()
