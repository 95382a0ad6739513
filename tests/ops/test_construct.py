"""The construct operator against the float64 oracle."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings
from support import (
    NORMALISED,
    SIGMA_VERSIONS,
    TOLERANCE,
    VERSIONS,
    assert_matches_oracle,
    make_problem,
    relative_error,
)

from DCLS import reference
from DCLS.functional import construct_kernel

#: It runs with torch expressions, too: see conftest.
pytestmark = pytest.mark.any_backend

SIZES = [
    (1,),
    (2,),
    (7,),
    (16,),
    (17,),
    (129,),
    (1, 1),
    (5, 8),
    (17, 17),
    (2, 33),
    (40, 3),
    (3, 4, 5),
    (9, 9, 9),
    (1, 6, 2),
]


@pytest.mark.sanitizer
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_matches_oracle(version, size, dtype, device):
    assert_matches_oracle(make_problem(version, size, dtype=dtype, device=device), TOLERANCE[dtype])


@pytest.mark.sanitizer
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", [(9,), (7, 8), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sixteen_bit_types_are_computed_in_float32(version, size, dtype, device):
    problem = make_problem(version, size, dtype=dtype, device=device)
    assert_matches_oracle(problem, TOLERANCE[dtype])
    # Only the results are rounded: to at most half a unit of the type in the last place.
    for got, exact in zip(problem.run(), problem.to(torch.float32).run(), strict=True):
        torch.testing.assert_close(got, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (2, 3, 4), (1, 1, 1, 2)], ids=str)
def test_any_leading_dimensions(version, lead, device):
    problem = make_problem(version, (5, 4), lead=lead, device=device)
    assert problem.run()[0].shape == (*lead, 5, 4)
    assert_matches_oracle(problem, TOLERANCE[torch.float64])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("elements", [1, 2, 34, 300])
def test_any_number_of_elements(version, elements, device):
    problem = make_problem(version, (6, 7), elements=elements, device=device)
    assert_matches_oracle(problem, TOLERANCE[torch.float64])


@pytest.mark.sanitizer
@pytest.mark.parametrize("version", VERSIONS)
def test_kernels_larger_than_a_cuda_tile(version, device):
    """1024 cells are a tile: on one axis, over two, and with one very long axis."""
    for size in [(1500,), (40, 41), (3, 700), (2000, 2), (11, 12, 13)]:
        problem = make_problem(version, size, lead=(2,), elements=3, device=device)
        assert_matches_oracle(problem, TOLERANCE[torch.float64])


@settings(max_examples=150, deadline=None)
@given(
    version=st.sampled_from(VERSIONS),
    size=st.lists(st.integers(1, 20), min_size=1, max_size=3).filter(
        lambda size: torch.Size(size).numel() <= 1500
    ),
    lead=st.lists(st.integers(0, 4), max_size=3),
    elements=st.integers(0, 12),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 2**31),
)
# A tap of 1e-3, alone on its axis: plain torch in float32 misses the derivative by 1.5e-5.
@example("max", [4, 3, 2], [2, 4, 4], 9, torch.float32, 15801)
# A grid of one point, which a gaussian far from it weighs: plain torch is the nearer by luck.
@example("gauss", [1], [], 3, torch.float32, 1485209)
def test_random_shapes(version, size, lead, elements, dtype, seed):
    problem = make_problem(version, size, lead, elements, dtype, seed=seed)
    assert_matches_oracle(problem, TOLERANCE[dtype])


@pytest.mark.parametrize("version", VERSIONS)
def test_gradients_can_be_left_out(version, device):
    """Each subset of the gradients equals the same ones of the full set, bit for bit."""
    problem = make_problem(version, (6, 7), device=device)
    full = dict(zip(("weight", "P", "SIG"), problem.run()[1:], strict=False))
    for subset in range(1, 1 << len(problem.inputs)):
        chosen = [name for i, name in enumerate(full) if subset >> i & 1]
        for name in full:
            getattr(problem, name).requires_grad_(name in chosen)
        kernel = construct_kernel(
            problem.weight, problem.P, problem.SIG, dilated_kernel_size=(6, 7), version=version
        )
        grads = torch.autograd.grad(
            kernel, [getattr(problem, name) for name in chosen], problem.cotangent
        )
        for name, grad in zip(chosen, grads, strict=True):
            assert torch.equal(grad, full[name]), (chosen, name)


def test_v0_subgradient_is_right_sided(device):
    weight = torch.ones(1, dtype=torch.float64, device=device)
    P = torch.zeros(1, 1, dtype=torch.float64, device=device, requires_grad=True)
    kernel = construct_kernel(weight, P, dilated_kernel_size=5, version="v0")
    assert kernel.tolist() == [0, 0, 1, 0, 0]
    grads = [torch.autograd.grad(kernel[x], P, retain_graph=True)[0].item() for x in range(5)]
    assert grads == [0, 0, -1, 1, 0]


def test_v1_and_max_subgradients_are_zero_at_the_kinks(device):
    weight = torch.ones(1, dtype=torch.float64, device=device)
    P = torch.zeros(1, 1, dtype=torch.float64, device=device, requires_grad=True)
    SIG = torch.zeros(1, 1, dtype=torch.float64, device=device, requires_grad=True)
    for version, sigma in (("v1", None), ("max", SIG)):
        kernel = construct_kernel(weight, P, sigma, dilated_kernel_size=5, version=version)
        assert kernel.count_nonzero() == 1
        (grad,) = torch.autograd.grad(kernel[1] + 2 * kernel[2], P, retain_graph=True)
        assert grad.item() == 0
    assert torch.autograd.grad(kernel.sum(), SIG)[0].item() == 0


@pytest.mark.parametrize("version", NORMALISED)
def test_normalised_elements_sum_to_their_weight(version, device):
    problem = make_problem(version, (9, 9), elements=1, device=device)
    with torch.no_grad():
        problem.P.clamp_(-4, 4)
    kernel = problem.run()[0]
    torch.testing.assert_close(kernel.sum((-1, -2)), problem.weight.squeeze(-1), rtol=1e-4, atol=0)


def test_position_belongs_to_its_axis(device):
    """P[d] moves the element along kernel axis d."""
    weight = torch.ones(1, dtype=torch.float64, device=device)
    P = torch.tensor([[1.0], [-2.0], [3.0]], dtype=torch.float64, device=device)
    for version in ("v0", "v1"):
        kernel = construct_kernel(weight, P, dilated_kernel_size=(5, 6, 7), version=version)
        assert kernel.argmax().item() == ((2 + 1) * 6 + (3 - 2)) * 7 + (3 + 3)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("size", [(7,), (5, 6), (3, 4, 5), (1500,)], ids=str)
def test_non_finite_position_makes_its_row_nan(version, bad, size, device):
    problem = make_problem(version, size, device=device)
    finite = problem.run()
    with torch.no_grad():
        problem.P[0, 1, 0, 2] = bad
    kernel, *grads = problem.run()
    assert kernel.isnan().flatten(2).all(-1).tolist() == [[False] * 2, [True, False], [False] * 2]
    # Everything that does not depend on the element is what it was.
    kernel[1, 0] = finite[0][1, 0]
    assert torch.equal(kernel, finite[0])
    for grad, before in zip(grads, finite[1:], strict=True):
        assert grad[..., 1, 0, 2].isnan().all()
        grad[..., 1, 0, 2] = before[..., 1, 0, 2]
        assert torch.equal(grad, before)


def test_reference_agrees_on_non_finite_positions():
    for version in VERSIONS:
        problem = make_problem(version, (5, 6))
        with torch.no_grad():
            problem.P[0, 1, 0, 2] = float("inf")
        ours, oracle = (
            problem.run(function)[0] for function in (construct_kernel, reference.construct_kernel)
        )
        torch.testing.assert_close(ours, oracle, rtol=1e-10, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("far", [1e4, 1e30, -1e30, 3e38], ids=str)
def test_position_far_outside_gives_zeros(version, dtype, far, device):
    problem = make_problem(version, (5, 6), dtype=dtype, device=device)
    with torch.no_grad():
        problem.P[1, 0, 0] = far
        if problem.SIG is not None:
            problem.SIG.clamp_(-1, 1)
    kernel, *grads = problem.run()
    assert kernel[0, 0].count_nonzero() == 0
    assert all(grad.isfinite().all() for grad in grads)
    assert grads[1][:, 0, 0].count_nonzero() == 0


@pytest.mark.parametrize("version", SIGMA_VERSIONS)
def test_sigma_min(version, device):
    problem = make_problem(version, (7,), device=device)
    options = {"dilated_kernel_size": (7,), "version": version}
    got = construct_kernel(problem.weight, problem.P, problem.SIG, **options, sigma_min=1.5)
    expected = reference.construct_kernel(
        problem.weight, problem.P, problem.SIG, **options, sigma_min=1.5
    )
    assert relative_error(got, expected) < 1e-12
    default = construct_kernel(problem.weight, problem.P, problem.SIG, **options)
    assert relative_error(got, default) > 1e-2


@pytest.mark.parametrize("version", SIGMA_VERSIONS)
@pytest.mark.parametrize("sigma", [1e-30, 1e5], ids=str)
def test_extreme_widths(version, sigma, device):
    problem = make_problem(version, (6, 7), device=device)
    with torch.no_grad():
        problem.SIG.fill_(sigma)
    # A width of 1e5 makes a nearly constant tap: five digits cancel in its derivatives.
    assert_matches_oracle(problem, 1e-10 if sigma < 1 else 1e-7)


@pytest.mark.parametrize("version", SIGMA_VERSIONS)
def test_huge_width_gives_a_constant_kernel(version, device):
    problem = make_problem(version, (6, 7), device=device)
    with torch.no_grad():
        problem.P.clamp_(-3, 3)
        problem.SIG.fill_(1e30)
    kernel, *grads = problem.run()
    mean = (problem.weight.sum(-1) / 42)[..., None, None].expand_as(kernel)
    torch.testing.assert_close(kernel, mean, rtol=1e-6, atol=1e-9)
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("lead", "elements"), [((0, 3), 4), ((2, 0), 4), ((2, 3), 0)], ids=str)
def test_empty(version, lead, elements, device):
    problem = make_problem(version, (5, 6), lead=lead, elements=elements, device=device)
    kernel, *grads = problem.run()
    assert kernel.shape == (*lead, 5, 6)
    assert kernel.count_nonzero() == 0
    assert [g.shape for g in grads] == [t.shape for t in problem.inputs]


@pytest.mark.parametrize("version", VERSIONS)
def test_strided_inputs(version, device):
    problem = make_problem(version, (5, 6), lead=(4, 3), device=device)
    plain = problem.run()
    for name in ("weight", "P", "SIG", "cotangent"):
        tensor = getattr(problem, name)
        if tensor is not None:
            strided = tensor.detach().transpose(-1, -2).contiguous().transpose(-1, -2)
            assert not strided.is_contiguous()
            setattr(problem, name, strided.requires_grad_(name != "cotangent"))
    for a, b in zip(problem.run(), plain, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bitwise_equal_for_any_number_of_threads(version, dtype):
    problem = make_problem(version, (17, 17), lead=(50, 20), elements=9, dtype=dtype)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(problem.run())
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.native
def test_no_denormals_in_a_gaussian_kernel():
    """They would slow down every convolution with it."""
    problem = make_problem("gauss", (63, 63), lead=(8, 8), dtype=torch.float32)
    for tensor in problem.run():
        smallest = tensor[tensor != 0].abs().min().item()
        assert smallest >= torch.finfo(torch.float32).tiny


def test_memory_is_that_of_the_result():
    """No intermediate of grid times elements: a kernel that would take 5 TB that way."""
    weight = torch.ones(4, 3000)
    P = torch.zeros(2, 4, 3000)
    kernel = construct_kernel(weight, P, P, dilated_kernel_size=(101, 101))
    torch.testing.assert_close(kernel.sum((-1, -2)), torch.full((4,), 3000.0), rtol=1e-4, atol=0)
