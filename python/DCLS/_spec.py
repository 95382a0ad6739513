"""The constants of the method that every layer of the package shares."""

from __future__ import annotations

import math
from numbers import Real
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


def is_int(value: object) -> bool:
    """Whether it is an int, perhaps one of numpy or, while torch compiles, a symbol; no bool."""
    # In this order: of a symbol torch.compile knows the type, but not whether it has __index__.
    return not isinstance(value, bool) and (isinstance(value, int) or hasattr(value, "__index__"))


def check_version(version: object) -> str:
    """Returns ``version`` if it names an interpolation, else raises.

    Raises:
        TypeError: ``version`` is not a string.
        ValueError: ``version`` is not one of ``VERSIONS``.
    """
    if not isinstance(version, str):
        raise TypeError(
            f"version must be a str out of {', '.join(VERSIONS)}, got {type(version).__name__}"
        )
    if version not in VERSIONS:
        raise ValueError(f"version must be one of {', '.join(VERSIONS)}, got {version!r}")
    return version


def resolve_sigma_min(version: str, sigma_min: float | None) -> float:
    """Returns the smallest width of an element: ``sigma_min``, or the version's own for None.

    Raises:
        TypeError: ``sigma_min`` is not a number.
        ValueError: ``sigma_min`` is not finite and positive, or ``version`` has no width.
    """
    if sigma_min is None:
        return SIGMA_MIN[version]
    if isinstance(sigma_min, bool) or not isinstance(sigma_min, Real):
        raise TypeError(f"sigma_min must be a float or None, got {type(sigma_min).__name__}")
    if version not in SIGMA_VERSIONS:
        raise ValueError(f"sigma_min must be None for version {version!r}, got {sigma_min}")
    if not (math.isfinite(sigma_min) and sigma_min > 0):
        raise ValueError(f"sigma_min must be finite and positive, got {sigma_min}")
    return float(sigma_min)
