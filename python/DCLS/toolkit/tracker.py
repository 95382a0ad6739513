"""How positions moved during a training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from DCLS._checks import integer
from DCLS.nn.base import _DclsModule
from DCLS.toolkit._layers import dcls_layers

__all__ = ["PositionTracker"]


class PositionTracker:
    """Keeps copies of positions that a training loop takes from time to time.

    Each call of ``update()`` copies the positions of some kernels of each layer to the CPU, by axis
    as ``layer.positions()`` has them. ``DCLS.plot.tracks`` draws them. Positions that several
    layers share are kept once, under the name of the first.

    Attributes:
        kernels: most kernels of a layer that are kept, evenly chosen; None for all.
        steps: the step of each update.

    Example:
        >>> tracker = DCLS.PositionTracker(model)
        >>> for epoch in range(epochs):
        ...     train(model)
        ...     tracker.update(epoch)
        >>> figure = DCLS.plot.tracks(tracker)
    """

    def __init__(self, model: Module, kernels: int | None = 8) -> None:
        """Creates a tracker that has no positions yet.

        Args:
            model: any module with DCLS layers.
            kernels: most kernels of a layer to keep; None for all. Default 8.

        Raises:
            TypeError: an argument has a wrong type.
            ValueError: the model has no DCLS layer, or ``kernels`` is not positive.
        """
        self.kernels = None if kernels is None else integer("kernels", kernels, 1)
        self.steps: list[int] = []
        self._layers = dcls_layers(model, at_least_one=True)
        self._kept: dict[str, list[Tensor]] = {}

    def update(self, step: int | None = None) -> None:
        """Keeps the present positions.

        Args:
            step: the step or epoch that they belong to, more than those before; None (default) for
                the one after the last.

        Raises:
            TypeError: ``step`` is no int.
            ValueError: ``step`` is negative, or not more than the last one.
        """
        after = self.steps[-1] + 1 if self.steps else 0
        number = after if step is None else integer("step", step, 0)
        if number < after:
            raise ValueError(f"step must be more than the last one, {after - 1}, got {number}")
        for name, layer in self._own_layers():
            rows = layer.positions().detach().flatten(1, -2)
            if self.kernels is not None and rows.shape[1] > self.kernels:
                rows = rows[:, torch.linspace(0, rows.shape[1] - 1, self.kernels).long()]
            # A copy: on the CPU the rows may be the parameter itself.
            self._kept.setdefault(name, []).append(rows.to("cpu", torch.float32, copy=True))
        self.steps.append(number)

    def _own_layers(self) -> Iterator[tuple[str, _DclsModule]]:
        """Yields the layers, the first one of those that share their positions."""
        seen: list[Tensor] = []
        for name, layer in self._layers:
            if not any(layer.P is P for P in seen):
                seen.append(layer.P)
                yield name, layer

    def positions(self) -> dict[str, Tensor]:
        """Returns what was kept: for each layer ``(updates, axes, kernels, elements)``, float32."""
        return {name: torch.stack(kept) for name, kept in self._kept.items()}

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint needs."""
        return {"steps": list(self.steps), "positions": self.positions()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from what another tracker of such a model had kept.

        Args:
            state_dict: what ``state_dict()`` of the other one returned.

        Raises:
            TypeError: ``state_dict`` is no dict.
            ValueError: it has other keys, other layers than the model, or positions of other
                numbers of updates, kernels or elements.
        """
        if not isinstance(state_dict, dict):
            raise TypeError(f"state_dict must be a dict, got {type(state_dict).__name__}")
        if set(state_dict) != {"steps", "positions"}:
            raise ValueError(
                f"state_dict must have the keys steps and positions, got {list(state_dict)}"
            )
        steps, positions = list(state_dict["steps"]), state_dict["positions"]
        unknown = set(positions) - {name for name, _ in self._layers}
        if unknown:
            raise ValueError(f"model has no DCLS layer {', '.join(sorted(unknown))}")
        if any(len(kept) != len(steps) for kept in positions.values()):
            raise ValueError(f"state_dict must have positions of all its {len(steps)} steps")
        for name, layer in self._own_layers() if steps else ():
            if name not in positions:
                raise ValueError(f"state_dict must have the positions of the layer {name!r}")
            axes, *lead, elements = layer.P.shape
            rows = min(math.prod(lead), self.kernels or math.prod(lead))
            shape = tuple(positions[name].shape[1:])
            if shape != (axes, rows, elements):
                raise ValueError(
                    f"positions of the layer {name!r} must have the shape {(axes, rows, elements)} "
                    f"of each step, that is (axes, kernels, elements), got {shape}"
                )
        self.steps = steps
        self._kept = {name: list(kept.clone().unbind()) for name, kept in positions.items()}
