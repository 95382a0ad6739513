"""How far rounded arithmetic may be off: running error bounds in float64.

A ``Bound`` is a value and an error. The error is counted in units of eps, the relative rounding
error of the arithmetic under test. Each operation adds what its own rounding can do:

    a * b       |a| error(b) + |b| error(a) + |a b|
    a / b       (error(a) + |a / b| error(b)) / |b| + |a / b|
    sum of n    the sum of the errors + n * (the sum of |a|)

so that the tolerance of a result is eps times the number of terms times their magnitude, whatever
the cancellation. No number here was found by trying: a constant says how many roundings a formula
has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from DCLS import _spec, reference

#: Roundings of one tap: the distance, the division, the square, the product, and the last two
#: digits of the exponential.
TAP_ROUNDINGS = 8

#: Taps of a gaussian below this part of the largest one may be dropped: see construct_kernel, which
#: gives the first digit.
DROPPED = {torch.float32: 1.1e-10, torch.float64: 3.1e-20}

#: And taps below this, which are no normal numbers: kLowestExponent of exponential.hpp.
LOWEST = {torch.float32: 1.01 * math.exp(-87), torch.float64: 1.01 * math.exp(-708)}


@dataclass
class Bound:
    """A value in float64, and its error in units of eps."""

    value: Tensor
    error: Tensor

    def __mul__(self, other: Bound) -> Bound:
        product = self.value * other.value
        error = self.value.abs() * other.error + other.value.abs() * self.error + product.abs()
        return Bound(product, error)

    def __truediv__(self, other: Bound) -> Bound:
        ratio = self.value / other.value
        error = (self.error + ratio.abs() * other.error) / other.value.abs() + ratio.abs()
        return Bound(ratio, error)

    def __sub__(self, other: Bound) -> Bound:
        difference = self.value - other.value
        # That of the sum of the magnitudes: the terms may come in any order.
        return Bound(difference, self.error + other.error + self.value.abs() + other.value.abs())

    def sum(self, dims: tuple[int, ...]) -> Bound:
        """Adds along dimensions, in any order."""
        terms = 1
        for dim in dims:
            terms *= self.value.shape[dim]
        error = self.error.sum(dims) + terms * self.value.abs().sum(dims)
        return Bound(self.value.sum(dims), error)

    def rounded(self, units: float, floor: float = 0.0) -> Bound:
        """Rounds once to a type whose eps is ``units`` of ours, subnormal below ``floor``."""
        return Bound(self.value, self.error + units * self.value.abs() + floor)

    def on(self, function: Callable[[Tensor], Tensor]) -> Bound:
        """Moves values: ``function`` only permutes, repeats or picks."""
        return Bound(function(self.value), function(self.error))


def exact(tensor: Tensor) -> Bound:
    """The bound of an argument: as the caller gave it."""
    return Bound(tensor.double(), torch.zeros_like(tensor, dtype=torch.float64))


def bilinear(
    f: Callable[[Tensor, Tensor], Tensor],
    a: Bound,
    b: Bound,
    units: tuple[float, float] = (1.0, 0.0),
) -> Bound:
    """The bound of ``f``, a sum of products of an ``a`` and a ``b``.

    ``units`` are the rounding of an addition, which is more than 1 where sums may be kept in 16
    bits, and one more rounding of each product.
    """
    terms = f(torch.ones_like(a.value), torch.ones_like(b.value))
    magnitude = f(a.value.abs(), b.value.abs())
    error = (
        f(a.value.abs(), b.error)
        + f(a.error, b.value.abs())
        + ((terms + 1) * units[0] + units[1]) * magnitude
    )
    return Bound(f(a.value, b.value), error)


def pulled(
    f: Callable[[Tensor, Tensor], Tensor],
    which: int,
    grad: Bound,
    other: Bound,
    like: Tensor,
    units: tuple[float, float] = (1.0, 0.0),
) -> Bound:
    """The gradient of ``f``, which is bilinear, by its argument number ``which``."""

    def pull(g: Tensor, fixed: Tensor) -> Tensor:
        def of_one(t: Tensor) -> Tensor:
            return f(t, fixed) if which == 0 else f(fixed, t)

        gradient: Tensor = torch.func.vjp(of_one, torch.zeros_like(like, dtype=torch.float64))[1](
            g
        )[0]
        return gradient

    return bilinear(pull, grad, other, units)


def _axis_taps(
    P: Tensor, SIG: Tensor | None, size: int, version: str, sigma_min: float | None, eps: float
) -> tuple[Bound, Bound, Bound | None]:
    """The taps of one axis, and their derivatives by position and width."""
    P = P.double()
    width = None if SIG is None else SIG.double().abs()

    def of(P: Tensor, width: Tensor | None) -> Tensor:
        return reference.taps(P, width, size, version, sigma_min)

    t, by_P = torch.func.jvp(lambda p: of(p, width), (P,), (torch.ones_like(P),))
    by_SIG = None
    if width is not None:
        by_SIG = torch.func.jvp(lambda s: of(P, s), (width,), (torch.ones_like(width),))[1]
    relative = torch.full_like(t, TAP_ROUNDINGS)
    scale = torch.ones_like(t)
    if width is not None:
        smallest = _spec.SIGMA_MIN[version] if sigma_min is None else sigma_min
        scale = scale * (width + smallest).unsqueeze(-1)
    absolute = TAP_ROUNDINGS * scale * (t > 0)  # differences of numbers as large as the width
    dropped = torch.zeros_like(t)
    if version == "gauss":
        x = torch.arange(size, dtype=torch.float64)
        z = (x - P.unsqueeze(-1) - size // 2) / scale
        # The exponent z * z / 2 has some roundings: the tap has them z * z times.
        relative = relative + 4 * z.nan_to_num(0, 0, 0) ** 2
        absolute = torch.zeros_like(t)
        dtype = torch.float64 if eps < 1e-10 else torch.float32
        smallest = (DROPPED[dtype] * t.amax(-1, keepdim=True)).clamp(min=LOWEST[dtype])
        # All of it is error then, and all of its derivatives.
        dropped = (t <= smallest) / eps
    tap = Bound(t, (relative + dropped) * t + absolute)

    def derivative(d: Tensor) -> Bound:
        slope = TAP_ROUNDINGS * (t > 0) if version == "spline" else 0.0
        error = (relative + dropped) * d.abs() + slope
        return Bound(d, error)

    return tap, derivative(by_P), None if by_SIG is None else derivative(by_SIG)


class Construct:
    """Bounds of a constructed kernel and of its gradients."""

    def __init__(
        self,
        weight: Tensor,
        P: Tensor,
        SIG: Tensor | None,
        size: tuple[int, ...],
        version: str,
        sigma_min: float | None,
        eps: float,
        weight_units: float = 0.0,
    ) -> None:
        D = len(size)

        def placed(bound: Bound, d: int) -> Bound:
            after = D - 1 - d

            def place(t: Tensor) -> Tensor:
                return t.reshape(*t.shape[:-1], *[1] * d, t.shape[-1], *[1] * after)

            return bound.on(place)

        axes = [
            _axis_taps(P[d], None if SIG is None else SIG[d], size[d], version, sigma_min, eps)
            for d in range(D)
        ]
        self.grid = tuple(range(-D, 0))
        self.D = D
        self.taps = [placed(axis[0], d) for d, axis in enumerate(axes)]
        self.slopes = {
            "P": [placed(axis[1], d) for d, axis in enumerate(axes)],
            "SIG": [placed(axis[2], d) for d, axis in enumerate(axes) if axis[2] is not None],
        }
        self.normalised = version in _spec.NORMALISED
        given = exact(weight).rounded(weight_units)
        self.weight = given.on(lambda t: t.reshape(*t.shape, *[1] * D))
        self.sign = None if SIG is None else SIG.double().sign()
        self.element = self._over_the_sum(self.taps)
        products = self.weight * self.element
        self.kernel = products.sum((-1 - D,))
        self.magnitude = products.value.abs().sum(-1 - D)

    def _product(self, factors: list[Bound]) -> Bound:
        product = factors[0]
        for factor in factors[1:]:
            product = product * factor
        return product

    def _norm(self, taps: list[Bound]) -> Bound:
        sums = [
            tap.sum((-self.D + d,)).on(lambda t, d=d: t.unsqueeze(-self.D + d))
            for d, tap in enumerate(taps)
        ]
        return self._product(sums)

    def _over_the_sum(self, taps: list[Bound]) -> Bound:
        if not self.normalised:
            return self._product(taps)
        norm = self._norm(self.taps)
        return self._product(taps) / Bound(norm.value + _spec.NORM_EPS, norm.error + norm.value)

    def gradients(self, grad_kernel: Bound) -> dict[str, Bound]:
        """Bounds of the gradients of weight, P and SIG, for that of the kernel."""
        g = grad_kernel.on(lambda t: t.unsqueeze(-1 - self.D))
        grads = {"weight": (g * self.element).sum(self.grid)}
        norm = self._norm(self.taps)
        norm = Bound(norm.value + _spec.NORM_EPS, norm.error + norm.value)
        for name, slopes in self.slopes.items():
            rows = []
            for d, slope in enumerate(slopes):
                moved = [*self.taps[:d], slope, *self.taps[d + 1 :]]
                row = (g * self.weight * self._over_the_sum(moved)).sum(self.grid)
                if self.normalised:
                    # A sum of its own: what rounding does to the two does not cancel.
                    change = self.element * self._norm(moved) / norm
                    row = row - (g * self.weight * change).sum(self.grid)
                rows.append(row)
            if rows:
                grads[name] = Bound(
                    torch.stack([row.value for row in rows]),
                    torch.stack([row.error for row in rows]),
                )
        if self.sign is not None:
            grads["SIG"] = Bound(grads["SIG"].value * self.sign, grads["SIG"].error)
        return grads
