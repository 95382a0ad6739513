"""Schedules of widths."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor
from torch.nn import Module

from DCLS._checks import choice, integer
from DCLS._spec import SIGMA_VERSIONS
from DCLS.nn.editing import edit
from DCLS.toolkit._layers import called, dcls_layers
from DCLS.toolkit.groups import not_negative

__all__ = ["WidthSchedule"]

_KINDS = ("exponential", "linear")


class WidthSchedule:
    """Sets the widths of all DCLS layers of a model, from wide to narrow.

    Creating it sets ``SIG`` to ``start``. Each ``step()`` goes on towards ``end``, which the
    ``steps``-th one reaches; later ones keep it. Values are those of ``SIG``: the width of an
    element is ``|SIG|`` + 0.27 for ``gauss`` and ``|SIG|`` + 1 for ``max``, and ``|SIG|`` + 1 for
    ``gauss`` in ``Dcls2_1d``. The layer's ``known_width`` follows on the host, so that a layer on a
    GPU, too, chooses its method by the present width. Between two steps an optimizer may change
    ``SIG`` if it requires a gradient; the next step overwrites that. Freeze ``SIG`` to have the
    schedule alone, as the delays papers do.

    Layers of versions without widths are left alone. ``SIG`` is edited in place, as
    ``clamp_parameters`` edits ``P``.

    Attributes:
        start: first value.
        end: last value.
        steps: number of steps from the one to the other.
        kind: ``exponential``, by the same factor each step, or ``linear``.
        last_step: number of steps done.
        value: the present value of ``SIG``.

    Example:
        >>> schedule = DCLS.WidthSchedule(model, start=12, steps=epochs // 4)
        >>> for epoch in range(epochs):
        ...     train(model)
        ...     schedule.step()
    """

    def __init__(
        self,
        model: Module,
        start: float,
        end: float = 0.23,
        steps: int | None = None,
        kind: Literal["exponential", "linear"] = "exponential",
    ) -> None:
        """Creates the schedule and sets the widths to ``start``.

        Args:
            model: any module with a layer that has widths.
            start: first value of ``SIG``, for example ``S // 2`` as the delays papers have it.
            end: last value of ``SIG``; default 0.23.
            steps: number of steps from ``start`` to ``end``. It must be given.
            kind: ``exponential`` (default) or ``linear``.

        Raises:
            TypeError: an argument has a wrong type, or ``steps`` is not given.
            ValueError: an argument is out of its range, or no layer has widths. ``exponential``
                takes no value 0.
            RuntimeError: the ``SIG`` of a layer cannot be edited, see ``clamp_parameters``.
        """
        self.start, self.end = not_negative("start", start), not_negative("end", end)
        self.steps = integer("steps", steps, 1)
        self.kind = choice("kind", kind, _KINDS)
        self._check_kind()
        self.last_step = 0
        self._layers = [
            (name, layer)
            for name, layer in dcls_layers(model, at_least_one=True)
            if layer.version in SIGMA_VERSIONS and layer.SIG is not None
        ]
        if not self._layers:
            raise ValueError(
                "model must have a layer with widths, of a version out of "
                f"{', '.join(sorted(SIGMA_VERSIONS))}, got none"
            )
        self._set()

    @property
    def value(self) -> float:
        """The present value of ``SIG``."""
        if self.last_step >= self.steps:
            return self.end
        part = self.last_step / self.steps
        if self.kind == "linear":
            return self.start + (self.end - self.start) * part
        return float(self.start * (self.end / self.start) ** part)

    def step(self) -> None:
        """Goes one step on, and sets the widths."""
        self.last_step += 1
        self._set()

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint needs: ``start``, ``end``, ``steps``, ``kind``, ``last_step``.

        The widths themselves are in the model's own.
        """
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from where another schedule was, and sets the widths.

        Args:
            state_dict: what ``state_dict()`` of the other one returned.

        Raises:
            TypeError: ``state_dict`` is no dict, or a value has a wrong type.
            ValueError: it has other keys, or a value is out of its range.
        """
        if not isinstance(state_dict, dict):
            raise TypeError(f"state_dict must be a dict, got {type(state_dict).__name__}")
        if set(state_dict) != set(_STATE):
            raise ValueError(f"state_dict must have the keys {_STATE}, got {list(state_dict)}")
        before = self.state_dict()
        try:
            for name in ("start", "end"):
                setattr(self, name, not_negative(name, state_dict[name]))
            self.steps = integer("steps", state_dict["steps"], 1)
            self.kind = choice("kind", state_dict["kind"], _KINDS)
            self.last_step = integer("last_step", state_dict["last_step"], 0)
            self._check_kind()
        except (TypeError, ValueError):
            vars(self).update(before)
            raise
        self._set()

    def _check_kind(self) -> None:
        if self.kind == "exponential" and 0 in (self.start, self.end):
            raise ValueError(
                "an exponential schedule must start and end above 0, got "
                f"start={self.start}, end={self.end}"
            )

    def _set(self) -> None:
        value = self.value

        def fill(SIG: Tensor) -> None:
            SIG.fill_(value)

        for name, layer in self._layers:
            try:
                edit(layer, "SIG", fill, exact=True)
            except RuntimeError as error:
                raise RuntimeError(f"{called(name)}.{error}") from error
            layer.known_width = value


_STATE = ("start", "end", "steps", "kind", "last_step")
