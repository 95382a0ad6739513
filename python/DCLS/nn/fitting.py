"""The elements whose kernels come closest to given ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from DCLS._spec import SIGMA_VERSIONS
from DCLS._types import Version
from DCLS.functional import construct_kernel
from DCLS.nn.axes import position_limits
from DCLS.nn.initial import initial_width, spread

#: Most numbers of a tensor that the fit holds at a time: 32 MiB in float64.
_MOST_NUMBERS = 1 << 22

#: A row whose relative error is below this counts as solved: what is left is rounding.
_SOLVED = 1e-12

#: ``SIG`` of elements that hardly reach other cells. It is not 0, where a width has no slope.
_NARROW = 0.03


class Grid(NamedTuple):
    """The kernels that are built: their size and how their elements spread."""

    size: tuple[int, ...]
    version: str
    sigma_min: float | None

    def kernels(self, weight: Tensor, P: Tensor, SIG: Tensor | None) -> Tensor:
        """Builds kernels ``(R, M, C)`` of ``weight (R, M, K)`` at ``P (D, R, K)``."""

        def expand(rows: Tensor) -> Tensor:
            return rows.unsqueeze(2).expand(-1, *weight.shape)

        kernel: Tensor = construct_kernel(
            weight,
            expand(P),
            None if SIG is None else expand(SIG),
            dilated_kernel_size=self.size,
            version=cast(Version, self.version),
            sigma_min=self.sigma_min,
        )
        return kernel.flatten(2)

    def elements(self, P: Tensor, SIG: Tensor | None) -> Tensor:
        """Builds the kernel of each element alone, with a weight of 1: ``(R, K, C)``."""
        axes, rows, count = P.shape

        def alone(values: Tensor) -> Tensor:
            return values.reshape(axes, rows * count, 1)

        ones = P.new_ones(rows * count, 1, 1)
        each = self.kernels(ones, alone(P), None if SIG is None else alone(SIG))
        return each.reshape(rows, count, -1)

    def widths(self, P: Tensor, init_widths: float | None) -> Tensor | None:
        """Returns ``SIG`` of new elements at ``P``; None for a version without widths."""
        if self.version not in SIGMA_VERSIONS:
            return None
        return torch.full_like(P, initial_width(self.version, init_widths))


class Elements(NamedTuple):
    """Weights ``(R, M, K)``, positions ``(D, R, K)`` by kernel axis, and widths as these."""

    weight: Tensor
    P: Tensor
    SIG: Tensor | None


def chunks(rows: int, numbers_of_a_row: int) -> Iterator[slice]:
    """Yields the rows in pieces that fit the memory of the fit."""
    step = max(1, _MOST_NUMBERS // max(1, numbers_of_a_row))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def relative_error(kernels: Tensor, targets: Tensor) -> Tensor:
    """Returns the relative error of each row; 0 where the target is zero and met."""
    difference: Tensor = torch.linalg.vector_norm(kernels - targets, dim=(1, 2))
    return difference / _norms(targets)


def _norms(targets: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(targets, dim=(1, 2))
    return norms.clamp_min(torch.finfo(targets.dtype).tiny)


def solve(targets: Tensor, grid: Grid, P: Tensor, SIG: Tensor | None) -> Tensor:
    """Returns the best weights ``(R, M, K)`` for given positions and widths: least squares."""
    elements = grid.elements(P, SIG)
    gram = elements @ elements.mT
    # Elements on one another have no single solution: the ridge takes the smallest.
    ridge = 1e-10 * gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
    gram.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
    factor = torch.linalg.cholesky(gram)
    weight = targets.new_zeros(*targets.shape[:2], P.shape[-1])
    for _ in range(3):  # each repetition takes away what the ridge and rounding left
        rest = targets - weight @ elements
        weight = weight + torch.cholesky_solve(elements @ rest.mT, factor).mT
    return weight


def fit(
    targets: Tensor,
    grid: Grid,
    cells: Tensor,
    count: int,
    init_widths: float | None,
    steps: int = 300,
) -> Elements:
    """Finds elements whose kernels are close to ``targets``.

    The elements start on the cells with the largest weights, and from another start a bit apart.
    Some hundred steps of Adam move them and their widths, and the weights are solved for by least
    squares. Each row takes the best of these.

    Args:
        targets: kernels ``(R, M, C)`` in float64. The ``M`` kernels of a row share positions.
        grid: the kernels that are built.
        cells: positions ``(D, n)`` of the cells that may differ from zero.
        count: number of elements ``K``.
        init_widths: ``SIG`` at the start; None for the best of a few.
        steps: number of steps.
    """
    scale = _norms(targets)
    scaled = targets / scale[:, None, None]
    energy = scaled[:, :, flat_index(cells, grid.size)].square().sum(1)
    best: Elements | None = None
    for neighbours in (1.0, 0.1):
        P = _with_more(cells[:, _largest(energy, cells, count, neighbours)], count, grid)
        start = _solved(scaled, grid, P, grid.widths(P, init_widths))
        if init_widths is None and start.SIG is not None:
            narrow = _solved(scaled, grid, P, torch.full_like(P, _NARROW))
            start = _better(start, narrow, scaled, grid)
        best = start if best is None else _better(best, start, scaled, grid)
        if relative_error(grid.kernels(*best), scaled).max() <= _SOLVED:
            break
        best = _better(best, _descend(scaled, grid, start, steps), scaled, grid)
        if count >= cells.shape[1]:
            break  # all cells have an element: there is one such start
    assert best is not None
    return best._replace(weight=best.weight * scale[:, None, None])


def _largest(energy: Tensor, cells: Tensor, count: int, neighbours: float) -> Tensor:
    """Picks for each row the cells ``(R, count)`` with the most energy, one after the other.

    A pick leaves the cells beside it the part ``neighbours`` of their energy: one element between
    grid points makes several cells large.
    """
    apart = (cells[:, :, None] - cells[:, None]).abs().amax(0)
    left = torch.where(apart <= 1, neighbours, 1.0).to(energy)
    left.fill_diagonal_(-1)  # a pick has less than nothing left
    energy = energy.clone() + torch.finfo(energy.dtype).tiny
    picks = []
    for _ in range(min(count, cells.shape[1])):
        picks.append(energy.argmax(1))
        taken = energy < 0
        energy = energy * left[picks[-1]]
        energy[taken] = -1
    return torch.stack(picks, dim=1)


def flat_index(cells: Tensor, size: Sequence[int]) -> Tensor:
    """Returns where positions ``(D, n)`` of grid points are in a kernel that is flat."""
    flat = torch.zeros_like(cells[0])
    for axis, points in enumerate(size):
        flat = flat * points + cells[axis] + points // 2
    return flat.long()


def _with_more(P: Tensor, count: int, grid: Grid) -> Tensor:
    """Adds elements all over the kernel until there are ``count``."""
    missing = count - P.shape[-1]
    return torch.cat([P, spread(P.new_empty(*P.shape[:2], missing), grid.size)], dim=2)


def lone_taps(grid: Grid, cells: Tensor, init_widths: float | None) -> Tensor | None:
    """Returns what an element on each cell adds to it, if it touches no other cell; else None."""
    P = cells[:, None]
    elements = grid.elements(P, grid.widths(P, init_widths))[0]
    own = elements.amax(1)
    return own if bool((elements.sum(1) == own).all()) else None


def on_the_cells(
    targets: Tensor,
    grid: Grid,
    cells: Tensor,
    taps: Tensor,
    count: int,
    init_widths: float | None,
) -> Elements:
    """Puts an element on each cell of a kernel, and the rest, of weight 0, all over the kernel.

    The arguments are those of ``fit``; ``taps`` are the ``lone_taps``.
    """
    weight = targets[:, :, flat_index(cells, grid.size)] / taps
    weight = torch.nn.functional.pad(weight, (0, count - cells.shape[1]))
    P = _with_more(cells[:, None].expand(-1, len(targets), -1), count, grid)
    return Elements(weight, P, grid.widths(P, init_widths))


def _solved(targets: Tensor, grid: Grid, P: Tensor, SIG: Tensor | None) -> Elements:
    return Elements(solve(targets, grid, P, SIG), P, SIG)


def _better(one: Elements, other: Elements, targets: Tensor, grid: Grid) -> Elements:
    """Takes each row from the one whose kernels are closer; from the first one if alike."""
    errors = [relative_error(grid.kernels(*e), targets) for e in (one, other)]
    take = errors[1] < errors[0] - _SOLVED
    P = torch.where(take[None, :, None], other.P, one.P)
    SIG = None
    if one.SIG is not None and other.SIG is not None:
        SIG = torch.where(take[None, :, None], other.SIG, one.SIG)
    return Elements(torch.where(take[:, None, None], other.weight, one.weight), P, SIG)


def _descend(targets: Tensor, grid: Grid, start: Elements, steps: int) -> Elements:
    """Moves the elements downhill."""
    limits: Sequence[tuple[int, int]] = [position_limits(s) for s in grid.size]
    # Off the grid points, where the taps of some versions have no slope.
    numbers = torch.arange(start.P.shape[-1], dtype=start.P.dtype, device=start.P.device)
    angle = numbers * math.pi * (3 - math.sqrt(5))
    P = start.P + 0.1 * torch.stack([(angle + axis).sin() for axis in range(len(limits))])[:, None]
    tensors = [start.weight.clone(), P]
    if start.SIG is not None:
        tensors.append(start.SIG.clamp_min(1e-3))  # at 0 a width has no slope
    rates = [0.01, 0.05, 0.01]
    # The same kernels, but v1 has no slope on a grid point, where descents would end.
    sloping = grid._replace(version="v0") if grid.version == "v1" else grid
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in tensors]
        groups = [{"params": [t], "lr": r} for t, r in zip(leaves, rates, strict=False)]
        adam = torch.optim.Adam(groups)
        slowly = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        for step in range(steps):
            with torch.no_grad():
                for row, ends in zip(leaves[1], limits, strict=True):
                    row.clamp_(*ends)
                if step % 50 == 0:
                    widths = leaves[2] if len(leaves) > 2 else None
                    leaves[0].copy_(solve(targets, sloping, leaves[1], widths))
            adam.zero_grad()
            weight, P, *SIG = leaves
            kernels = sloping.kernels(weight, P, SIG[0] if SIG else None)
            (kernels - targets).square().sum().backward()
            adam.step()
            slowly.step()
    weight, P, *SIG = (leaf.detach() for leaf in leaves)
    P = torch.stack([row.clamp(*ends) for row, ends in zip(P, limits, strict=True)])
    return _solved(targets, grid, P, SIG[0] if SIG else None)
