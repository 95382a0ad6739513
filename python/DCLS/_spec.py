"""The constants of the method that every layer of the package shares."""

from __future__ import annotations

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
