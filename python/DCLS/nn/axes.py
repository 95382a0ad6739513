"""The rows of ``P`` and ``SIG``, and which kernel axis each belongs to: the only place that knows.

The functional API and the native library keep ``P[d]`` on kernel axis ``d``. The modules keep the
orders of DCLS 0.1.1, which differ with the dimension and the version, because trained checkpoints
depend on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.fx import Proxy

from DCLS._ops._rows import to_kernel_axes as to_kernel_axes
from DCLS._ops._rows import to_position_rows as to_position_rows

#: ``_AXIS_ORDER[ndim][i]`` is the kernel axis that ``P[i]`` and ``SIG[i]`` belong to, but in v0.
_AXIS_ORDER: Final[dict[int, tuple[int, ...]]] = {1: (0,), 2: (1, 0), 3: (2, 1, 0)}
_V0_AXIS_ORDER: Final[dict[int, tuple[int, ...]]] = {1: (0,), 2: (0, 1), 3: (0, 2, 1)}


def axis_order(ndim: int, version: str, *, dense_ndim: int = 0) -> tuple[int, ...]:
    """Returns the kernel axis of each row of ``P``.

    Args:
        ndim: number of learnable axes, 1 to 3.
        version: one of ``DCLS._spec.VERSIONS``.
        dense_ndim: number of dense axes of a ``DclsN_Md`` kernel. With any, ``P[i]`` belongs to
            the ``i``-th learnable axis: 0.1.1 has no such module with two learnable axes, so
            there is no other order to keep.
    """
    if dense_ndim:
        return tuple(range(ndim))
    return (_V0_AXIS_ORDER if version == "v0" else _AXIS_ORDER)[ndim]


def as_floats(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns ``P`` or ``SIG``, integers cast to ``dtype``: such positions are on the grid."""
    if isinstance(rows, Proxy):  # torch.fx, which traces symbolically, cannot say
        return rows
    return rows if rows.is_floating_point() or rows.is_complex() else rows.to(dtype)


def position_limits(size: int) -> tuple[int, int]:
    """Returns the positions of the first and the last grid point of an axis of ``size`` points."""
    return -(size // 2), size - 1 - size // 2


def row_limits(
    dilated_kernel_size: Sequence[int], order: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Returns the lowest and highest position on the grid for each row of ``P``."""
    return tuple(position_limits(dilated_kernel_size[axis]) for axis in order)
