"""Draws docs/images/elements.png, the first picture of the README, from the package itself.

    python docs/draw_elements.py

Above: the nine elements of a dilated 3x3 kernel, let loose by gradient descent on their weights,
positions and widths until the constructed kernel fits a target. Below: what one element is in the
versions. Needs matplotlib.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from DCLS.functional import construct_kernel

SIZE, DILATION, STEPS = 17, 5, 2000
ZOOM = 7
OUTPUT = Path(__file__).parent / "images" / "elements.png"
FRAME = {"left": 0.015, "right": 0.985, "top": 0.86, "bottom": 0.03, "wspace": 0.07}


def target_kernel() -> Tensor:
    """A wave under a bell, askew."""
    x = torch.arange(SIZE, dtype=torch.float64) - SIZE // 2
    row, column = torch.meshgrid(x, x, indexing="ij")
    angle = math.radians(35)
    across = column * math.cos(angle) + row * math.sin(angle)
    along = row * math.cos(angle) - column * math.sin(angle)
    bell = torch.exp(-(across**2) / (2 * 3.2**2) - along**2 / (2 * 3.6**2))
    return torch.cos(2 * math.pi * across / 7.5) * bell


def fit(target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the positions (STEPS + 1, 2, 9) on the way, the first kernel and the last."""
    grid = torch.tensor([-DILATION, 0, DILATION], dtype=torch.float64)
    P = torch.stack([grid.repeat_interleave(3), grid.repeat(3)]).requires_grad_()
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(9, dtype=torch.float64, generator=generator).requires_grad_()
    SIG = torch.full((2, 9), 0.23, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([{"params": [weight, SIG]}, {"params": [P], "lr": 0.05}], lr=0.03)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    kernels, positions = [], [P.detach().clone()]
    for _ in range(STEPS):
        kernels.append(construct_kernel(weight, P, SIG, dilated_kernel_size=(SIZE, SIZE)))
        optimiser.zero_grad()
        (kernels[-1] - target).square().sum().backward()
        optimiser.step()
        scheduler.step()
        positions.append(P.detach().clone())
    return torch.stack(positions), kernels[0].detach(), kernels[-1].detach()


def frame(axes: Axes, size: int, title: str) -> None:
    """An empty kernel of ``size`` by ``size``."""
    half = size / 2
    axes.set(xlim=(-half, half), ylim=(half, -half), xticks=[], yticks=[], aspect="equal")
    axes.set_title(title, fontsize=10)
    for spine in axes.spines.values():
        spine.set_linewidth(0.6)


def show(axes: Axes, kernel: Tensor, title: str, top: float | None = None) -> None:
    """A kernel, red where positive and blue where negative."""
    half = len(kernel) / 2
    top = float(kernel.abs().max()) if top is None else top
    extent = (-half, half, half, -half)
    axes.imshow(kernel.numpy(), cmap="RdBu_r", vmin=-top, vmax=top, extent=extent)
    frame(axes, len(kernel), title)


def mark(axes: Axes, at: Tensor) -> None:
    """Circles at the positions (2, K)."""
    axes.scatter(at[1], at[0], s=24, facecolor="none", edgecolor="black", linewidth=0.9, zorder=3)


def draw_fit(panels: list[Axes]) -> None:
    """From a dilated kernel to a learned one."""
    target = target_kernel()
    positions, first, last = fit(target)
    show(panels[0], first, "start: a dilated 3x3")
    mark(panels[0], positions[0])
    frame(panels[1], SIZE, "the positions move")
    panels[1].scatter(positions[0, 1], positions[0, 0], s=14, color="0.6", linewidth=0)
    for rows, columns in positions.permute(2, 1, 0):
        panels[1].plot(columns, rows, color="0.45", linewidth=1)
    mark(panels[1], positions[-1])
    show(panels[2], last, "end: nine elements")
    mark(panels[2], positions[-1])
    show(panels[3], target, "the target")


def draw_versions(panels: list[Axes]) -> None:
    """One element of weight 1 between the grid points, in each version."""
    at = torch.tensor([[0.3], [-0.4]], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    versions = (
        ("v1", None, "v0, v1: bilinear"),
        ("max", 0.5, "max: learned width"),
        ("gauss", 0.23, "gauss: learned width"),
        ("gauss", 0.8, "gauss, grown wider"),
    )
    for axes, (version, sigma, title) in zip(panels, versions, strict=True):
        SIG = None if sigma is None else torch.full_like(at, sigma)
        kernel = construct_kernel(one, at, SIG, dilated_kernel_size=(ZOOM, ZOOM), version=version)
        show(axes, kernel, title, top=0.6)
        for index, value in enumerate(kernel.flatten().tolist()):
            row, column = divmod(index, ZOOM)
            if value >= 0.005:
                text = f"{value:.2f}".removeprefix("0")
                ink = "white" if value > 0.35 else "0.25"
                place = (column - ZOOM // 2, row - ZOOM // 2 + 0.05)
                axes.annotate(text, place, ha="center", va="center", fontsize=7, color=ink)
        mark(axes, at)


def draw() -> Figure:
    """Draws the picture."""
    figure = Figure(figsize=(8.4, 4.8), dpi=190)
    upper, lower = figure.subfigures(2, 1)
    draw_fit(list(upper.subplots(1, 4, gridspec_kw=FRAME)))
    draw_versions(list(lower.subplots(1, 4, gridspec_kw=FRAME)))
    return figure


if __name__ == "__main__":
    draw().savefig(OUTPUT)
