"""Figures of kernels, positions and delays. They need matplotlib: ``pip install "DCLS[plot]"``.

Each function returns a ``matplotlib.figure.Figure`` and draws into the Axes that it is given. None
of them opens a window or needs a display. TensorBoard takes the figures by ``add_figure``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module

from DCLS._checks import integer
from DCLS.nn.base import _DclsModule
from DCLS.nn.by_axis import _ByAxis
from DCLS.toolkit._layers import dcls_layers
from DCLS.toolkit.tracker import PositionTracker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["delays", "density", "kernels", "positions", "tracks"]

_PANEL = 2.4  # inches


def kernels(layer: Module, count: int = 4, axes: Iterable[Axes] | None = None) -> Figure:
    """Draws the dense kernels with the largest norms, and a circle for each of their elements.

    A kernel with one axis is a line, one with two an image whose colours go from minus to plus its
    largest value, and one with three the sum along its first axis. Learnable axes count positions,
    dense ones points.

    Args:
        layer: a DCLS layer.
        count: number of kernels, of pairs of an output and an input channel; default 4. With
            ``axes`` as many as these.
        axes: Axes to draw into; None (default) for a new figure.

    Returns:
        The figure.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: ``count`` is not positive, or ``axes`` is empty.
        ModuleNotFoundError: matplotlib is not installed.
    """
    layer = _layer(layer)
    whole, size = _ByAxis.kernel(layer), (*layer.dense_kernel_size, *layer.dilated_kernel_size)
    dense = _array(whole).reshape(-1, *size)
    panels = _panels(axes, min(integer("count", count, 1), len(dense)))
    order = dense.flatten(1).norm(dim=1).argsort(descending=True)
    edges = [_edges(n) for n in layer.dilated_kernel_size]
    edges = [[n - 0.5 for n in range(points + 1)] for points in layer.dense_kernel_size] + edges
    circle = {"facecolor": "none", "edgecolor": "black", "s": 12, "linewidth": 0.7}
    for panel, kernel in zip(panels, order.tolist(), strict=False):
        image, at = dense[kernel], _elements(layer, kernel, whole.shape[1])
        if image.ndim == 1:
            panel.stem([edge + 0.5 for edge in edges[0][:-1]], image.numpy())
            panel.scatter(at[0].numpy(), torch.zeros_like(at[0]).numpy(), **circle)
            panel.set_xlabel("position")
        else:
            image = image.sum(0) if image.ndim == 3 else image
            most = float(image.abs().max()) or 1.0
            rows, columns = edges[-2:]
            extent = (columns[0], columns[-1], rows[-1], rows[0])
            panel.imshow(image.numpy(), cmap="RdBu_r", vmin=-most, vmax=most, extent=extent)
            panel.scatter(at[-1].numpy(), at[-2].numpy(), **circle)
        panel.set_title(f"{kernel // whole.shape[1]}, {kernel % whole.shape[1]}")
    return _figure(panels)


def _elements(layer: _DclsModule, kernel: int, inputs: int) -> Tensor:
    """Returns where the elements of a kernel are, ``(axes, elements)``, dense axes first."""
    P = _array(_ByAxis.positions(layer)).flatten(1, -2)
    points = math.prod(layer.dense_kernel_size)
    if len(P[0]) != math.prod(layer.weight.shape[:-1]):
        # All outputs of a group have the positions of its inputs.
        group = kernel // inputs // (layer.out_channels // layer.groups)
        kernel = group * inputs + kernel % inputs
    P = P[:, kernel * points : (kernel + 1) * points]
    lines = [torch.arange(n, dtype=P.dtype) for n in layer.dense_kernel_size]
    grid = torch.meshgrid(*lines, indexing="ij") if lines else ()
    dense = [line.reshape(-1, 1).expand_as(P[0]) for line in grid]
    return torch.stack([*dense, *P]).flatten(1)


def positions(layer: Module, start: Tensor | None = None, ax: Axes | None = None) -> Figure:
    """Draws the positions of all elements of a layer, and where they came from.

    One learnable axis makes a histogram, two a scatter with a line from each start. Of three the
    last two are shown.

    Args:
        layer: a DCLS layer.
        start: earlier positions, as ``layer.positions()`` returned them; None (default) for none.
        ax: Axes to draw into; None (default) for a new figure.

    Returns:
        The figure.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: ``start`` has another shape than the positions.
        ModuleNotFoundError: matplotlib is not installed.
    """
    layer = _layer(layer)
    now = _array(_ByAxis.positions(layer)).flatten(1)
    if start is not None:
        if not isinstance(start, Tensor):
            raise TypeError(f"start must be a Tensor or None, got {type(start).__name__}")
        if start.shape != layer.P.shape:
            raise ValueError(
                f"start must have the shape {tuple(layer.P.shape)}, got {tuple(start.shape)}"
            )
        start = _array(start).flatten(1)
    (panel,) = _panels(None if ax is None else [ax], 1)
    if len(now) == 1:
        bins = _edges(layer.dilated_kernel_size[0])
        for rows, label in ((start, "start"), (now, "now")):
            if rows is not None:
                panel.hist(rows[0].numpy(), bins=bins, alpha=0.6, label=label)
        panel.set_xlabel("position")
    else:
        y, x = now[-2:].numpy()
        if start is not None:
            y0, x0 = start[-2:].numpy()
            panel.plot([x0, x], [y0, y], color="0.7", linewidth=0.5)
            panel.plot(x0, y0, ".", color="0.5", markersize=2, label="start")
        panel.plot(x, y, ".", color="#b2182b", markersize=3, label="now")
        _frame(panel, layer.dilated_kernel_size)
    if start is not None:  # above the points, which may be anywhere
        panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    return _figure([panel])


def delays(layer: Module, ax: Axes | None = None) -> Figure:
    """Draws a histogram of the delays of a layer, in steps; 0 is now.

    Args:
        layer: a DCLS layer with delays, see ``delays()`` of the layers.
        ax: Axes to draw into; None (default) for a new figure.

    Returns:
        The figure.

    Raises:
        TypeError: ``layer`` is no DCLS layer, or it has no delays.
        ModuleNotFoundError: matplotlib is not installed.
    """
    layer = _layer(layer)
    values = _array(_ByAxis.delays(layer)).flatten()
    (panel,) = _panels(None if ax is None else [ax], 1)
    (size,) = layer.dilated_kernel_size
    panel.hist(values.numpy(), bins=[step - 0.5 for step in range(size + 1)])
    panel.set_xlabel("delay in steps")
    panel.set_ylabel("elements")
    return _figure([panel])


def density(model: Module, axes: Iterable[Axes] | None = None) -> Figure:
    """Draws for each DCLS layer how many of its elements are at each point of the grid.

    Layers with one learnable axis are one row. Of three axes the last two are shown.

    Args:
        model: any module with DCLS layers.
        axes: Axes to draw into, one for each layer, first layers first; None for a new figure.

    Returns:
        The figure.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: the model has no DCLS layer, or ``axes`` is empty.
        ModuleNotFoundError: matplotlib is not installed.
    """
    layers = dcls_layers(model, at_least_one=True)
    panels = _panels(axes, len(layers))
    for panel, (name, layer) in zip(panels, layers, strict=False):
        size = layer.dilated_kernel_size[-2:]
        rows = _array(_ByAxis.positions(layer)).flatten(1)[-2:].round()
        counts = torch.zeros(size)
        points = [row.long() + points // 2 for row, points in zip(rows, size, strict=True)]
        inside = torch.stack(
            [(p >= 0) & (p < n) for p, n in zip(points, size, strict=True)]
        ).all(0)  # fmt: skip
        counts.index_put_(tuple(p[inside] for p in points), torch.ones(()), accumulate=True)
        panel.imshow(torch.atleast_2d(counts).numpy(), cmap="magma", vmin=0)
        panel.set_title(name or type(layer).__name__)
    return _figure(panels)


def tracks(tracker: PositionTracker, name: str | None = None, ax: Axes | None = None) -> Figure:
    """Draws how the positions that a ``DCLS.PositionTracker`` kept have moved.

    One learnable axis makes lines over the steps, two or three make paths in the last two axes,
    with a dot at their ends.

    Args:
        tracker: the tracker.
        name: the layer; None (default) for the first one.
        ax: Axes to draw into; None (default) for a new figure.

    Returns:
        The figure.

    Raises:
        TypeError: ``tracker`` is no tracker.
        ValueError: it has no positions, or none of this name.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if not isinstance(tracker, PositionTracker):
        raise TypeError(f"tracker must be a DCLS.PositionTracker, got {type(tracker).__name__}")
    kept = tracker.positions()
    if not kept:
        raise ValueError("tracker must have positions, got one whose update was never called")
    name = next(iter(kept)) if name is None else name
    if name not in kept:
        raise ValueError(f"name must be one of {', '.join(kept)}, got {name!r}")
    paths = kept[name].flatten(2)
    (panel,) = _panels(None if ax is None else [ax], 1)
    if paths.shape[1] == 1:
        panel.plot(tracker.steps, paths[:, 0].numpy(), linewidth=0.8)
        panel.set_xlabel("step")
        panel.set_ylabel("position")
    else:
        y, x = paths[:, -2].numpy(), paths[:, -1].numpy()
        panel.plot(x, y, linewidth=0.8)
        panel.plot(x[-1], y[-1], ".", color="0.2", markersize=3)
        panel.invert_yaxis()
        panel.set_aspect("equal")
    panel.set_title(name)
    return _figure([panel])


