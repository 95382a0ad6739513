"""Where the elements of a new layer start, and how wide they are."""

from __future__ import annotations

import functools
import itertools
import pickle
from typing import Any

import pytest
import torch
from layers import LAYERS, Layer, layer_id
from support import SIGMA_VERSIONS, VERSIONS
from torch import Tensor, nn

import DCLS
from DCLS.im2col.modules import Dcls2d as Im2colDcls2d

layers = pytest.mark.parametrize("layer", LAYERS, ids=layer_id)


def by_axis(layer: Layer, module: Any) -> Tensor:
    """The positions with one row for each learnable axis, in order, counted from point 0."""
    ordered = [torch.empty(0)] * len(layer.size)
    for row, axis in enumerate(layer.axes(module.version)):
        ordered[axis] = module.P[row].detach() + layer.size[axis] // 2
    return torch.stack(ordered)


@layers
def test_the_default_draws_as_ever(layer: Layer) -> None:
    torch.manual_seed(5)
    implied = layer.make()
    torch.manual_seed(5)
    named = layer.make(init_positions="normal", init_widths=None)
    for name, parameter in implied.named_parameters():
        assert torch.equal(parameter, named.get_parameter(name)), name


@layers
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("how", ["spread", "grid"])
def test_positions_are_in_the_kernel_and_apart(layer: Layer, version: str, how: str) -> None:
    module = layer.make(version=version, init_positions=how, kernel_count=4, dtype=torch.float64)
    positions = by_axis(layer, module)
    for row, size in zip(positions, layer.size, strict=True):
        assert row.min() >= 0
        assert row.max() <= size - 1
    pairs = itertools.combinations(range(4), 2)
    for a, b in pairs:
        apart = (positions[..., a] - positions[..., b]).abs().amax(0)
        assert apart.min() > 0.4
    kernels = positions.flatten(1, -2).transpose(0, 1)
    assert (kernels[0] == kernels[1]).all() == (how == "grid")


def test_spread_reaches_what_the_issue_of_bunched_starts_asks() -> None:
    def cells(how: Any, version: str) -> float:
        m = DCLS.Dcls2d(
            64, 64, 26, dilated_kernel_size=17, groups=64, version=version, init_positions=how
        )
        kernel = m.DCK(m.weight, m.P, m.SIG)
        return (kernel != 0).sum((2, 3)).double().mean().item()

    assert cells("normal", "v1") < 20
    assert cells("spread", "v1") == 26 * 4
    assert cells("spread", "gauss") > 280


def test_spread_follows_the_seed() -> None:
    def make() -> Tensor:
        return DCLS.Dcls1d(2, 3, 5, dilated_kernel_size=31, init_positions="spread").P

    torch.manual_seed(1)
    first, other = make(), make()
    torch.manual_seed(1)
    assert torch.equal(make(), first)
    assert not torch.equal(first, other)


def test_the_grid_is_that_of_a_dilated_convolution() -> None:
    m = DCLS.Dcls2d(1, 1, 9, dilated_kernel_size=15, version="v0", init_positions="grid")
    assert m.P[0].unique().tolist() == [-5, 0, 5]
    assert {tuple(p) for p in m.P.flatten(1).T.tolist()} == set(
        itertools.product([-5.0, 0.0, 5.0], repeat=2)
    )
    full = DCLS.Dcls1d(1, 1, 6, dilated_kernel_size=6, version="v0", init_positions="grid")
    assert full.P.flatten().tolist() == [-3, -2, -1, 0, 1, 2]
    more = DCLS.Dcls1d(1, 1, 5, dilated_kernel_size=2, version="v0", init_positions="grid")
    assert sorted(more.P.flatten().tolist()) == [-1, -1, -1, 0, 0]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_element_of_the_grid_can_move(version: str, dtype: torch.dtype) -> None:
    """On a kink, as all grid points of ``v1`` are, a position has no gradient."""
    m = DCLS.Dcls2d(
        3, 3, 25, dilated_kernel_size=5, version=version, init_positions="grid", dtype=dtype
    )
    kernel = m.DCK(m.weight, m.P, m.SIG)
    generator = torch.Generator().manual_seed(0)
    kernel.backward(torch.randn(kernel.shape, generator=generator, dtype=dtype))
    assert (m.P.grad != 0).all()


