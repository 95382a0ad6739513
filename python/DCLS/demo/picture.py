"""The demo's picture: the learned kernels, and how the positions of their elements moved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from DCLS.construct.modules import Dcls2d
from DCLS.demo.experiment import Outcome
from DCLS.demo.model import DEPTH, DigitsNet
from DCLS.demo.settings import Settings
from DCLS.nn.axes import axis_order, to_kernel_axes

Array = NDArray[np.float64]

CHANNELS_SHOWN = 3
POSITIVE, NEGATIVE = "#b2182b", "#2166ac"
NETWORK_COLOURS = ("#b2182b", "0.4")
BLOCK_COLOURS = ("#e08214", "#542788")

# The sheet, in inches.
PANEL, GAP, BLOCK_GAP = 1.45, 0.1, 0.3
LEFT, RIGHT, HEAD = 0.95, 0.15, 0.85
CURVES_GAP, CURVES, FOOT = 1.05, 2.2, 0.5


def _dcls_layers(network: DigitsNet) -> list[Dcls2d]:
    return [layer for layer in network.depthwise_layers() if isinstance(layer, Dcls2d)]


def kernels(layer: torch.nn.Module) -> Array:
    """Dense kernels ``(C, S, S)`` of a depthwise layer, DCLS or plain."""
    if isinstance(layer, Dcls2d):
        dense = layer.DCK(layer.weight, layer.P, layer.SIG)
    else:
        assert isinstance(layer, torch.nn.Conv2d)
        dense = layer.weight
    array: Array = dense.detach().squeeze(1).double().numpy()
    return array


def positions(layer: Dcls2d) -> Array:
    """Row and column ``(C, K, 2)`` of each element of a depthwise layer; 0 is the centre."""
    rows = to_kernel_axes(layer.P.detach(), axis_order(2, layer.version))
    array: Array = rows.squeeze(2).permute(1, 2, 0).double().numpy()
    return array


def distances_moved(outcome: Outcome) -> list[Array]:
    """For each DCLS layer, how far its elements are from where they started, in pixels."""
    pairs = zip(_dcls_layers(outcome.initial), _dcls_layers(outcome.network), strict=True)
    return [
        np.linalg.norm(positions(end) - positions(start), axis=2).ravel() for start, end in pairs
    ]


def _strongest(dense: Array) -> list[int]:
    """The channels whose kernels have the largest norm, the largest first."""
    norms = np.sqrt((dense**2).sum((1, 2)))
    return [int(channel) for channel in np.argsort(-norms, kind="stable")[:CHANNELS_SHOWN]]


class _Sheet:
    """A figure on which things are placed in inches from its top left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=150)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = self.height - top - height
        return self.figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height)
        )

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        self.figure.text(left / self.width, 1 - top / self.height, text, va="center", **style)


def _frame(axes: Axes, half: float, *, left: bool, bottom: bool) -> None:
    ticks = [-int(half), 0, int(half)]
    axes.set(xlim=(-half, half), ylim=(half, -half), aspect="equal")
    axes.set_xticks(ticks, [str(tick) if bottom else "" for tick in ticks])
    axes.set_yticks(ticks, [str(tick) if left else "" for tick in ticks])
    axes.tick_params(length=2, width=0.5, pad=2, labelsize=7)
    for spine in axes.spines.values():
        spine.set_linewidth(0.5)


def _draw_kernel(axes: Axes, kernel: Array) -> None:
    half = len(kernel) / 2
    top = np.abs(kernel).max() or 1.0
    extent = (-half, half, half, -half)
    axes.imshow(kernel, cmap="RdBu_r", vmin=-top, vmax=top, extent=extent, interpolation="nearest")
    axes.set_facecolor("0.93")


def _draw_elements(axes: Axes, at: Array) -> None:
    axes.scatter(at[:, 1], at[:, 0], s=12, facecolor="none", edgecolor="black", linewidth=0.7)


