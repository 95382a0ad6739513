"""Where the elements of a new layer are, and how wide they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from DCLS import _checks
from DCLS._spec import INITIAL_SIG, SIGMA_VERSIONS
from DCLS.nn.axes import position_limits

#: A name, or a function that fills positions ``(D, *lead, K)``, by kernel axis, for a size.
InitPositions: TypeAlias = (
    Literal["normal", "spread", "grid"] | Callable[[Tensor, tuple[int, ...]], Tensor | None]
)
NAMES = ("normal", "spread", "grid")

#: Versions whose positions get no gradient from a grid point: the kinks of the tap are there.
_STUCK_ON_POINTS = ("v1", "max")


def check_init_positions(
    value: Any, name: str = "init_positions", more: tuple[str, ...] = ()
) -> InitPositions:
    """Returns ``value`` if a layer can start from it; ``more`` are other names that are taken."""
    if callable(value):
        return value  # type: ignore[no-any-return]
    _checks.choice(name, value, (*NAMES, *more))
    return value  # type: ignore[no-any-return]


def check_init_widths(value: Any, version: str, name: str = "init_widths") -> float | None:
    """Returns ``value`` if widths of ``version`` can start from it; None for the version's own."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number or None, got {type(value).__name__}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and at least 0, got {value}")
    if version not in SIGMA_VERSIONS:
        raise ValueError(f"{name} must be None: version {version!r} has no widths")
    return float(value)


def initial_width(version: str, init_widths: float | None) -> float:
    """Returns ``SIG`` of a new layer."""
    if init_widths is not None:
        return init_widths
    return INITIAL_SIG.get(version, INITIAL_SIG["gauss"])


def fill_rows(
    P: Tensor, size: tuple[int, ...], order: Sequence[int], how: InitPositions, version: str
) -> None:
    """Fills ``P`` in place, by any start except ``normal``.

    Args:
        P: the rows ``(D, *lead, K)`` of a layer.
        size: points of the grid on each learnable axis.
        order: the learnable axis of each row.
        how: ``spread``, ``grid`` or a function.
        version: the interpolation.

    Raises:
        TypeError: the function returns neither a tensor nor None.
        ValueError: it returns another shape, or values that are not finite.
    """
    if how == "spread":
        positions = spread(P, size)
    elif how == "grid":
        positions = off_kinks(grid(P, size), size, version)
    else:
        assert callable(how)
        positions = _ask(how, P, size)
    put_rows(P, positions, size, order)


def put_rows(P: Tensor, positions: Tensor, size: Sequence[int], order: Sequence[int]) -> None:
    """Writes positions by kernel axis into the rows of ``P``, clamped to the grid."""
    for row, axis in enumerate(order):
        P[row].copy_(positions[axis].clamp(*position_limits(size[axis])))


def _ask(how: Callable[..., Any], P: Tensor, size: tuple[int, ...]) -> Tensor:
    filled = torch.zeros_like(P)
    returned = how(filled, size)
    positions = filled if returned is None else returned
    if not isinstance(positions, Tensor):
        raise TypeError(
            "init_positions must fill its first argument or return a Tensor, got "
            f"{type(positions).__name__}"
        )
    if positions.shape != P.shape:
        raise ValueError(
            f"init_positions must give the shape {tuple(P.shape)}, got {tuple(positions.shape)}"
        )
    if not positions.is_meta and not positions.isfinite().all():
        raise ValueError("init_positions must give finite positions")
    return positions


def spread(P: Tensor, size: Sequence[int]) -> Tensor:
    """Draws positions that fill the kernel evenly, shaped as ``P`` and by kernel axis.

    The elements of a kernel are a rank-1 lattice, as quasi-Monte Carlo methods use it: equal steps
    along the first axis and irrational ones along the others. Each kernel shifts it at random, so
    that kernels differ. A uniform draw would leave holes and meet itself.
    """
    count, axes = P.shape[-1], P.shape[0]
    dtype = torch.promote_types(P.dtype, torch.float32)
    steps = _lattice_steps(axes, count)
    shifts = torch.rand(*P.shape[:-1], 1, dtype=dtype, device=P.device)
    numbers = torch.arange(count, dtype=dtype, device=P.device)
    rows = []
    for axis in range(axes):
        low, high = position_limits(size[axis])
        unit = (shifts[axis] + steps[axis] * numbers) % 1
        rows.append(low + (high - low) * unit)
    return torch.stack(rows)


def _lattice_steps(axes: int, count: int) -> list[float]:
    """Returns the step along each axis: ``1 / count``, then powers of a generalised golden ratio.

    The ratio for ``d`` axes solves ``x ** (d + 1) = x + 1``.
    """
    others = axes - 1
    ratio = 2.0
    for _ in range(60):  # a contraction: it stands still long before
        ratio = (1 + ratio) ** (1 / (others + 1))
    return [1 / max(count, 1), *(ratio ** -(axis + 1) for axis in range(others))]


def grid(P: Tensor, size: Sequence[int]) -> Tensor:
    """Puts the elements on a regular grid: each has an equal box of the kernel, at its centre.

    The boxes are as near to cubes as their number allows. Where there are more boxes than elements,
    the empty ones are spaced evenly. More elements than points of the kernel begin anew.
    """
    count, axes = P.shape[-1], P.shape[0]
    boxes = [1] * axes
    while math.prod(boxes) < min(count, math.prod(size)):
        room = [s / n if n < s else 0.0 for s, n in zip(size, boxes, strict=True)]
        boxes[room.index(max(room))] += 1
    total = math.prod(boxes)
    used = max(min(count, total), 1)
    numbers = [(k % used) * total // used for k in range(count)]
    positions = P.new_empty(P.shape)
    for axis in reversed(range(axes)):
        points, n = size[axis], boxes[axis]
        row = [(number % n + 0.5) * points / n - 0.5 - points // 2 for number in numbers]
        numbers = [number // n for number in numbers]
        positions[axis] = torch.tensor(row, dtype=P.dtype, device=P.device)
    return positions


def off_kinks(positions: Tensor, size: Sequence[int], version: str) -> Tensor:
    """Moves elements off the grid points by a rounding, where they would get no gradient there.

    The taps of ``v1`` and ``max`` have kinks on the grid points. An element that starts exactly
    there would never move. The step is towards the centre, so that none leaves the kernel.
    """
    if version not in _STUCK_ON_POINTS:
        return positions
    # A rounding of the largest index: a smaller step would be lost when the centre is added. In 16
    # bits, where a rounding is a large step, most elements stay.
    exact = torch.promote_types(positions.dtype, torch.float32)
    step = torch.finfo(exact).eps * max(size)
    on_point = positions == positions.round()
    inwards = torch.where(positions > 0, -step, step)
    return torch.where(on_point, positions + inwards, positions)