def test_a_function_by_axis_in_place_or_returned() -> None:
    sizes = []

    def corners(positions: Tensor, size: tuple[int, ...]) -> None:
        sizes.append(size)
        positions[0] = -100  # outside: clamped
        positions[1] = 3

    for version, order in (("v0", (0, 1)), ("v1", (1, 0))):
        m = DCLS.Dcls2d(
            2, 4, 3, dilated_kernel_size=(5, 9), version=version, init_positions=corners
        )
        assert (m.P[order[0]] == -2).all()
        assert (m.P[order[1]] == 3).all()
    assert sizes == [(5, 9)] * 2
    m = Im2colDcls2d(
        2, 4, 3, dilated_kernel_size=(5, 9), init_positions=lambda p, size: p + size[1]
    )
    assert m.P.shape == (2, 2, 3)
    assert [row.unique().tolist() for row in m.P] == [[2], [4]]


def ones(positions: Tensor, size: tuple[int, ...]) -> Tensor:
    return positions + 1


def test_reset_draws_the_same_way_again() -> None:
    m = DCLS.Dcls2d(2, 2, 3, dilated_kernel_size=7, init_positions=ones, init_widths=0.5)
    with torch.no_grad():
        for parameter in m.parameters():
            parameter.zero_()
    m = pickle.loads(pickle.dumps(m))
    m.reset_parameters()
    assert (m.P == 1).all()
    assert (m.SIG == 0.5).all()
    assert m.weight.std() > 0
    meta = DCLS.Dcls2d(2, 2, 3, dilated_kernel_size=7, init_positions="grid", device="meta")
    meta.to_empty(device="cpu").reset_parameters()
    assert torch.equal(meta.P, DCLS.Dcls2d(2, 2, 3, dilated_kernel_size=7, init_positions="grid").P)


@layers
@pytest.mark.parametrize("version", SIGMA_VERSIONS)
def test_widths(layer: Layer, version: str) -> None:
    assert (layer.make(version=version, init_widths=2).SIG == 2).all()
    usual = layer.make(version=version).SIG
    assert (usual == {"gauss": 0.23, "max": 0.0}[version]).all()


@pytest.mark.parametrize(
    ("more", "kind", "message"),
    [
        ({"init_positions": "random"}, ValueError, "init_positions must be one of normal, spread"),
        ({"init_positions": 3}, TypeError, "init_positions must be a str"),
        ({"init_positions": None}, TypeError, "init_positions must be a str"),
        ({"init_positions": lambda p, _: p[0]}, ValueError, "must give the shape"),
        ({"init_positions": lambda p, _: p / 0}, ValueError, "must give finite positions"),
        ({"init_positions": lambda *_: 3}, TypeError, "return a Tensor, got int"),
        ({"init_widths": -1}, ValueError, "finite and at least 0, got -1"),
        ({"init_widths": float("nan")}, ValueError, "finite and at least 0"),
        ({"init_widths": "1"}, TypeError, "must be a number or None, got str"),
        ({"init_widths": True}, TypeError, "must be a number or None, got bool"),
        ({"init_widths": 1.0, "version": "v1"}, ValueError, "version 'v1' has no widths"),
    ],
)
def test_bad_arguments(more: dict[str, Any], kind: type[Exception], message: str) -> None:
    for layer in (DCLS.Dcls2d, DCLS.DclsTranspose2d, Im2colDcls2d):
        with pytest.raises(kind, match=message):
            layer(2, 2, 3, dilated_kernel_size=5, **more)


def test_an_initializer_of_torch_fits_by_partial() -> None:
    def uniform(positions: Tensor, size: tuple[int, ...]) -> None:
        nn.init.uniform_(positions, -(size[0] // 2), 0)

    m = DCLS.Dcls1d(2, 3, 4, dilated_kernel_size=25, init_positions=functools.partial(uniform))
    assert m.P.max() <= 0
    assert m.P.std() > 1
