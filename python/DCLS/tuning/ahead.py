"""``DCLS.tune``: measures for all layers of a model, ahead of training."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import nn

from DCLS import _checks
from DCLS.method import Choice
from DCLS.nn.choosing import _ChoosesMethod
from DCLS.tuning import facts, lookup, state
from DCLS.tuning.decide import LIMITS, Limits
from DCLS.tuning.preserving import unchanged
from DCLS.tuning.problem import Problem
from DCLS.tuning.report import Progress, Report, Row
from DCLS.tuning.state import Asked

logger: Final = logging.getLogger("DCLS")


Resolved = tuple[Choice | None, str]


def tune(
    model: nn.Module, example_input: Any, again: bool, seconds: float, progress: bool | None
) -> Report:
    """See ``DCLS.tune``."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    _checks.flag("again", again)
    if progress is not None:
        _checks.flag("progress", progress)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"seconds must be a number, got {type(seconds).__name__}")
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds!r}")
    if _is_shape(example_input):
        raise TypeError(
            "example_input must be a Tensor, or the model's arguments in a tuple, list or dict, "
            f"got the shape {tuple(example_input)}: make a tensor of it, as with torch.randn"
        )
    model = _unwrapped(model)
    limits = LIMITS._replace(seconds=float(seconds))
    with state.tune_lock:
        if facts.in_process_group():
            asked, found = _of_the_first_process(model, example_input, again, limits, progress)
        else:
            asked = record(model, example_input)
            found = _measure(asked, again, limits, progress)
    return Report(list(_rows(model, asked, found)))


def _is_shape(example: object) -> bool:
    several = isinstance(example, (tuple, list)) and len(example) > 1
    return several and all(type(length) is int for length in example)  # type: ignore[attr-defined]


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module that a wrapper holds.

    DDP counts a forward pass without a backward pass, and a compiled module would be compiled
    for this one.
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def record(model: nn.Module, example_input: Any) -> list[Asked]:
    """Runs the model once; returns what its layers asked, each question once."""
    recorder: list[Asked] = []
    state.recorder = recorder
    try:
        with unchanged(model), _eagerly():
            if isinstance(example_input, dict):
                model(**example_input)
            elif isinstance(example_input, (tuple, list)):
                model(*example_input)
            else:
                model(example_input)
    finally:
        state.recorder = None
    own = set(map(id, model.modules()))
    once = {(id(asked.layer), asked.problem): asked for asked in recorder if id(asked.layer) in own}
    return list(once.values())


@contextlib.contextmanager
def _eagerly() -> Iterator[None]:
    """Compiled parts run as they are written. Before torch 2.6 they run compiled."""
    if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


def _measure(
    asked: Sequence[Asked], again: bool, limits: Limits, progress: bool | None
) -> dict[Problem, Resolved]:
    """Measures each problem once."""
    if state.get_mode() == "off":
        if asked:
            logger.warning("DCLS.tune does not measure: DCLS_TUNING is off")
        return {}
    problems = {one.problem: one for one in asked if not one.why_not}
    bar = Progress(len(problems), progress)
    found: dict[Problem, Resolved] = {}
    for problem, one in problems.items():
        found[problem] = lookup.resolve(problem, one.batch, one.width, again=again, limits=limits)
        bar.step()
    return found


def _of_the_first_process(
    model: nn.Module, example_input: Any, again: bool, limits: Limits, progress: bool | None
) -> tuple[list[Asked], dict[Problem, Resolved]]:
    """Measures in the first process; all take what it found.

    There is one broadcast, and each process comes to it whatever fails, so that none waits for
    another that has left.
    """
    distributed = torch.distributed
    first = distributed.get_rank() == 0
    asked: list[Asked] = []
    found: dict[Problem, Resolved] = {}
    error: Exception | None = None
    try:
        asked = record(model, example_input)
        if first:
            found = _measure(asked, again, limits, progress)
    except Exception as caught:
        error = caught
    box: list[Any] = [_portable(found) if error is None else f"{type(error).__name__}: {error}"]
    distributed.broadcast_object_list(box, src=0)
    if error is not None:
        raise error
    if isinstance(box[0], str):
        raise RuntimeError(f"the first process could not measure: {box[0]}")
    if first:
        return asked, found
    enabled = state.get_mode() != "off"
    for problem in {one.problem for one in asked} if enabled else ():
        choice, reason = box[0].get(
            _without_index(problem), (None, "the first process did not meet such a call")
        )
        if choice is not None:
            choice = choice._replace(source="rank 0")
            state.keep(problem, choice)
        found[problem] = choice, reason
    return asked, found


def _without_index(problem: Problem) -> Problem:
    return problem._replace(geometry=problem.geometry._replace(device_index=None))


def _portable(found: dict[Problem, Resolved]) -> dict[Problem, Resolved]:
    """The same for any GPU: each process has its own."""
    return {_without_index(problem): resolved for problem, resolved in found.items()}


def _rows(
    model: nn.Module, asked: Sequence[Asked], found: dict[Problem, Resolved]
) -> Iterator[Row]:
    """Yields a row for each layer and question, in the order of the model."""
    for name, layer in model.named_modules():
        if not isinstance(layer, _ChoosesMethod):
            continue
        kind = type(layer).__name__
        own = [one for one in asked if one.layer is layer]
        if not own:
            yield Row(name, kind, "", "", "", *_unasked(layer))
        for one in own:
            geometry = one.problem.geometry
            choice, reason = found.get(one.problem, (None, "DCLS_TUNING is off"))
            if one.why_not:
                choice, reason = None, one.why_not
            if choice is None:
                choice = one.static._replace(reason=f"{one.static.reason}; not measured: {reason}")
            shape = (one.batch, geometry.in_channels, *one.problem.spatial)
            yield Row(
                name,
                kind,
                "x".join(map(str, shape)),
                str(geometry.dtype).removeprefix("torch."),
                "training" if geometry.grad_input or geometry.grad_kernel else "inference",
                choice.method,
                choice.source,
                choice.reason,
            )


def _unasked(layer: Any) -> tuple[str, str, str]:
    """Method, source and reason of a layer that has asked nothing."""
    choice = layer._only_choice()
    if choice is not None:
        return choice.method, choice.source, choice.reason
    if layer.method != "auto":
        return layer.method, "asked", f"the layer's method is {layer.method!r}"
    if not layer._is_plain():
        return "", "default", "a DCK of another class builds its kernel"
    return "", "default", "the forward pass did not call it with a tensor to measure"
