"""The types of arguments, for annotations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch

#: An interpolation, a member of ``DCLS._spec.VERSIONS``.
Version: TypeAlias = Literal["v0", "v1", "max", "gauss", "spline"]

#: How a layer convolves, a member of ``DCLS.method.METHODS``.
Method: TypeAlias = Literal["auto", "direct", "conv"]

#: How much an input is padded: for each axis an int or a pair (before, behind), or a name.
Padding: TypeAlias = int | Sequence[int | Sequence[int]] | str

#: What an input is padded with, a member of ``DCLS._checks.PADDING_MODES``.
PaddingMode: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]

#: Where to create parameters; None for torch's default.
Device: TypeAlias = torch.device | str | int | None
