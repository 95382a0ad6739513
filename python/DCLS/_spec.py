"""The constants of the method that every layer of the package shares."""

from __future__ import annotations

import math
from numbers import Real
from typing import Final

from DCLS import _C

_INFOS: Final = tuple(_C.versions())

#: Interpolation versions, in the order of the native library's ``dcls::Version``.
VERSIONS: Final[tuple[str, ...]] = tuple(info.name for info in _INFOS)

#: Versions whose elements have a learnable width, ``SIG``.
SIGMA_VERSIONS: Final[frozenset[str]] = frozenset(info.name for info in _INFOS if info.has_width)

#: The width of an element is ``|SIG| + SIGMA_MIN[version]``.
SIGMA_MIN: Final[dict[str, float]] = {info.name: info.smallest_width for info in _INFOS}

#: How many taps of an axis can differ from zero; 0 if the width says how many.
MOST_TAPS: Final[dict[str, int]] = {info.name: info.most_taps for info in _INFOS}

#: ``SIG`` of a new layer.
INITIAL_SIG: Final[dict[str, float]] = {"max": 0.0, "gauss": 0.23}
if INITIAL_SIG.keys() != SIGMA_VERSIONS:
    raise ImportError(
        f"DCLS: the versions {sorted(SIGMA_VERSIONS)} have widths, but there are initial ones for "
        f"{sorted(INITIAL_SIG)}"
    )

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
