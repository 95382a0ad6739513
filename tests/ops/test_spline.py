"""What the cubic B-spline is for: smooth, never negative, and a partition of unity.

That the native library agrees with the oracle is held, as for every version, by the other tests.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from DCLS import reference
from DCLS.functional import construct_kernel, construct_support, im2col

SIZE = 9


def kernel_of(position: Tensor) -> Tensor:
    """The kernel of one element of weight 1 in one dimension, for each position."""
    weight = torch.ones_like(position)[:, None]
    return construct_kernel(
        weight, position[None, :, None], dilated_kernel_size=SIZE, version="spline"
    )


def derivatives(position: float, x: int) -> list[float]:
    """A cell of the kernel, and its first and second derivative by the position."""
    p = torch.tensor([position], dtype=torch.float64, requires_grad=True)
    value = kernel_of(p)[0, x]
    (first,) = torch.autograd.grad(value, p, create_graph=True)
    (second,) = torch.autograd.grad(first, p)
    return [value.item(), first.item(), second.item()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_taps_are_a_partition_of_unity_and_never_negative(dtype: torch.dtype, device: str) -> None:
    positions = torch.linspace(-2, 2, 401, dtype=torch.float64).to(device, dtype)
    taps = reference.taps(positions, None, SIZE, "spline")
    unity = torch.ones_like(positions)
    torch.testing.assert_close(taps.sum(-1), unity)
    kernel = kernel_of(positions)
    assert kernel.min() >= 0
    # Not normalised by chance only: each tap is the spline's, and not a multiple of it.
    torch.testing.assert_close(kernel, taps, rtol=0, atol=3e-7)
    assert (kernel != 0).sum(-1).max() == 4
    everywhere = torch.linspace(-60, 60, 2001, dtype=torch.float64).to(device, dtype)
    assert kernel_of(everywhere).min() >= 0


def test_taps_at_grid_points_and_between() -> None:
    kernel = kernel_of(torch.tensor([0.0, 0.5, -3.0], dtype=torch.float64)) * (1 + 1e-7)
    want = torch.zeros(3, SIZE, dtype=torch.float64)
    want[0, 3:6] = torch.tensor([1, 4, 1]) / 6
    want[1, 3:7] = torch.tensor([1, 23, 23, 1]) / 48
    want[2, 0:3] = torch.tensor([1, 4, 1]) / 6
    torch.testing.assert_close(kernel, want)


@pytest.mark.parametrize("at", [-2.0, -1.0, 0.0, 1.0, 2.0])
def test_two_derivatives_by_the_position_are_continuous(at: float) -> None:
    step = 1e-7
    for x in range(SIZE):
        left, here, right = (derivatives(p, x) for p in (at - step, at, at + step))
        for order in range(3):  # they change by at most the next derivative, 3, times the step
            assert abs(left[order] - here[order]) < 5 * step
            assert abs(right[order] - here[order]) < 5 * step
    centre = derivatives(at, SIZE // 2 + int(at))
    assert centre == pytest.approx([2 / 3, 0, -2], abs=1e-6)


def test_a_linear_version_has_the_kink_that_a_spline_has_not() -> None:
    def slope(version: str, position: float) -> float:
        p = torch.tensor([[[position]]], dtype=torch.float64, requires_grad=True)
        weight = torch.ones(1, 1, dtype=torch.float64)
        kernel = construct_kernel(weight, p, dilated_kernel_size=SIZE, version=version)
        return torch.autograd.grad(kernel[0, SIZE // 2], p)[0].item()

    jumps = {v: slope(v, 1e-9) - slope(v, -1e-9) for v in ("v0", "v1", "spline")}
    assert jumps["v0"] == pytest.approx(-2)
    assert jumps["v1"] == pytest.approx(-2)
    assert abs(jumps["spline"]) < 1e-8


@pytest.mark.parametrize("size", [(6,), (5, 4), (3, 4, 5), (1, 2)], ids=str)
def test_gradients_twice_at_grid_points_too(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    P = torch.randn(len(size), 2, 3, dtype=torch.float64)
    P[..., 0] = P[..., 0].round()
    P.requires_grad_()

    def build(weight: Tensor, P: Tensor) -> Tensor:
        return construct_kernel(weight, P, dilated_kernel_size=size, version="spline")

    assert torch.autograd.gradcheck(build, (weight, P), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(build, (weight, P))


def test_gradients_of_im2col() -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 2, 7, 6, dtype=torch.float64, requires_grad=True)
    P = torch.randn(2, 2, 3, dtype=torch.float64)
    P[..., 0] = P[..., 0].round()
    P.requires_grad_()

    def columns(x: Tensor, P: Tensor) -> Tensor:
        return im2col(x, P, dilated_kernel_size=(5, 4), padding=2, version="spline")

    assert torch.autograd.gradcheck(columns, (x, P))


def test_support_is_four_points_on_each_axis(device: str) -> None:
    P = torch.tensor([[[0.25]], [[-1.5]]], dtype=torch.float32, device=device)
    support = construct_support(P, dilated_kernel_size=(9, 11), version="spline")
    want = torch.zeros(1, 9, 11, dtype=torch.bool, device=device)
    want[0, 3:7, 2:6] = True
    assert torch.equal(support, want)


def test_far_and_diverged_positions(device: str) -> None:
    far = torch.tensor([1e30, -1e30, 3.4e38], device=device, requires_grad=True)
    kernel = kernel_of(far)
    assert torch.equal(kernel, torch.zeros_like(kernel))
    (grad,) = torch.autograd.grad(kernel.sum(), far)
    assert torch.equal(grad, torch.zeros_like(grad))
    oracle = reference.taps(far, None, SIZE, "spline")
    (grad,) = torch.autograd.grad(oracle.sum(), far)
    assert torch.equal(grad, torch.zeros_like(grad))
    bad = torch.tensor([torch.nan, torch.inf, -torch.inf], device=device)
    assert kernel_of(bad).isnan().all()
