"""The support of the constructed kernel, and the gaussian tails that are left out of it."""

from __future__ import annotations

import pytest
import torch
from support import SIGMA_VERSIONS, VERSIONS, make_problem, relative_error

from DCLS import reference
from DCLS._spec import SIGMA_MIN
from DCLS.functional import construct_kernel

SIZES = [(1,), (2,), (17,), (5, 8), (17, 33), (3, 4, 5), (1, 6, 18)]


def arguments(problem):
    return (
        problem.P.detach(),
        None if problem.SIG is None else problem.SIG.detach(),
        list(problem.size),
        problem.version,
        SIGMA_MIN[problem.version],
    )


def run(problem):
    return construct_kernel(
        *(problem.weight, problem.P, problem.SIG),
        dilated_kernel_size=problem.size,
        version=problem.version,
        return_support=True,
    )


def by_autograd(problem):
    """Cells where an element of the reference has a tap or a derivative, by its autograd."""
    P, SIG = (
        None if t is None else t.detach().double().requires_grad_()
        for t in (problem.P, problem.SIG)
    )
    inputs = [t for t in (P, SIG) if t is not None]
    lead, elements, size = P.shape[1:-1], P.shape[-1], problem.size
    # One kernel an element: weight 1, and the elements among the leading dimensions.
    kernel = reference.construct_kernel(
        torch.ones(*lead, elements, 1, dtype=torch.float64),
        *(None if t is None else t.unsqueeze(-1) for t in (P, SIG)),
        dilated_kernel_size=size,
        version=problem.version,
    )
    cells = kernel.reshape(*lead, elements, -1)
    moved = torch.zeros_like(cells)
    for cell in range(cells.shape[-1]):
        for grad in torch.autograd.grad(cells[..., cell].sum(), inputs, retain_graph=True):
            moved[..., cell] += grad.abs().sum(0)
    return (cells.abs() + moved).detach().amax(-2).reshape(*lead, *size)


@pytest.mark.parametrize("version", [v for v in VERSIONS if v != "gauss"])  # it has a cut
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_is_where_the_reference_has_taps_or_derivatives(version, size, dtype):
    problem = make_problem(version, size, dtype=torch.float64)
    with torch.no_grad():  # exact in every dtype, with many a grid point among them
        for tensor in (problem.P, problem.SIG):
            if tensor is not None:
                tensor.copy_((tensor * 4).round().clamp(-64, 64) / 4)
    problem = problem.to(dtype)
    support = run(problem)[1]
    assert support.dtype == torch.bool
    assert not support.requires_grad
    assert support.shape == (3, 2, *size)
    assert torch.equal(support, by_autograd(problem) > 0)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_gauss_leaves_out_only_what_does_not_matter(size, dtype):
    problem = make_problem("gauss", size, dtype=dtype)
    with torch.no_grad():
        problem.SIG.mul_(0.3)
    kernel, support = run(problem)
    importance = by_autograd(problem)
    left_out = importance.masked_fill(support, 0).amax()
    threshold = 1e-8 if dtype == torch.float32 else 1e-16
    assert left_out <= threshold * importance.amax()
    assert kernel.masked_fill(support, 0).count_nonzero() == 0


@pytest.mark.sanitizer
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_gradients_come_from_the_support_alone(version, size, dtype, device):
    problem = make_problem(version, size, dtype=dtype, device=device)
    kernel, support = run(problem)
    full = torch.autograd.grad(kernel, problem.inputs, problem.cotangent, retain_graph=True)
    inside = torch.autograd.grad(kernel, problem.inputs, problem.cotangent * support)
    for a, b in zip(full, inside, strict=True):
        assert torch.equal(a, b)
    assert kernel.masked_fill(support, 0).count_nonzero() == 0


