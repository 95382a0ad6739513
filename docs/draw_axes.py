"""Draws docs/images/axes.png, the axis order of P, from the layers themselves.

    python docs/draw_axes.py

Above: one element at P = (3, -1) in the kernel of a Dcls2d, with v0 and with the other versions.
Below: one element at P = (3, 1, -1) in the kernel of a Dcls3d. Needs matplotlib.
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from DCLS import Dcls2d, Dcls3d

OUTPUT = Path(__file__).parent / "images" / "axes.png"
SQUARE = 7
AT_2D, AT_3D = (3.0, -1.0), (3.0, 1.0, -1.0)
COLORS = ("#c0392b", "#2471a3", "#1e8449")  # of P[0], P[1], P[2]
TITLES = {"v0": "version v0", "gauss": "versions v1, max, gauss"}


def kernel(layer: Dcls2d | Dcls3d, at: tuple[float, ...]) -> Tensor:
    """The kernel of a layer whose one element has weight 1 and the position ``at``."""
    with torch.no_grad():
        layer.weight.fill_(1)
        for row, position in zip(layer.P, at, strict=True):
            row.fill_(position)
        return layer.DCK(layer.weight, layer.P, layer.SIG)[0, 0]


def place(values: Tensor) -> list[int]:
    """The offset of the largest value from the middle, along each axis of the kernel."""
    index = torch.unravel_index(values.argmax(), values.shape)
    return [int(i) - size // 2 for i, size in zip(index, values.shape, strict=True)]


def row_of_axis(offsets: list[int], at: tuple[float, ...]) -> list[int]:
    """Which row of P put the element at its offset on each axis; the positions all differ."""
    return [at.index(float(offset)) for offset in offsets]


def draw_2d(axes: Axes, version: str) -> None:
    layer = Dcls2d(1, 1, 1, dilated_kernel_size=SQUARE, version=version)
    values = kernel(layer, AT_2D)
    down, right = offsets = place(values)
    of_height, of_width = row_of_axis(offsets, AT_2D)
    half = SQUARE / 2
    box = (-half, half, half, -half)
    axes.imshow(values.numpy(), cmap="Greys", vmin=0, vmax=1.6, extent=box)
    for line in range(1, SQUARE):
        axes.axhline(line - half, color="0.85", linewidth=0.8)
        axes.axvline(line - half, color="0.85", linewidth=0.8)
    arrow = {
        "arrowstyle": "-|>",
        "linewidth": 2.2,
        "shrinkA": 0,
        "shrinkB": 0,
        "mutation_scale": 16,
    }
    for (start, end), row in (
        (((0, 0), (right, 0)), of_width),
        (((right, 0), (right, down)), of_height),
    ):
        axes.annotate("", end, start, arrowprops={**arrow, "color": COLORS[row]})
    label = {"fontsize": 11, "fontweight": "bold", "ha": "center", "va": "center"}
    below = 0.62 if down < 0 else -0.62
    axes.text(right / 2, below, f"P[{of_width}] = {right}", color=COLORS[of_width], **label)
    beside = (right - 1.55 if right > 0 else right + 1.55, down / 2 + (0.1 if down > 0 else -0.1))
    axes.text(*beside, f"P[{of_height}] = {down}", color=COLORS[of_height], **label)
    axes.plot(0, 0, "o", color="black", markersize=4)
    axes.set(xlabel="axis 1: width", ylabel="axis 0: height", xticks=[], yticks=[])
    axes.set_title(f"2-D, {TITLES[version]}", fontsize=12)


def draw_3d(axes: Axes, version: str) -> None:
    layer = Dcls3d(1, 1, 1, dilated_kernel_size=SQUARE, version=version)
    offsets = place(kernel(layer, AT_3D))
    rows = row_of_axis(offsets, AT_3D)
    # On paper: depth goes up and to the right, height down, width to the right.
    directions = torch.tensor([[0.55, -0.42], [0.0, 1.0], [1.0, 0.0]])
    half = SQUARE // 2
    corners = torch.cartesian_prod(*[torch.tensor([-half, half])] * 3).float()
    for a in corners:
        for b in corners:
            if ((a - b) != 0).sum() == 1:
                line = torch.stack([a, b]) @ directions
                axes.plot(line[:, 0], line[:, 1], color="0.8", linewidth=1)
    point = torch.zeros(3)
    names = ("depth", "height", "width")
    arrow = {
        "arrowstyle": "-|>",
        "linewidth": 2.2,
        "shrinkA": 0,
        "shrinkB": 0,
        "mutation_scale": 16,
    }
    for axis in (2, 1, 0):
        start = (point @ directions).tolist()
        point[axis] = offsets[axis]
        end = (point @ directions).tolist()
        axes.annotate("", end, start, arrowprops={**arrow, "color": COLORS[rows[axis]]})
    axes.plot(*(point @ directions).tolist(), "s", color="black", markersize=8, zorder=5)
    axes.plot(0, 0, "o", color="black", markersize=4)
    for number, axis in enumerate((0, 1, 2)):
        text = f"axis {axis} ({names[axis]}): P[{rows[axis]}] = {offsets[axis]}"
        style = {"color": COLORS[rows[axis]], "fontsize": 11, "fontweight": "bold"}
        axes.text(0.5, -0.06 - 0.085 * number, text, transform=axes.transAxes, ha="center", **style)
    axes.set_title(f"3-D, {TITLES[version]}", fontsize=12)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.axis("off")


def draw() -> Figure:
    """Draws the picture."""
    figure = Figure(figsize=(8.6, 9.4), dpi=130)
    frame = {"left": 0.06, "right": 0.97, "top": 0.95, "bottom": 0.14, "hspace": 0.22}
    panels = figure.subplots(2, 2, gridspec_kw={**frame, "wspace": 0.16})
    for column, version in enumerate(("gauss", "v0")):
        draw_2d(panels[0, column], version)
        draw_3d(panels[1, column], version)
    return figure


if __name__ == "__main__":
    draw().savefig(OUTPUT)