def _layer(layer: object) -> _DclsModule:
    if not isinstance(layer, _DclsModule):
        raise TypeError(f"layer must be a DCLS layer, got {type(layer).__name__}")
    return layer


def _array(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32)


def _grid(size: int) -> range:
    return range(-(size // 2), size - size // 2)


def _edges(size: int) -> list[float]:
    return [point - 0.5 for point in (*_grid(size), size - size // 2)]


def _frame(panel: Any, size: tuple[int, ...]) -> None:
    """Shows the kernel, its first row at the top as in an image."""
    rows, columns = _edges(size[-2]), _edges(size[-1])
    panel.set_xlim(columns[0], columns[-1])
    panel.set_ylim(rows[-1], rows[0])
    panel.set_aspect("equal")


def _panels(axes: Iterable[Any] | None, count: int) -> list[Any]:
    """Returns the Axes to draw into, of a new figure if none are given."""
    try:
        from matplotlib.axes import Axes
        from matplotlib.figure import Figure  # not pyplot, which may want a display
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'DCLS.plot needs matplotlib. Install it with: pip install "DCLS[plot]"',
            name=error.name,
        ) from None
    if axes is None:
        columns = min(count, 4)
        rows = -(-count // columns)
        figure = Figure(figsize=(_PANEL * columns, _PANEL * rows), layout="constrained")
        return [figure.add_subplot(rows, columns, 1 + number) for number in range(count)]
    flat: Callable[[], Any] | None = getattr(axes, "ravel", None)  # an array of plt.subplots
    panels = list(axes if flat is None else flat()) if isinstance(axes, Iterable) else [axes]
    if not panels:
        raise ValueError("axes must have at least one, got none")
    for panel in panels:
        if not isinstance(panel, Axes):
            raise TypeError(f"axes must be matplotlib Axes, got {type(panel).__name__}")
    return panels


def _figure(panels: list[Any]) -> Figure:
    figure: Figure = panels[0].get_figure()
    return figure