def test_gaussian_tails_are_relative_to_the_largest_tap_on_the_grid():
    """An element outside the grid has small taps only, which its normalisation makes matter."""
    options = {"dilated_kernel_size": [25], "version": "gauss"}
    distances = torch.tensor([-17.0, -14.0, -12.3, 0.0, 11.5, 12.4, 14.0, 18.0])
    weight = torch.ones(8, 1)
    P = distances.reshape(1, 8, 1).requires_grad_()
    SIG = torch.full_like(P, 0.9).detach().requires_grad_()
    kernel, support = construct_kernel(weight, P, SIG, **options, return_support=True)
    assert support.any(-1).all()
    assert not support.all(-1).any()
    exact = [t.detach().double().requires_grad_() for t in (P, SIG)]
    expected = reference.construct_kernel(weight.double(), *exact, **options)
    # The whole Jacobian: one contraction of it may cancel to nothing but rounding.
    jacobian, oracle = (
        torch.stack(
            [
                torch.stack(torch.autograd.grad(k[:, x].sum(), t, retain_graph=True))
                for x in range(25)
            ]
        )
        for k, t in ((kernel, [P, SIG]), (expected, exact))
    )
    for row in range(8):
        assert relative_error(kernel[row], expected[row]) < 1e-6
        for i in range(2):
            assert relative_error(jacobian[:, i, 0, row], oracle[:, i, 0, row]) < 1e-5


@pytest.mark.parametrize("width", [0.05, 0.3, 1.0, 3.0])
def test_gaussian_accuracy_over_widths(width, device):
    """Each row by itself, so that an element of small numbers hides behind no other."""
    problem = make_problem("gauss", (23, 25), (40,), 3, torch.float32, device=device)
    with torch.no_grad():
        problem.SIG.fill_(width)
        problem.P.copy_(torch.rand_like(problem.P) * 24 - 12)
    got = problem.run()
    expected = problem.to(torch.float64).run(reference.construct_kernel)
    for row in range(40):
        assert relative_error(got[0][row], expected[0][row]) < 1e-5
        assert relative_error(got[1][row], expected[1][row]) < 1e-5
        for a, b in zip(got[2:], expected[2:], strict=True):
            assert relative_error(a[:, row], b[:, row]) < 2e-5


