"""The constants of the method that every layer of the package shares."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch


class _Facts(NamedTuple):
    #: Whether an element is divided by its sum over the grid.
    normalised: bool
    #: Of a version with widths.
    smallest_width: float = 0.0
    #: How many taps of an axis can differ from zero; 0 if the width says how many.
    most_taps: int = 0


#: In the order of the native library's ``dcls::Version``; a test compares them with the library.
_FACTS: Final = {
    "v0": _Facts(normalised=False, most_taps=2),
    "v1": _Facts(normalised=True, most_taps=2),
    "max": _Facts(normalised=True, smallest_width=1.0),
    "gauss": _Facts(normalised=True, smallest_width=0.27),
    "spline": _Facts(normalised=True, most_taps=4),
}

#: Interpolation versions.
VERSIONS: Final[tuple[str, ...]] = tuple(_FACTS)

#: Versions whose elements are normalised over the grid.
NORMALISED: Final[frozenset[str]] = frozenset(v for v, facts in _FACTS.items() if facts.normalised)

#: Versions whose elements have a learnable width, ``SIG``.
SIGMA_VERSIONS: Final[frozenset[str]] = frozenset(
    version for version, facts in _FACTS.items() if not facts.most_taps
)

#: The width of an element is ``|SIG| + SIGMA_MIN[version]``.
SIGMA_MIN: Final[dict[str, float]] = {v: facts.smallest_width for v, facts in _FACTS.items()}

#: How many taps of an axis can differ from zero; 0 if the width says how many.
MOST_TAPS: Final[dict[str, int]] = {v: facts.most_taps for v, facts in _FACTS.items()}

#: ``SIG`` of a new layer.
INITIAL_SIG: Final[dict[str, float]] = {"max": 0.0, "gauss": 0.23}

#: Element types of tensors, with the numbers that the native library has for them.
DTYPES: Final[dict[torch.dtype, int]] = {
    torch.float32: 0,
    torch.float64: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
}

#: Added once to the grid sum of an element before dividing by it.
NORM_EPS: Final[float] = 1e-7
