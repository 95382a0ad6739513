"""What was measured in this process, and whether anything may be: asked for at each call."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from DCLS.method import Choice

if TYPE_CHECKING:
    from DCLS.tuning.problem import Geometry, Problem

#: ``on`` measures and keeps files, ``memory`` measures and keeps none, ``off`` does not measure.
MODES: Final = ("on", "memory", "off")


class Asked(NamedTuple):
    """What a layer asked in a forward pass."""

    layer: Any
    problem: Problem
    batch: int
    #: ``abs(SIG)`` of the elements where the host knows it.
    width: float | None
    #: What it took without a measurement.
    static: Choice
    #: Why a measurement would not hold for it, else "".
    why_not: str


#: Measured choices.
exact: dict[Problem, Choice] = {}

#: The latest of them for a layer whatever the size of its input: for graphs, which serve several.
latest: dict[Geometry, Choice] = {}

#: Problems that could not be measured, and why not.
undecided: dict[Problem, str] = {}

#: Where ``DCLS.tune`` collects the layers that ask, with what they ask; None while it does not run.
recorder: list[Asked] | None = None

#: Held while something is measured: two at once would disturb each other.
lock = threading.Lock()

#: Held by ``DCLS.tune``: two calls at once would record each other's layers.
tune_lock = threading.Lock()

_mode: str | None = None


def _new_locks() -> None:
    global lock, tune_lock
    lock, tune_lock = threading.Lock(), threading.Lock()


# A fork in the middle of a measurement would leave them locked in the child.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_locks)


def get_mode() -> str:
    """Returns what ``set_tuning`` set, else ``DCLS_TUNING``, else ``on``.

    Raises:
        ValueError: the environment variable has another value.
    """
    global _mode
    mode = _mode  # another thread may set it anew
    if mode is not None:
        return mode
    value = os.environ.get("DCLS_TUNING") or "on"
    if value not in MODES:
        raise ValueError(
            f"environment variable DCLS_TUNING must be one of {', '.join(MODES)}, got {value!r}"
        )
    _mode = value
    return value


def set_mode(mode: str | None) -> None:
    """Sets it for this process, to one of ``MODES``; None to ask the environment again."""
    global _mode
    _mode = mode


def keep(problem: Problem, choice: Choice) -> None:
    """Remembers a choice until the process ends."""
    exact[problem] = choice
    latest[problem.geometry] = choice


def measured_before(geometry: Geometry) -> Choice | None:
    """Returns the latest choice for a layer, whatever the size of its input."""
    if torch.compiler.is_compiling():
        # One by one: the compiler takes them as constants. Newer torch does so with symbols, too.
        method = _method_of_a_graph(*[_constant(field) for field in geometry])
        return Choice(method, "the layer was measured before", "measured here") if method else None
    # Nothing is measured before the mode is known.
    return None if _mode == "off" else latest.get(geometry)


def _constant(field: Any) -> Any:
    """Returns a field without symbols. For all compilers the length of a range is a constant."""
    if isinstance(field, tuple):
        return tuple([_constant(part) for part in field])
    return len(range(field)) if type(field) is int else field


def _method_of_a_graph(*fields: Any) -> str:
    """The same as a word, "" for none."""
    # A tuple with names is equal to one without.
    choice = None if _mode == "off" else latest.get(fields)  # type: ignore[call-overload]
    return "" if choice is None else choice.method


# Torch's compiler calls it and does not look into it: a graph would be compiled anew whenever a
# layer anywhere is measured. ``torch.compiler.assume_constant_result`` does this, and imports the
# compiler.
_method_of_a_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]


def forget() -> None:
    """Forgets all choices."""
    exact.clear()
    latest.clear()
    undecided.clear()
