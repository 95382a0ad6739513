"""vmap of ``torch.ops.dcls`` over each argument and every combination, against a loop."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from op_cases import OPERATORS, arguments, places, results
from torch import Tensor
from torch.func import grad, vmap


def copies(tensor: Tensor, count: int, dim: int) -> Tensor:
    """Other values in each copy, except for what a layer saves, which stays what it is."""
    if tensor.dtype == torch.uint8:
        return torch.stack([tensor] * count, dim)
    return torch.stack([tensor.roll(shift, 0) for shift in range(count)], dim)


def check(name: str, args: list[Any], dims: list[int | None], count: int, out_dim: int) -> None:
    operator = getattr(torch.ops.dcls, name)
    got = vmap(operator, tuple(dims), out_dim)(*args)
    for index in range(count):
        one = [a if d is None else a.select(d, index) for a, d in zip(args, dims, strict=True)]
        for a, b in zip(results(got), results(operator(*one)), strict=True):
            a = a.select(out_dim, index)
            assert a.dtype == b.dtype
            assert torch.allclose(a.double(), b.double(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", OPERATORS)
def test_every_combination_of_arguments(name: str) -> None:
    args = arguments(name, with_support=True)
    tensors = places(args)
    for count in range(1, len(tensors) + 1):
        for chosen in itertools.combinations(tensors, count):
            given, dims = list(args), [None] * len(args)
            for order, place in enumerate(chosen):
                dims[place] = (order + count) % (args[place].ndim + 1)
                given[place] = copies(args[place], 2, dims[place])
            check(name, given, dims, 2, out_dim=0)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_number_of_copies(name: str, count: int) -> None:
    """No copies at all keep the shapes, as for torch's operators."""
    args = arguments(name, with_support=True)
    operator = getattr(torch.ops.dcls, name)
    dims = [0 if isinstance(arg, Tensor) else None for arg in args]
    given = [copies(a, 3, 0)[:count] if isinstance(a, Tensor) else a for a in args]
    if count:
        check(name, given, dims, count, out_dim=1 if count == 3 else 0)
    got = vmap(operator, tuple(dims))(*given)
    for a, b in zip(results(got), results(operator(*args)), strict=True):
        assert a.shape == (count, *b.shape)
        assert a.dtype == b.dtype


@pytest.mark.parametrize("name", OPERATORS)
def test_nested(name: str) -> None:
    """The inner vmap is over one argument, the outer over another."""
    args = arguments(name, with_support=True)
    operator = getattr(torch.ops.dcls, name)
    first, second = places(args)[:2]
    inner = [1 if i == first else None for i in range(len(args))]
    outer = [0 if i == second else None for i in range(len(args))]
    given = list(args)
    given[first], given[second] = copies(args[first], 2, 1), copies(args[second], 3, 0)
    got = vmap(vmap(operator, tuple(inner)), tuple(outer))(*given)
    for i, j in itertools.product(range(3), range(2)):
        one = list(given)
        one[first], one[second] = given[first].select(1, j), given[second][i]
        for a, b in zip(results(got), results(operator(*one)), strict=True):
            assert torch.allclose(a[i, j].double(), b.double(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("chosen", [(3,), (2, 3), (2,), (0, 3)])
def test_inside_and_around_grad(chosen: tuple[int, ...]) -> None:
    args = arguments("direct_conv", with_support=True)
    given, dims = list(args[:4]), [None] * 4
    for place in chosen:
        given[place], dims[place] = copies(args[place], 3, 0), 0

    def loss(*tensors: Tensor) -> Tensor:
        return torch.ops.dcls.direct_conv(*tensors, *args[4:]).sin().sum()

    per_copy = vmap(grad(loss, 1), tuple(dims))(*given)
    total = grad(lambda k: vmap(loss, tuple(dims))(given[0], k, *given[2:]).sum())(given[1])
    want = []
    for index in range(3):
        one = [a if d is None else a[index] for a, d in zip(given, dims, strict=True)]
        leaf = one[1].detach().requires_grad_()
        want.append(torch.autograd.grad(loss(one[0], leaf, *one[2:]), leaf)[0])
    assert torch.allclose(per_copy, torch.stack(want), rtol=1e-11, atol=1e-12)
    assert torch.allclose(total, torch.stack(want).sum(0), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["direct_conv_backward", "im2col_backward", "im2col_conv_backward"]
)
def test_only_the_gradient_of_the_input(name: str) -> None:
    """Copies of grad_output and input then are items of one batch, with any mask but this not."""
    args = arguments(name)
    for wanted in range(len(args[-1])):
        mask = [i == wanted for i in range(len(args[-1]))]
        for chosen in ((0,), (1,), (0, 1)):
            given, dims = [*args[:-1], mask], [None] * len(args)
            for place in chosen:
                given[place], dims[place] = copies(args[place], 2, 0), 0
            operator = getattr(torch.ops.dcls, name)
            got = vmap(lambda *a, o=operator, w=wanted: o(*a)[w], tuple(dims))(*given)
            for index in range(2):
                one = [a if d is None else a[index] for a, d in zip(given, dims, strict=True)]
                assert torch.allclose(got[index], operator(*one)[wanted], rtol=1e-11, atol=1e-12)
