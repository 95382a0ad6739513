"""The constants of the method that every layer of the package shares."""

from __future__ import annotations

from typing import Final

#: Interpolation versions, in the order of the native library's ``dcls::Version``.
VERSIONS: Final[tuple[str, ...]] = ("v0", "v1", "max", "gauss")

#: Versions whose elements have a learnable width, ``SIG``.
SIGMA_VERSIONS: Final[frozenset[str]] = frozenset({"max", "gauss"})

#: The width of an element is ``|SIG| + SIGMA_MIN[version]``.
SIGMA_MIN: Final[dict[str, float]] = {"v0": 0.0, "v1": 0.0, "max": 1.0, "gauss": 0.27}

#: ``SIG`` of a new layer.
INITIAL_SIG: Final[dict[str, float]] = {"max": 0.0, "gauss": 0.23}

#: Added once to the grid sum of an element before dividing by it.
NORM_EPS: Final[float] = 1e-7
