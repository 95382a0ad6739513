"""Which of several ways is fastest, from measurements: no torch, no device, no files.

The candidates, the clock and the comparison of results are given. So tests can give ones that are
wrong, that run out of memory, or that jump.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

#: Runs a candidate once and returns its results.
Step = Callable[[], Any]


class Clock(Protocol):
    """What measures time."""

    def now(self) -> float:
        """Returns the seconds since any fixed moment: for the budget."""
        ...

    def time(self, step: Step, calls: int) -> float:
        """Returns the seconds that one call takes, in the mean over some calls in a row."""
        ...


class Limits(NamedTuple):
    """How much a decision may cost, and how sure it must be."""

    #: Seconds for all candidates together. The first call of each and one sample are always taken.
    seconds: float = 1.0
    #: Samples of each candidate at most. The median of five holds if the clock jumps twice.
    rounds: int = 7
    #: Calls before the first sample, behind the one whose results are compared.
    warmups: int = 2
    #: Seconds that a sample should take, so that the start of a kernel does not weigh.
    sample: float = 0.002
    #: Calls of a sample at most.
    calls: int = 50
    #: Another way than the usual one must take this part of the time less.
    advantage: float = 0.1


LIMITS: Final = Limits()


class Trial(NamedTuple):
    """What became of one candidate."""

    #: Median seconds of a call; infinite if it failed, NaN if no sample was usable.
    seconds: float
    #: Why it failed, else "".
    failure: str = ""


class Decision(NamedTuple):
    """What the measurements say."""

    #: The name of the candidate to take; None if they say nothing.
    taken: str | None
    trials: dict[str, Trial]
    #: What a user should report, else "": results that differ, or a candidate that failed.
    complaint: str = ""


def decide(
    candidates: Mapping[str, Step],
    usual: str,
    clock: Clock,
    differs: Callable[[Any, Any], str],
    is_out_of_memory: Callable[[Exception], bool],
    limits: Limits = LIMITS,
) -> Decision:
    """Runs all candidates and decides.

    The usual one is taken if another gives other results, and if none is clearly faster. One that
    runs out of memory counts as infinitely slow.

    Args:
        candidates: by name; at least the usual one.
        usual: the name of the candidate that is right by definition.
        clock: what measures.
        differs: compares the results of a candidate with those of the usual one; returns how they
            differ, or "".
        is_out_of_memory: says whether an error means that.
        limits: the budget.

    Returns:
        The decision. None is taken if no candidate could be run or timed.
    """
    trials: dict[str, Trial] = {}
    complaint = ""
    names = [usual, *(name for name in candidates if name != usual)]
    expected: Any = None
    started = clock.now()
    for name in names:
        try:
            results = candidates[name]()
        except Exception as error:
            trials[name] = Trial(math.inf, _describe(error))
            if name != usual and not is_out_of_memory(error):
                complaint = f"{name} failed: {trials[name].failure}"
            continue
        if name == usual:
            expected = results
        elif expected is not None and (difference := differs(results, expected)):
            trials[name] = Trial(math.inf, f"its results differ: {difference}")
            complaint = f"the results of {name} and {usual} differ: {difference}"
    expected = results = None  # their memory is the candidates' now
    runners = {name: candidates[name] for name in names if name not in trials}
    trials |= _time(runners, clock, started, limits)
    return Decision(_fastest(trials, usual, limits, bool(complaint)), trials, complaint)


def _describe(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _time(
    runners: Mapping[str, Step], clock: Clock, started: float, limits: Limits
) -> dict[str, Trial]:
    """Times the candidates in turn, A B B A ..., until the rounds or the seconds are over."""
    samples: dict[str, list[float]] = {name: [] for name in runners}
    calls = dict.fromkeys(runners, 1)
    failures: dict[str, str] = {}

    def is_over() -> bool:
        return clock.now() - started > limits.seconds

    def take(name: str) -> float:
        """A sample; 0 if the candidate fails or the clock jumps."""
        try:
            seconds = clock.time(runners[name], calls[name])
        except Exception as error:
            failures[name] = _describe(error)
            return 0.0
        return seconds if math.isfinite(seconds) and seconds > 0 else 0.0

    for name in runners:
        for _ in range(limits.warmups):
            if name in failures or is_over():
                break
            if seconds := take(name):
                calls[name] = max(1, min(limits.calls, math.ceil(limits.sample / seconds)))
    for turn in range(limits.rounds):
        for name in list(runners) if turn % 2 == 0 else reversed(list(runners)):
            if name in failures or (turn > 0 and is_over() and samples[name]):
                continue
            if seconds := take(name):
                samples[name].append(seconds)
    return {
        name: Trial(math.inf, failures[name])
        if name in failures
        else Trial(statistics.median(taken) if taken else math.nan)
        for name, taken in samples.items()
    }


def _fastest(
    trials: Mapping[str, Trial], usual: str, limits: Limits, distrusted: bool
) -> str | None:
    if distrusted:
        return usual
    if any(math.isnan(trial.seconds) for trial in trials.values()):
        return None
    others: Sequence[str] = [name for name in trials if name != usual]
    best = min(others, key=lambda name: trials[name].seconds, default=usual)
    if math.isinf(trials[best].seconds):
        return None if math.isinf(trials[usual].seconds) else usual
    least = trials[usual].seconds * (1 - limits.advantage)
    return best if trials[best].seconds <= least else usual