def _draw_moves(axes: Axes, start: Array, end: Array, weight: Array) -> None:
    axes.axhline(0, color="0.9", linewidth=0.5, zorder=0)
    axes.axvline(0, color="0.9", linewidth=0.5, zorder=0)
    axes.scatter(start[:, 1], start[:, 0], s=8, color="0.6", linewidth=0, zorder=2)
    for (row0, column0), (row1, column1), value in zip(start, end, weight, strict=True):
        axes.annotate(
            "",
            (column1, row1),
            (column0, row0),
            arrowprops={
                "arrowstyle": "-|>,head_width=0.13,head_length=0.26",
                "color": POSITIVE if value > 0 else NEGATIVE,
                "linewidth": 0.9,
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )


def _draw_block(
    sheet: _Sheet, number: int, outcomes: Sequence[Outcome], half: float, left: float
) -> None:
    """Draws the kernels of a layer, below them the moves, below them the plain kernels if any."""
    first, last = (_dcls_layers(net)[number] for net in (outcomes[0].initial, outcomes[0].network))
    dense, start, end = kernels(last), positions(first), positions(last)
    weight: Array = last.weight.detach().squeeze(1).double().numpy()
    plain = [kernels(one.network.depthwise_layers()[number]) for one in outcomes[1:]]
    width = CHANNELS_SHOWN * (PANEL + GAP) - GAP
    sheet.text(left + width / 2, HEAD - 0.17, f"block {number + 1}", ha="center", fontsize=10)
    for column in range(CHANNELS_SHOWN):
        panels = [
            sheet.axes(left + column * (PANEL + GAP), HEAD + row * (PANEL + GAP), PANEL, PANEL)
            for row in range(2 + len(plain))
        ]
        channel = _strongest(dense)[column]
        _draw_kernel(panels[0], dense[channel])
        _draw_elements(panels[0], end[channel])
        _draw_moves(panels[1], start[channel], end[channel], weight[channel])
        for axes, kernel in zip(panels[2:], plain, strict=True):
            _draw_kernel(axes, kernel[_strongest(kernel)[column]])
        for axes in panels:
            _frame(axes, half, left=number == column == 0, bottom=axes is panels[-1])


def _draw_accuracy(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    for outcome, colour in zip(outcomes, NETWORK_COLOURS, strict=False):
        accuracy = [100 * epoch.accuracy for epoch in outcome.epochs]
        label = f"{outcome.name}: {accuracy[-1]:.1f} % ({outcome.parameters} parameters)"
        axes.plot(range(1, len(accuracy) + 1), accuracy, "o-", ms=3, color=colour, label=label)
    axes.set(xlabel="epoch", ylabel="test accuracy (%)", ylim=(0, 103))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    axes.set_title("accuracy on digits held out", fontsize=10)


def _draw_distances(axes: Axes, distances: Sequence[Array]) -> None:
    top = max(float(layer.max()) for layer in distances) or 1.0
    axes.hist(
        list(distances),
        bins=[float(edge) for edge in np.linspace(0, top, 21)],
        label=[
            f"block {number}, median {np.median(layer):.2f}"
            for number, layer in enumerate(distances, 1)
        ],
        color=BLOCK_COLOURS[: len(distances)],
    )
    axes.set(xlabel="distance between start and end (pixels)", ylabel="elements")
    axes.legend(loc="upper right", frameon=False, fontsize=8)
    axes.set_title("how far the positions moved", fontsize=10)


def draw(outcomes: Sequence[Outcome], settings: Settings) -> Figure:
    """Draws the outcome of the network with DCLS layers and, if there is one, of the plain one.

    The kernels shown are those of the three channels of each block with the largest norm.
    """
    size, plain_size = settings.kernel_size, settings.plain_kernel_size
    rows = 1 + len(outcomes)
    labels = [f"DCLS kernels\n{size}x{size}", "positions,\nfrom start to end"]
    labels += [f"plain kernels\n{plain_size}x{plain_size}"] * (rows - 2)
    half = max(size, plain_size if rows > 2 else 0) / 2
    block_width = CHANNELS_SHOWN * (PANEL + GAP) - GAP
    width = LEFT + DEPTH * block_width + (DEPTH - 1) * BLOCK_GAP + RIGHT
    kernels_end = HEAD + rows * (PANEL + GAP) - GAP
    sheet = _Sheet(width, kernels_end + CURVES_GAP + CURVES + FOOT)
    sheet.text(
        width / 2,
        0.3,
        f"Kernels of {settings.elements} elements with learnable positions ({settings.version}), "
        f"after {settings.epochs} epochs on handwritten digits",
        ha="center",
        fontsize=12,
    )
    for row, label in enumerate(labels):
        middle = HEAD + row * (PANEL + GAP) + PANEL / 2
        sheet.text(0.4, middle, label, rotation=90, ha="center", fontsize=9)
    for number in range(DEPTH):
        left = LEFT + number * (block_width + BLOCK_GAP)
        _draw_block(sheet, number, outcomes, half, left)
    sheet.text(
        LEFT,
        kernels_end + 0.36,
        f"The {CHANNELS_SHOWN} channels of each block with the largest norm, each on its own colour"
        " scale. Circles: elements. Arrows: red for a positive weight, blue for a negative one.",
        fontsize=8,
        color="0.35",
    )
    top = kernels_end + CURVES_GAP
    second = LEFT + block_width + BLOCK_GAP + 0.35
    _draw_accuracy(sheet.axes(LEFT, top, block_width - 0.2, CURVES), outcomes)
    _draw_distances(
        sheet.axes(second, top, width - second - RIGHT, CURVES), distances_moved(outcomes[0])
    )
    return sheet.figure


def save(outcomes: Sequence[Outcome], settings: Settings, path: Path) -> None:
    """Draws the picture into ``path``; its suffix chooses the format."""
    draw(outcomes, settings).savefig(path)
