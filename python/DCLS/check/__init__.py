"""``dcls check``: whether DCLS computes right on this machine, and how fast its layers are.

``run`` gives the results, ``render`` shows them. It takes less than a minute.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import torch

from DCLS import info
from DCLS.check import steps, values
from DCLS.tuning.report import table

#: Seconds after which no new case starts.
SECONDS: Final = 45.0


class Result(NamedTuple):
    """What became of one case."""

    #: ``values``, ``determinism``, ``graph`` or ``time``.
    part: str
    #: The operator or the layer.
    name: str
    what: str
    dtype: str
    #: Whether it is as it should be; None where there is nothing to judge, or no time was left.
    good: bool | None
    #: The numbers, in words.
    found: str
    #: The relative error, of values.
    error: float | None = None


def _values(device: torch.device, operators: Any) -> Iterator[Callable[[], list[Result]]]:
    for case in values.cases(operators):

        def run(case: values.Case = case) -> list[Result]:
            allowed = case.allowed(device)
            dtype = str(case.dtype).removeprefix("torch.")
            try:
                error = case.error(device)
                found = f"error {error:.1e}, allowed {allowed:.1e}"
            except Exception as failure:
                error, found = math.inf, f"{type(failure).__name__}: {failure}"
            good = error <= allowed
            shown = error if math.isfinite(error) else None
            return [Result("values", case.operator, case.what, dtype, good, found, shown)]

        yield run


def _others(device: torch.device) -> Iterator[Callable[[], list[Result]]]:
    for part, cases in (
        ("determinism", steps.determinism(device)),
        ("graph", steps.graphs(device)),
        ("time", steps.times(device)),
    ):
        for case in cases:

            def run(part: str = part, case: steps.Step = case) -> list[Result]:
                try:
                    good, found = case.run()
                except Exception as failure:
                    good, found = False, f"{type(failure).__name__}: {failure}"
                return [Result(part, case.name, case.what, case.dtype, good, found)]

            yield run


def run(
    device: torch.device,
    operators: Any = values.OPERATORS,
    seconds: float = SECONDS,
    now: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Runs all cases.

    Args:
        device: where.
        operators: what is checked; they are given so that tests can give wrong ones.
        seconds: no new case starts after so many.
        now: the clock for them.

    Returns:
        ``verdict`` (``pass``, ``fail``, or ``incomplete`` if the time was over), ``device``,
        ``seconds``, ``results`` (a dict of a ``Result`` for each case) and ``info`` (as
        ``DCLS.info.collect`` gives it). JSON can hold it.
    """
    started = now()
    results: list[Result] = []
    left = 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small cases; those of determinism take all
    try:
        for part, cases in (("values", _values(device, operators)), ("", _others(device))):
            if part == "":
                torch.set_num_threads(threads)
            for case in cases:
                if now() - started > seconds:
                    left += 1
                else:
                    results += case()
    finally:
        torch.set_num_threads(threads)
    bad = any(result.good is False for result in results)
    return {
        "verdict": "fail" if bad else "incomplete" if left else "pass",
        "device": _name(device),
        "seconds": round(now() - started, 1),
        "left out": left,
        "results": [result._asdict() for result in results],
        "info": info.collect(),
    }


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def render(checked: dict[str, Any]) -> str:
    """Lays out what ``run`` returned: a table, what is wrong, and the verdict."""
    results = [Result(**result) for result in checked["results"]]
    rows: list[tuple[str, ...]] = []

    def by_dtype(result: Result) -> tuple[str, str, str]:
        return result.part, result.name, result.dtype

    of_values = [result for result in results if result.part == "values"]
    for (part, name, dtype), group in itertools.groupby(sorted(of_values, key=by_dtype), by_dtype):
        some = list(group)
        worst = max(some, key=lambda result: math.inf if result.error is None else result.error)
        what = f"{len(some)} cases"
        good = all(result.good for result in some)
        rows.append((part, name, what, dtype, _mark(good), worst.found))
    rows += [
        (result.part, result.name, result.what, result.dtype, _mark(result.good), result.found)
        for result in results
        if result.part != "values"
    ]
    lines = [table(("part", "name", "what", "dtype", "", "found"), rows), ""]
    bad = [result for result in results if result.good is False]
    lines += [f"wrong: {' '.join(bad_one[1:4])}: {bad_one.found}" for bad_one in bad]
    count = sum(result.good is not None for result in results)
    end = {
        "pass": f"PASS: {count} checks on {checked['device']}",
        "fail": f"FAIL: {len(bad)} of {count} checks on {checked['device']}; please report them "
        "with the file of 'dcls check --output FILE'",
        "incomplete": f"INCOMPLETE: {count} checks passed on {checked['device']}, and "
        f"{checked['left out']} were left out after {checked['seconds']} s",
    }
    return "\n".join([*lines, end[checked["verdict"]]])


def _mark(good: bool | None) -> str:
    return {True: "ok", False: "WRONG", None: "-"}[good]
