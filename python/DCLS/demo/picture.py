"""The demo's picture: which network was right more often, and what the best layers learned."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray
from torch import nn

from DCLS import Dcls2d
from DCLS.delays import DelayLinear
from DCLS.demo.outcome import Outcome, by_kind, verdict
from DCLS.demo.settings import Settings
from DCLS.demo.tasks import Delays, Digits, Pixels, Signals, Task
from DCLS.demo.tasks.digits import DEPTH, DigitsNet
from DCLS.demo.tasks.signals import DIFFERENCES

Array = NDArray[np.float64]

CHANNELS_SHOWN, CONNECTIONS_SHOWN = 3, 30
POSITIVE, NEGATIVE = "#b2182b", "#2166ac"
COLOURS = {"learned": "#b2182b", "fixed": "#8073ac", "plain": "0.55"}


def kernels(layer: nn.Module) -> Array:
    """Dense kernels ``(C, S, S)`` of a depthwise layer, DCLS or plain."""
    if isinstance(layer, Dcls2d):
        dense = layer.kernel()
    else:
        assert isinstance(layer, nn.Conv2d)
        dense = layer.weight
    array: Array = dense.detach().squeeze(1).double().numpy()
    return array


def positions(layer: nn.Module) -> Array:
    """Row and column ``(C, K, 2)`` of each element of a depthwise layer; 0 is the centre."""
    assert isinstance(layer, Dcls2d)
    array: Array = layer.positions().detach().squeeze(2).permute(1, 2, 0).double().numpy()
    return array


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


def _draw_accuracies(axes: Axes, task: Task, outcomes: Sequence[Outcome]) -> None:
    """Draws a bar for each kind of network, the best on top, and a point for each seed."""
    tests = {kind: [100 * value for value in values] for kind, values in by_kind(outcomes).items()}
    kinds = sorted(tests, key=lambda kind: fmean(tests[kind]))
    for row, kind in enumerate(kinds):
        mean, best = fmean(tests[kind]), row == len(kinds) - 1
        axes.barh(row, mean, height=0.6, color=COLOURS[kind])
        points: Any = {"ms": 3, "mfc": "white", "mec": "black", "mew": 0.6, "clip_on": False}
        # One below the other, so that equal ones are seen.
        axes.plot(tests[kind], row - np.linspace(-0.15, 0.15, len(tests[kind])), "o", **points)
        above: Any = {"va": "bottom", "transform": axes.get_yaxis_transform()}
        above["weight"] = "bold" if best else "normal"
        axes.text(0.0, row + 0.34, task.label(kind), fontsize=8, **above)
        axes.text(1.0, row + 0.34, f"{mean:.1f} %", fontsize=9, ha="right", **above)
    values = [value for kind in kinds for value in tests[kind]]
    low, high = min(values), max(values)
    # Bars from 0 hide a difference of a few points, so the axis says where it starts.
    start = 0 if high - low > 25 else max(0, 5 * int((low - max(1, high - low)) // 5))
    axes.set(xlim=(start, 100), ylim=(-0.5, len(kinds) - 0.3), yticks=[])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(labelsize=8)
    where = f", axis from {start} %" if start else ""
    sizes = sorted({one.parameters for one in outcomes})
    size = " to ".join(map(str, dict.fromkeys([sizes[0], sizes[-1]])))
    axes.set_xlabel(
        f"right on test examples (%){where}\npoints: one training each; all have {size} parameters",
        fontsize=8,
    )


def _draw_kernels(figure: SubFigure, start: nn.Module, end: nn.Module) -> None:
    """Draws kernels with the positions of their elements, and below them how these moved."""
    assert isinstance(start, DigitsNet)
    assert isinstance(end, DigitsNet)
    panels = figure.subplots(2, CHANNELS_SHOWN * DEPTH, sharex=True, sharey=True, squeeze=False)
    for block, layers in enumerate(
        zip(start.depthwise_layers(), end.depthwise_layers(), strict=True)
    ):
        first, last = layers
        assert isinstance(last, Dcls2d)
        dense, here, there = kernels(last), positions(first), positions(last)
        weight: Array = last.weight.detach().squeeze(1).double().numpy()
        for column, channel in enumerate(_strongest(dense), block * CHANNELS_SHOWN):
            _draw_kernel(panels[0, column], dense[channel])
            circle: Any = {"s": 8, "facecolor": "none", "edgecolor": "black", "linewidth": 0.6}
            panels[0, column].scatter(there[channel, :, 1], there[channel, :, 0], **circle)
            panels[0, column].set_title(f"block {block + 1}", fontsize=7)
            _draw_moves(panels[1, column], here[channel], there[channel], weight[channel])
    half = len(dense[0]) / 2
    for axes in panels.flat:
        axes.set(xlim=(-half, half), ylim=(half, -half), aspect="equal", xticks=[], yticks=[])
        axes.spines[:].set_linewidth(0.5)
    figure.supxlabel(
        "above: kernels of the strongest channels; circles: their elements\n"
        "below: how the elements moved; red: positive weights, blue: negative ones",
        fontsize=8, color="0.35",
    )  # fmt: skip


def _delays(network: nn.Module, name: str) -> tuple[Array, Array]:
    """Delays and weights ``(O, I, K)`` of a layer."""
    layer = network.get_submodule(name)
    assert isinstance(layer, DelayLinear)
    delays: Array = layer.delays().detach().double().numpy()
    weights: Array = layer.weight.detach().double().numpy()
    return delays, weights


def _draw_delays(
    figure: SubFigure, start: nn.Module, end: nn.Module, lines: Sequence[int] = ()
) -> None:
    """Draws how the delays of the strongest connections moved; ``lines`` are delays to mark."""
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, name in zip(panels, ("first", "second"), strict=True):
        (before, _), (after, weights) = (_delays(network, name) for network in (start, end))
        strongest = np.argsort(-np.abs(weights), axis=None, kind="stable")[:CONNECTIONS_SHOWN]
        order = strongest[np.argsort(after.ravel()[strongest], kind="stable")]
        for line in lines:
            axes.axvline(line, color="#1b7837", linewidth=1, alpha=0.6, zorder=0)
        here, there = (
            np.stack([np.arange(len(order)), delays.ravel()[order]], 1)
            for delays in (before, after)
        )
        _draw_moves(axes, here, there, weights.ravel()[order])
        axes.set_title(f"{name} layer", fontsize=8)
        axes.set_xlabel("delay (steps)", fontsize=8)
        axes.set_yticks([])
        axes.tick_params(labelsize=8)
    figure.supxlabel(
        f"the {CONNECTIONS_SHOWN} strongest connections of a layer: from the start (point) to what "
        "was learned (arrow)\nred: positive weights, blue: negative ones",
        fontsize=8, color="0.35",
    )  # fmt: skip


def _draw_differences(figure: SubFigure, start: nn.Module, end: nn.Module) -> None:
    """Draws which difference between the ears each neuron undoes, beside the true ones."""
    axes: Axes = figure.subplots()
    for true in DIFFERENCES:
        axes.axhline(true, color="#1b7837", linewidth=1, alpha=0.6, zorder=0)
    before, after = (_delays(net, "delays")[0] for net in (start, end))
    # The left delay less the right one: the sum is largest where the sound undoes it.
    first, last = (delays[:, 0, 0] - delays[:, 1, 0] for delays in (before, after))
    order = np.argsort(last)
    neurons = np.arange(len(last))
    axes.plot(neurons, first[order], "o", ms=4, mfc="none", mec="0.5", label="start")
    axes.plot(neurons, last[order], "o", ms=5, color=COLOURS["learned"], label="learned")
    axes.set_xlabel("neuron, in the order of what it learned", fontsize=8)
    axes.set_ylabel("delay left - delay right (steps)", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False)


_DRAW: dict[type[Task], tuple[str, Callable[[SubFigure, nn.Module, nn.Module], None]]] = {
    Pixels: (
        "How far back the network looks; lines: the pixels 1, 2 and 3 rows above",
        partial(_draw_delays, lines=(8, 16, 24)),
    ),
    Delays: ("How far back the network listens", _draw_delays),
    Signals: (
        "Neurons learned the differences in time of the directions (lines)", _draw_differences
    ),
    Digits: ("Elements learned where to look", _draw_kernels),
}  # fmt: skip


def draw(task: Task, outcomes: Sequence[Outcome]) -> Figure:
    """Draws who won, and what the network with learned positions of the first seed learned."""
    figure = Figure(figsize=(9.4, 4.2), dpi=150, layout="constrained")
    figure.suptitle(verdict(task, outcomes), fontsize=11, weight="bold")
    left, right = figure.subfigures(1, 2, width_ratios=(2, 3), squeeze=False).flat
    _draw_accuracies(left.subplots(), task, outcomes)
    first = outcomes[0]
    title, what = _DRAW[type(task)]
    right.suptitle(title, fontsize=9)
    what(right, first.initial, first.network)
    return figure


def save(task: Task, outcomes: Sequence[Outcome], settings: Settings) -> None:
    """Draws the picture into ``settings.output``; its suffix chooses the format.

    A file that is there is replaced when the new one is whole; a link goes on leading to it.

    Raises:
        OSError: the picture cannot be written. What is there stays.
    """
    target = settings.output.resolve()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.stem[:64]}-") as folder:
        new = Path(folder) / f"new{target.suffix}"
        draw(task, outcomes).savefig(new)
        if target.exists():
            shutil.copymode(target, new)
        new.replace(target)
