"""How far rounding alone can take a constructed kernel and its gradients from the exact ones.

A number that is computed is off by some units of roundoff of its own size, and what is computed
from it carries that error on: ``exp`` of ``-(delta / sigma)**2 / 2`` is off by
``(delta / sigma)**2`` units for each unit of ``delta`` or ``sigma``. And a normalised derivative is
the difference of two numbers, which may cancel: each brings the error of its own size. So an error
is measured against the numbers that are added up, all taken as positive, and not against their sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import jvp

from DCLS import reference
from DCLS._checks import resolve_sigma_min
from DCLS._spec import NORM_EPS


class _Axis(NamedTuple):
    """Sizes of the taps of one axis and of their derivatives, by position, then by width."""

    sizes: list[Tensor]
    #: The error of each if all numbers that it is made of are off by their own size.
    errors: list[Tensor]


def _by(function: Callable[..., Tensor], place: int) -> Callable[..., Tensor]:
    """The derivative of an elementwise function by one of its arguments."""

    def derivative(*args: Tensor) -> Tensor:
        ones = (torch.full_like(arg, float(i == place)) for i, arg in enumerate(args))
        return jvp(function, args, tuple(ones))[1]

    return derivative


def _axis(P: Tensor, SIG: Tensor | None, size: int, version: str) -> _Axis:
    grid = torch.arange(size, dtype=P.dtype) - size // 2
    args, scales = [P], [(grid - P.unsqueeze(-1)).abs()]
    if SIG is not None:
        args.append(torch.where(SIG == 0, 1e-30, SIG))  # abs has no derivative at 0
        scales.append((SIG.abs() + resolve_sigma_min(version, None)).unsqueeze(-1))

    def taps(P: Tensor, SIG: Tensor | None = None) -> Tensor:
        return reference.taps(P, SIG, size, version)

    sizes, errors = [], []
    for function in (taps, *(_by(taps, place) for place in range(len(args)))):
        size_of = function(*args).abs()
        carried = (_by(function, i)(*args).abs() * scale for i, scale in enumerate(scales))
        sizes.append(size_of)
        errors.append(sum(carried, start=size_of))
    return _Axis(sizes, errors)


def unit_errors(
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    cotangent: Tensor,
    version: str,
    normalised: bool,
) -> list[Tensor]:
    """Errors of the kernel and of the gradients of weight, P and SIG, in units of roundoff.

    To first order, for one rounding of each number on the way; all tensors float64 on the CPU.
    """
    grid = cotangent.shape[weight.ndim - 1 :]
    axes = [
        _axis(P[d], None if SIG is None else SIG[d], size, version) for d, size in enumerate(grid)
    ]
    letters = "xyz"[: len(axes)]
    operands = ",".join(f"...k{letter}" for letter in letters)
    factor, grad = weight.abs(), cotangent.abs()
    orders = len(axes[0].sizes)

    def norm(*taps: Tensor) -> Tensor:
        return torch.stack([t.sum(-1) for t in taps]).prod(0) + NORM_EPS

    def contract(taps: list[Tensor]) -> Tensor:
        return torch.einsum(f"...{letters},{operands}->...k", grad, *taps)

    def magnitudes(scale: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        """The formulas of the kernel and its gradients, with + for each -."""
        parts = [flat[d * orders : (d + 1) * orders] for d in range(len(axes))]
        taps = [part[0] for part in parts]
        of_weight = contract(taps) * scale
        kernel = torch.einsum(f"...k,{operands}->...{letters}", factor * scale, *taps)
        grads = []
        for order in range(1, orders):
            for d, part in enumerate(parts):
                sums = contract([*taps[:d], part[order], *taps[d + 1 :]])
                if normalised:
                    through = [*taps[:d], part[order], *taps[d + 1 :]]
                    sums = sums + of_weight * norm(*through)
                grads.append(sums * scale * factor)
        rows = [torch.stack(grads[at : at + len(axes)]) for at in range(0, len(grads), len(axes))]
        return kernel, of_weight, *rows

    scale, scale_error = torch.ones_like(weight), torch.zeros_like(weight)
    if normalised:
        total, error = jvp(norm, *(tuple(a[i][0] for a in axes) for i in range(2)))
        scale = 1 / total
        scale_error = scale * (1 + error * scale)
    sizes = (scale, *(size for axis in axes for size in axis.sizes))
    errors = (scale_error, *(error for axis in axes for error in axis.errors))
    own, carried = jvp(magnitudes, sizes, errors)
    return [a + b for a, b in zip(own, carried, strict=True)]