@pytest.mark.parametrize("size", [(129,), (41, 43), (17, 18, 19)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_no_subnormal_numbers(size, dtype, device):
    weight = torch.tensor([1e-30, 1e-33, 1e-36, 3e-38]).to(device, dtype).reshape(4, 1)
    if dtype == torch.float64:
        weight = weight.pow(8).clamp_min(1e-305)
    P = torch.rand(len(size), 4, 1, device=device).to(dtype)
    kernel = construct_kernel(weight, P, P, dilated_kernel_size=size)
    assert kernel[kernel != 0].abs().min() >= torch.finfo(dtype).tiny
    assert kernel[0].count_nonzero() > 0


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("size", [(40,), (33, 40), (4, 35, 36)], ids=str)
def test_non_finite_position_fills_its_row(version, bad, size, device):
    for axis in range(len(size)):
        problem = make_problem(version, size, device=device)
        _, before = run(problem)
        with torch.no_grad():
            problem.P[axis, 1, 0, 2] = bad
        kernel, support = run(problem)
        assert kernel[1, 0].isnan().all()
        assert kernel.isnan().sum() == kernel[1, 0].numel()
        assert support[1, 0].all()
        support[1, 0] = before[1, 0]
        assert torch.equal(support, before)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("lead", "elements"), [((0, 3), 4), ((2, 0), 4), ((2, 3), 0)], ids=str)
def test_empty(version, lead, elements, device):
    problem = make_problem(version, (5, 6), lead=lead, elements=elements, device=device)
    support = run(problem)[1]
    assert support.shape == (*lead, 5, 6)
    assert not support.any()


@pytest.mark.parametrize("version", VERSIONS)
def test_bitwise_equal_for_any_number_of_threads(version):
    problem = make_problem(version, (17, 17), lead=(50, 20), elements=9, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(run(problem)[1])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("version", VERSIONS)
def test_opcheck(version, device):
    problem = make_problem(version, (4, 5), device=device)
    torch.library.opcheck(torch.ops.dcls.construct_support, arguments(problem))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(version, dynamic, device):
    torch.compiler.reset()

    @torch.compile(fullgraph=True, dynamic=dynamic)
    def compiled(weight, P, SIG):
        kernel, support = construct_kernel(
            *(weight, P, SIG), dilated_kernel_size=(4, 5), version=version, return_support=True
        )
        return (kernel * support).sin(), support

    for rows in (3, 4, 7):
        problem = make_problem(version, (4, 5), lead=(rows, 2), device=device)
        kernel, support = run(problem)
        got, marks = compiled(problem.weight, problem.P, problem.SIG)
        assert torch.equal(marks, support)
        torch.testing.assert_close(got, kernel.sin())
        got = torch.autograd.grad(got.sum(), problem.inputs)
        expected = torch.autograd.grad(kernel.sin().sum(), problem.inputs)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("version", VERSIONS)
def test_transforms(version, device):
    problem = make_problem(version, (4, 5), lead=(6, 2), device=device)
    weight, P = problem.weight.detach(), problem.P.detach()
    SIG = None if problem.SIG is None else problem.SIG.detach()
    expected = run(problem)[1]

    def one(weight, P, SIG):
        return construct_kernel(
            *(weight, P, SIG), dilated_kernel_size=(4, 5), version=version, return_support=True
        )

    sigma_dim = None if SIG is None else 1
    got = torch.func.vmap(one, (0, 1, sigma_dim))(weight, P, SIG)[1]
    assert torch.equal(got, expected)
    shared = torch.func.vmap(one, (0, None, None))(
        weight, P[:, 0], None if SIG is None else SIG[:, 0]
    )[1]
    assert torch.equal(shared, expected[0].expand_as(expected))

    def loss(P):
        kernel, support = one(weight, P, SIG)
        return (kernel * support).square().sum()

    problem.P.requires_grad_()
    (oracle,) = torch.autograd.grad(run(problem)[0].square().sum(), problem.P)
    torch.testing.assert_close(torch.func.grad(loss)(P), oracle)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_takes_positions_as_the_kernel_does(low, device):
    problem = make_problem("v1", (7, 9), dtype=torch.float32, device=device).to(low)
    with torch.autocast(device, low):
        kernel, support = run(problem)
    expected_kernel, expected = run(problem.to(torch.float32))
    assert torch.equal(kernel, expected_kernel)
    assert torch.equal(support, expected)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_does_not_round_the_positions(low, device):
    """7.9999 is 8 in 16 bits: the marks would lack the grid point before it."""
    P = torch.full((1, 1, 1), 7.9999, device=device)
    with torch.autocast(device, low):
        _, support = construct_kernel(
            *(torch.ones(1, 1, device=device), P),
            dilated_kernel_size=21,
            version="v1",
            return_support=True,
        )
    assert support.nonzero()[:, 1].tolist() == [17, 18]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"version": "v2"}, ValueError, "version"),
        ({"dilated_kernel_size": [4]}, ValueError, "P must have shape"),
        ({"dilated_kernel_size": [4, 0]}, ValueError, "dilated_kernel_size"),
        ({"dilated_kernel_size": [4, 5, 6, 7]}, ValueError, "1 to 3 entries"),
        ({"P": torch.zeros(2)}, ValueError, "P must have shape"),
        ({"P": torch.zeros(2, 3, dtype=torch.int32)}, TypeError, "P must have a dtype"),
        ({"SIG": None}, ValueError, "SIG must be given"),
        ({"version": "v1"}, ValueError, "SIG must be None"),
        ({"SIG": torch.zeros(2, 4)}, ValueError, "SIG must have the shape of P"),
        ({"SIG": torch.zeros(2, 3).double()}, TypeError, "SIG must have the dtype of P"),
        ({"sigma_min": float("nan")}, ValueError, "sigma_min"),
    ],
    ids=str,
)
def test_bad_input(change, error, message):
    good = {
        "P": torch.zeros(2, 3),
        "SIG": torch.zeros(2, 3),
        "dilated_kernel_size": [4, 5],
        "version": "gauss",
        "sigma_min": 0.27,
    }
    assert torch.ops.dcls.construct_support(**good).shape == (4, 5)
    with pytest.raises(error, match=message):
        torch.ops.dcls.construct_support(**{**good, **change})


@pytest.mark.parametrize("version", SIGMA_VERSIONS)
def test_sigma_min_widens_it(version, device):
    problem = make_problem(version, (33,), elements=1, device=device)
    narrow, wide = (
        construct_kernel(
            *problem.inputs,
            dilated_kernel_size=33,
            version=version,
            sigma_min=sigma_min,
            return_support=True,
        )[1]
        for sigma_min in (0.3, 3.0)
    )
    assert (narrow & ~wide).sum() == 0
    assert wide.sum() > narrow.sum()
