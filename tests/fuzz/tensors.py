"""The tensors of a case, and what is asked of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from fuzz.bounds import Bound
from fuzz.draw import Case
from torch import Tensor

PLACES = ("input", "weight", "bias", "P", "SIG")

Run = Callable[..., Tensor]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Types of 16 bits are computed in float32."""
    return torch.promote_types(dtype, torch.float32)


def lay(tensor: Tensor, layout: str) -> Tensor:
    """Gives a tensor another layout; only ``expanded`` changes values."""
    if layout == "transposed" and tensor.ndim > 1:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "channels_last" and tensor.ndim > 2:
        return tensor.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "sliced" and tensor.ndim > 0:
        wide = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 3), 7)
        wide[..., 3::2] = tensor
        return wide[..., 3::2]
    if layout == "offset":
        flat = tensor.new_full((tensor.numel() + 1,), 7)
        flat[1:] = tensor.flatten()
        return flat[1:].view(tensor.shape)
    if layout == "expanded" and tensor.ndim > 0 and tensor.shape[0] > 0:
        return tensor[:1].expand_as(tensor)
    return tensor


@dataclass
class Problem:
    """What a case asks for."""

    case: Case
    tensors: dict[str, Tensor]
    run: Run  #: by DCLS, from the tensors by name
    oracle: Run  #: the same in plain torch, from tensors in float64
    #: (output's cotangent, float64 tensors, eps, units, floor, autocast) to bounds by name
    bounds: Callable[..., dict[str, Bound]]
    places: tuple[str, ...] = PLACES
    constants: dict[str, Tensor] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.case["dtype"])

    @property
    def needs(self) -> list[str]:
        """The tensors whose gradient is asked for."""
        wanted = [n for n in self.tensors if self.case["needs"][PLACES.index(n)]]
        return wanted or list(self.tensors)[:1]


class Draw:
    """Random tensors of a case."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.generator = torch.Generator().manual_seed(case["seed"])
        self.drawn = 0
        self.dtype: torch.dtype = getattr(torch, case["dtype"])

    def _lay(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        self.drawn += 1
        layout = self.case["layouts"][(self.drawn - 1) % len(self.case["layouts"])]
        return lay(tensor.to(dtype or self.dtype), layout)

    def normal(self, *shape: int) -> Tensor:
        # Few bits: every dtype holds them.
        values = torch.randn(*shape, generator=self.generator, dtype=torch.float64)
        return self._lay((values * 16).round() / 16)

    def kernel(self, *shape: int) -> Tensor:
        """A kernel with zeros."""
        drawn = torch.rand(*shape, generator=self.generator) < self.case["density"]
        values = torch.randn(*shape, generator=self.generator, dtype=torch.float64)
        return self._lay((values * 16).round() / 16 * drawn)

    def marks(self, kernel: Tensor) -> Tensor:
        drawn = torch.rand(kernel.shape, generator=self.generator)
        return lay((kernel != 0) & (drawn < 0.9) | (drawn < 0.1), self.case["layouts"][-1])

    def positions(self, size: list[int], *shape: int, dtype: torch.dtype) -> Tensor:
        """Exact in every dtype, also after the centre is added: no rounding crosses a kink."""
        P = torch.randn(len(size), *shape, generator=self.generator, dtype=torch.float64)
        P *= torch.tensor(size, dtype=torch.float64).reshape(-1, *[1] * len(shape)) / 4
        if P.numel():
            P.view(-1)[::5] = P.view(-1)[::5].round()
            if self.case["positions"] == "far":
                P.view(-1)[1::5] *= 64
        P = ((P * 256).round() / 256).clamp(-4096, 4096)
        return self._lay(P, dtype)

    def widths(self, size: list[int], *shape: int, dtype: torch.dtype) -> Tensor:
        SIG = torch.randn(len(size), *shape, generator=self.generator, dtype=torch.float64) / 4
        flat = SIG.view(-1)
        if self.case["widths"] == "wide":
            SIG *= max(size)
        if self.case["widths"] == "special" and flat.numel():
            flat[::3], flat[1::3], flat[2::6] = 0, 1e-40, 1e4
        return self._lay(
            (SIG * 256).round() / 256 if self.case["widths"] != "special" else SIG, dtype
        )
