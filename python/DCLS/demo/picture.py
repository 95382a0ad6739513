"""The demo's picture: the learned kernels, and how the positions of their elements moved."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from DCLS import Dcls2d
from DCLS.demo.model import DEPTH, Outcome
from DCLS.demo.settings import Settings

Array = NDArray[np.float64]

CHANNELS_SHOWN = 3
POSITIVE, NEGATIVE = "#b2182b", "#2166ac"
NETWORK_COLOURS = ("#b2182b", "0.4")
BLOCK_COLOURS = ("#e08214", "#542788")
WIDTH, PANEL, CURVES = 8.4, 1.2, 2.4  # in inches


def kernels(layer: torch.nn.Module) -> Array:
    """Dense kernels ``(C, S, S)`` of a depthwise layer, DCLS or plain."""
    if isinstance(layer, Dcls2d):
        dense = layer.kernel()
    else:
        assert isinstance(layer, torch.nn.Conv2d)
        dense = layer.weight
    array: Array = dense.detach().squeeze(1).double().numpy()
    return array


def positions(layer: torch.nn.Module) -> Array:
    """Row and column ``(C, K, 2)`` of each element of a depthwise layer; 0 is the centre."""
    assert isinstance(layer, Dcls2d)
    array: Array = layer.positions().detach().squeeze(2).permute(1, 2, 0).double().numpy()
    return array


def distances_moved(outcome: Outcome) -> list[Array]:
    """For each DCLS layer, how far its elements are from where they started, in pixels."""
    layers = (net.depthwise_layers() for net in (outcome.initial, outcome.network))
    return [
        np.linalg.norm(positions(end) - positions(start), axis=2).ravel()
        for start, end in zip(*layers, strict=True)
    ]


def _strongest(dense: Array) -> list[int]:
    """The channels whose kernels have the largest norm, the largest first."""
    norms = np.sqrt((dense**2).sum((1, 2)))
    return [int(channel) for channel in np.argsort(-norms, kind="stable")[:CHANNELS_SHOWN]]


def _draw_kernel(axes: Axes, kernel: Array) -> None:
    half = len(kernel) / 2
    top = np.abs(kernel).max() or 1.0
    extent = (-half, half, half, -half)
    axes.imshow(kernel, cmap="RdBu_r", vmin=-top, vmax=top, extent=extent, interpolation="nearest")
    axes.set_facecolor("0.93")


def _draw_moves(axes: Axes, start: Array, end: Array, weight: Array) -> None:
    axes.axhline(0, color="0.9", linewidth=0.5, zorder=0)
    axes.axvline(0, color="0.9", linewidth=0.5, zorder=0)
    axes.scatter(start[:, 1], start[:, 0], s=8, color="0.6", linewidth=0, zorder=2)
    for (row0, column0), (row1, column1), value in zip(start, end, weight, strict=True):
        arrow = {
            "arrowstyle": "-|>,head_width=0.13,head_length=0.26",
            "color": POSITIVE if value > 0 else NEGATIVE,
            "linewidth": 0.9,
            "shrinkA": 0,
            "shrinkB": 0,
        }
        axes.annotate("", (column1, row1), (column0, row0), arrowprops=arrow)


def _draw_block(panels: NDArray[np.object_], number: int, outcomes: Sequence[Outcome]) -> None:
    """Draws the kernels of a block, below them the moves, below them the plain kernels if any."""
    ours, *plain = outcomes
    first, last = (net.depthwise_layers()[number] for net in (ours.initial, ours.network))
    assert isinstance(last, Dcls2d)
    dense, start, end = kernels(last), positions(first), positions(last)
    weight: Array = last.weight.detach().squeeze(1).double().numpy()
    circle = {"s": 12, "facecolor": "none", "edgecolor": "black", "linewidth": 0.7}
    for column, channel in enumerate(_strongest(dense)):
        _draw_kernel(panels[0, column], dense[channel])
        panels[0, column].scatter(end[channel, :, 1], end[channel, :, 0], **circle)
        _draw_moves(panels[1, column], start[channel], end[channel], weight[channel])
    for one in plain:
        dense = kernels(one.network.depthwise_layers()[number])
        for column, channel in enumerate(_strongest(dense)):
            _draw_kernel(panels[2, column], dense[channel])


def _draw_accuracy(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    for outcome, colour in zip(outcomes, NETWORK_COLOURS, strict=False):
        accuracy = [100 * epoch.accuracy for epoch in outcome.epochs]
        label = f"{outcome.name}: {accuracy[-1]:.1f} % ({outcome.parameters} parameters)"
        axes.plot(range(1, len(accuracy) + 1), accuracy, "o-", ms=3, color=colour, label=label)
    axes.set(xlabel="epoch", ylabel="test accuracy (%)", ylim=(0, 103))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right", frameon=False, fontsize=7)
    axes.set_title("accuracy on digits held out", fontsize=10)


def _draw_distances(axes: Axes, distances: Sequence[Array]) -> None:
    top = max(float(layer.max()) for layer in distances) or 1.0
    axes.hist(
        list(distances),
        bins=[float(edge) for edge in np.linspace(0, top, 21)],
        label=[f"block {i}, median {np.median(layer):.2f}" for i, layer in enumerate(distances, 1)],
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
    labels = [f"DCLS kernels\n{size}x{size}", "positions,\nfrom start to end"]
    if len(outcomes) > 1:
        labels.append(f"plain kernels\n{plain_size}x{plain_size}")
    half = max(size, plain_size if len(outcomes) > 1 else 0) / 2
    height = PANEL * len(labels) + 0.9

    figure = Figure(figsize=(WIDTH, height + CURVES), dpi=180, layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(height, CURVES), squeeze=False).flat
    upper.suptitle(
        f"Kernels of {settings.elements} elements with learnable positions ({settings.version}), "
        f"after {settings.epochs} epochs on handwritten digits",
        fontsize=10,
    )
    for number, block in enumerate(upper.subfigures(1, DEPTH, squeeze=False).flat):
        block.suptitle(f"block {number + 1}", fontsize=9)
        panels = block.subplots(len(labels), CHANNELS_SHOWN, sharex=True, sharey=True)
        _draw_block(panels, number, outcomes)
        for axes in panels.flat:
            axes.set(xlim=(-half, half), ylim=(half, -half), aspect="equal")
            axes.set(xticks=(-int(half), 0, int(half)), yticks=(-int(half), 0, int(half)))
            axes.tick_params(length=2, width=0.5, labelsize=7)
            axes.spines[:].set_linewidth(0.5)
        for axes, label in zip(panels[:, 0], labels, strict=True):
            axes.set_ylabel(label, fontsize=8)
    upper.supxlabel(
        f"The {CHANNELS_SHOWN} channels of each block with the largest norm, each on its own colour"
        " scale.\nCircles: elements. Arrows: red for a positive weight, blue for a negative one.",
        fontsize=8,
        color="0.35",
    )
    left, right = lower.subplots(1, 2)
    _draw_accuracy(left, outcomes)
    _draw_distances(right, distances_moved(outcomes[0]))
    return figure


def save(outcomes: Sequence[Outcome], settings: Settings) -> None:
    """Draws the picture into ``settings.output``; its suffix chooses the format.

    A file that is there is replaced when the new one is whole; a link goes on leading to it.

    Raises:
        OSError: the picture cannot be written. What is there stays.
    """
    target = settings.output.resolve()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.stem[:64]}-") as folder:
        new = Path(folder) / f"new{target.suffix}"
        draw(outcomes, settings).savefig(new)
        if target.exists():
            shutil.copymode(target, new)
        new.replace(target)
