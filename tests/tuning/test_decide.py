"""The decision: with candidates, clocks and budgets that no machine would give."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle

import pytest

from DCLS.tuning.decide import Decision, Limits, Trial, decide


class FakeClock:
    """Time passes only where a candidate says so."""

    def __init__(self, **seconds: Sequence[float]) -> None:
        self.samples: dict[str, Iterator[float]] = {n: cycle(s) for n, s in seconds.items()}
        self.passed = 0.0
        self.taken: list[str] = []
        self.calls: list[int] = []

    def now(self) -> float:
        return self.passed

    def time(self, step: Callable[[], object], calls: int) -> float:
        name = str(step())
        self.taken.append(name)
        self.calls.append(calls)
        seconds = next(self.samples[name])
        self.passed += abs(seconds) * calls if math.isfinite(seconds) else 0
        return seconds


def run(
    clock: FakeClock,
    limits: Limits | None = None,
    wrong: str = "",
    usual: str = "conv",
    **steps: Callable[[], object],
) -> Decision:
    candidates = {name: lambda name=name: name for name in clock.samples}
    return decide(
        {**candidates, **steps},
        usual,
        clock,
        lambda got, _expected: "by 0.5" if got == wrong else "",
        lambda error: isinstance(error, MemoryError),
        limits or Limits(),
    )


@pytest.mark.parametrize(
    ("direct", "taken"), [(0.5, "direct"), (0.9, "direct"), (0.91, "conv"), (1.0, "conv")]
)
def test_another_way_must_be_clearly_faster(direct: float, taken: str) -> None:
    decision = run(FakeClock(conv=[1e-3], direct=[direct * 1e-3]))
    assert decision.taken == taken
    assert decision.trials["direct"] == Trial(direct * 1e-3)
    assert decision.complaint == ""


def test_the_fastest_of_three() -> None:
    assert run(FakeClock(conv=[3e-3], direct=[2e-3], tensor=[1e-3])).taken == "tensor"


def test_a_wrong_candidate_is_not_taken_and_not_timed() -> None:
    clock = FakeClock(conv=[1e-3], direct=[1e-6])
    decision = run(clock, wrong="direct")
    assert decision.taken == "conv"
    assert decision.complaint == "the results of direct and conv differ: by 0.5"
    assert math.isinf(decision.trials["direct"].seconds)
    assert set(clock.taken) == {"conv"}


def test_one_wrong_candidate_makes_the_others_suspect() -> None:
    clock = FakeClock(conv=[1e-3], direct=[1e-6], tensor=[1e-6])
    assert run(clock, wrong="direct").taken == "conv"


def failing(error: Exception, good_calls: int = 0, name: str = "") -> Callable[[], object]:
    calls = [0]

    def step() -> object:
        calls[0] += 1
        if calls[0] > good_calls:
            raise error
        return name

    return step


def test_no_memory_is_infinitely_slow() -> None:
    clock = FakeClock(conv=[1e-3], direct=[1e-6])
    decision = run(clock, direct=failing(MemoryError("no room\nat all")))
    assert (decision.taken, decision.complaint) == ("conv", "")
    assert decision.trials["direct"] == Trial(math.inf, "MemoryError: no room")
    decision = run(clock, conv=failing(MemoryError()))
    assert (decision.taken, decision.complaint) == ("direct", "")
    decision = run(clock, conv=failing(MemoryError()), direct=failing(MemoryError()))
    assert (decision.taken, decision.complaint) == (None, "")


def test_memory_that_runs_out_while_it_is_timed() -> None:
    clock = FakeClock(conv=[1e-3], direct=[1e-6])
    decision = run(clock, direct=failing(MemoryError(), 3, "direct"))
    assert decision.taken == "conv"
    assert decision.trials["direct"] == Trial(math.inf, "MemoryError")


def test_a_candidate_that_fails_is_reported() -> None:
    decision = run(FakeClock(conv=[1.0], direct=[0.1]), direct=failing(RuntimeError("launch")))
    assert decision.taken == "conv"
    assert decision.complaint == "direct failed: RuntimeError: launch"


@pytest.mark.parametrize("jump", [1e9, -1e9, 0.0, math.nan, math.inf, -math.inf])
def test_a_clock_that_jumps(jump: float) -> None:
    """Twice in seven samples: the median holds, or what cannot be is dropped."""
    limits = Limits(seconds=math.inf, warmups=0)
    jumps = [jump, 2e-3, 2e-3, jump, 2e-3, 2e-3, 2e-3]
    for conv, direct in ((jumps, [1e-3]), ([4e-3], jumps)):
        assert run(FakeClock(conv=conv, direct=direct), limits).taken == "direct"
    for conv, direct in ((jumps, [4e-3]), ([2e-3], jumps)):
        assert run(FakeClock(conv=conv, direct=direct), limits).taken == "conv"


@pytest.mark.parametrize("stopped", [0.0, -1.0, math.nan])
def test_a_clock_that_stands_still_decides_nothing(stopped: float) -> None:
    decision = run(FakeClock(conv=[stopped], direct=[1e-3]))
    assert decision.taken is None
    assert math.isnan(decision.trials["conv"].seconds)


def test_the_budget_of_time_ends_the_samples() -> None:
    clock = FakeClock(conv=[10.0], direct=[1.0])
    decision = run(clock, Limits(seconds=2.0, rounds=100))
    assert decision.taken == "direct"
    assert len(clock.taken) <= 4  # each was taken once, and a warm-up
    assert set(clock.taken) == {"conv", "direct"}


def test_a_clock_that_goes_back_ends_after_the_rounds() -> None:
    clock = FakeClock(conv=[2e-3], direct=[1e-3])
    clock.now = lambda: -float(len(clock.taken))  # type: ignore[method-assign]
    assert run(clock, Limits(rounds=5, warmups=1)).taken == "direct"
    assert clock.taken.count("conv") == clock.taken.count("direct") == 6


def test_short_steps_are_called_several_times_a_sample() -> None:
    clock = FakeClock(conv=[1e-3], direct=[1e-6])
    run(clock, Limits(sample=2e-3, calls=50))
    assert {clock.calls[i] for i, n in enumerate(clock.taken) if n == "conv"} == {1, 2}
    assert {clock.calls[i] for i, n in enumerate(clock.taken) if n == "direct"} == {1, 50}


def test_candidates_take_turns() -> None:
    clock = FakeClock(conv=[2.0], direct=[1.0])
    run(clock, Limits(seconds=math.inf, rounds=4, warmups=0))
    assert clock.taken == ["conv", "direct", "direct", "conv"] * 2


def test_the_usual_one_alone() -> None:
    assert run(FakeClock(conv=[1.0])).taken == "conv"
