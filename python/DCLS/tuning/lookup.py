"""The measured choice for a problem: from memory, from a file, or measured now."""

from __future__ import annotations

import functools
import logging
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from DCLS.method import METHODS, Choice
from DCLS.tuning import cache, facts, measure, state
from DCLS.tuning.decide import LIMITS, Decision, Limits
from DCLS.tuning.problem import Geometry, Problem, as_json

logger: Final = logging.getLogger("DCLS")

#: A layer whose inputs have ever new sizes is measured for so many; then the latest choice serves.
SIZES_OF_A_LAYER: Final = 16

#: So many measurements start by themselves in a process.
MEASUREMENTS: Final = 256

#: How often for each layer, and under None for all: other threads may add while one asks, so that
#: a sum would go through what changes.
_measured: Counter[Geometry | None] = Counter()
_has_warned = False


def find(
    problem: Problem, batch: int, width: float | None, tensors: Sequence[Tensor]
) -> tuple[Choice | None, str]:
    """Returns what was measured for a layer in a forward pass, else why nothing was.

    A GPU is measured now if nothing forbids it. A CPU is not: there only ``DCLS.tune`` measures.

    Args:
        problem: the layer and its input.
        batch: images of the input.
        width: ``abs(SIG)`` of the elements where the host knows it.
        tensors: the input and the parameters.
    """
    if state.get_mode() == "off":
        return None, "DCLS_TUNING is off"
    choice = state.exact.get(problem)
    if choice is not None:
        return choice, ""
    if problem.geometry.device_type != "cuda":
        return None, "DCLS.tune has not seen such a call"
    if reason := facts.reason_not_to_measure(tensors):
        return state.measured_before(problem.geometry), reason
    if problem not in state.undecided and _is_over_the_cap(problem.geometry):
        return state.measured_before(problem.geometry), "too many sizes of inputs"
    return resolve(problem, batch, width)


def _is_over_the_cap(geometry: Geometry) -> bool:
    return _measured[geometry] >= SIZES_OF_A_LAYER or _measured[None] >= MEASUREMENTS


def resolve(
    problem: Problem,
    batch: int,
    width: float | None,
    *,
    again: bool = False,
    limits: Limits = LIMITS,
) -> tuple[Choice | None, str]:
    """Returns the choice from memory, from a file or from a measurement, else why there is none.

    Args:
        problem: the layer and its input.
        batch: images of the input.
        width: ``abs(SIG)`` of the elements where the host knows it.
        again: whether to measure even if that was done before.
        limits: the budget of a measurement.
    """
    with state.lock:
        if not again:
            if (choice := state.exact.get(problem)) is not None:
                return choice, ""
            if problem in state.undecided:
                return None, state.undecided[problem]
        files = _files(cache.folder() if state.get_mode() == "on" else None)
        key = full_key(problem)
        if not again and (found := files.load(key)) and found[0] in METHODS:
            choice = Choice(found[0], _in_words(found[1], key), "cache")
        else:
            _measured[problem.geometry] += 1
            _measured[None] += 1
            decision = _measure(problem, batch, width, limits)
            if decision.complaint:
                _complain(decision.complaint, key)
            if decision.taken is None:
                failures = [trial.failure for trial in decision.trials.values() if trial.failure]
                reason = "; ".join(failures) or "there is no room or no time for it"
                state.undecided[problem] = reason
                return None, reason
            seconds = {name: trial.seconds for name, trial in decision.trials.items()}
            reason = decision.complaint or _in_words(seconds, key)
            choice = Choice(decision.taken, reason, "measured here")
            if not decision.complaint:  # the next version may have mended it
                files.store(key, decision.taken, seconds)
        logger.info("%s: %s, %s", choice.source, choice.method, choice.reason)
        state.undecided.pop(problem, None)
        state.keep(problem, choice)
        return choice, ""


def _measure(problem: Problem, batch: int, width: float | None, limits: Limits) -> Decision:
    try:
        return measure.measure(problem, batch, width, limits)
    except Exception as error:
        # The forward pass goes on. If the device is lost, its own call says so.
        logger.warning("a measurement failed: %s", error)
        return Decision(None, {})


def full_key(problem: Problem) -> dict[str, Any]:
    """Returns all that a choice depends on, as JSON can hold it."""
    return {**facts.machine(problem.geometry.device), **as_json(problem)}


@functools.cache
def _files(directory: Path | None) -> cache.Cache:
    """The same object each time: it knows what it has said."""
    return cache.Cache(directory)


def _in_words(seconds: Mapping[str, float], key: Mapping[str, Any]) -> str:
    def shown(value: float) -> str:
        return f"{value * 1e3:.3g} ms" if math.isfinite(value) else "did not run"

    times = ", ".join(f"{name} {shown(seconds[name])}" for name in sorted(seconds, reverse=True))
    return f"{times} on {key['device']}"


def _complain(complaint: str, key: Mapping[str, Any]) -> None:
    """Warns the first time, and logs the others."""
    global _has_warned
    text = (
        f"DCLS takes torch's convolution: {complaint}. Please report this message and the file of "
        f"'dcls check --output FILE'. The problem: {dict(key)}"
    )
    if _has_warned:
        logger.warning("%s", text)
        return
    _has_warned = True
    warnings.warn(text, RuntimeWarning, stacklevel=2)


def forget(files: bool = False) -> int:
    """Forgets all choices of this process; with ``files`` deletes those on disk, too.

    Returns:
        How many files were deleted.
    """
    state.forget()
    _measured.clear()
    return _files(cache.folder()).clear() if files else 0
