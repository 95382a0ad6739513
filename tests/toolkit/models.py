"""Models that the tests of the toolkit share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from DCLS import Dcls2d


class Block(nn.Module):
    """A residual block with a depthwise layer."""

    def __init__(self, channels: int, version: str = "gauss") -> None:
        super().__init__()
        self.depthwise = Dcls2d(
            channels,
            channels,
            kernel_count=4,
            dilated_kernel_size=(5, 7),
            padding="same",
            groups=channels,
            version=version,
        )
        self.norm = nn.GroupNorm(1, channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pointwise(self.norm(self.depthwise(x)))


class Net(nn.Module):
    """A stem, two stages of two blocks that share their positions and widths, and a head."""

    def __init__(self, version: str = "gauss", share: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2, stride=2)
        self.stages = nn.ModuleList(
            nn.Sequential(Block(4, version), Block(4, version)) for _ in range(2)
        )
        self.head = nn.Linear(4, 3)
        for stage in self.stages if share else ():
            stage[1].depthwise.P = stage[0].depthwise.P
            stage[1].depthwise.SIG = stage[0].depthwise.SIG

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((-2, -1)))


def layers_of(model: nn.Module) -> list[Dcls2d]:
    return [m for m in model.modules() if isinstance(m, Dcls2d)]


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 3, 20, 20, generator=generator)
    return x, torch.randint(3, (5,), generator=generator)


def scatter(model: nn.Module, scale: float = 40.0) -> None:
    """Throws the positions far out of the kernels."""
    with torch.no_grad():
        for P in {layer.P for layer in layers_of(model)}:
            P.mul_(scale)


class Twice(nn.Module):
    """A parametrization that can be undone."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x

    def right_inverse(self, x: Tensor) -> Tensor:
        return x / 2
