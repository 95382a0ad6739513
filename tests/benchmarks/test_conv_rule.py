"""``bench_rule.py``: its grid, and what it calls a wrong choice."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmarking import load, run

from DCLS import Dcls1d
from DCLS.method import Choice


@pytest.fixture
def bench_rule(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("bench_rule", monkeypatch)


def test_wrong_choices_are_found(
    bench_rule: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    harness = load("harness", monkeypatch)
    rounds: list[int] = []

    def timed(steps: Any, options: Any) -> Any:
        """Inference is quicker directly, training by F.conv; all steps run once."""
        rounds.append(options.repeats)
        trains = "results_of" in steps["direct"].__code__.co_names
        for step in steps.values():
            step()
        seconds = {"direct": 3.0, "conv": 2.0} if trains else {"direct": 1.0, "conv": 2.0}
        return {name: [seconds[name]] for name in steps}

    monkeypatch.setattr(harness, "time_steps", timed)
    choice = Choice("direct", "", "CPU rule")
    monkeypatch.setattr(Dcls1d, "explain", lambda *_: choice)
    path = tmp_path / "rule.json"
    arguments = ["--cases", "1x8x20:5:1:v1", "--repeats", "2", "--json", str(path)]
    assert run(bench_rule, monkeypatch, *arguments) == 0
    assert rounds == [2, 2, 4]  # a second look at the one that is wrong
    right, wrong = json.loads(path.read_text())["results"]
    assert (right["pass"], right["ratio"]) == ("forward", [0.5, 0.5, 0.5, 1])
    assert (wrong["pass"], wrong["ratio"]) == ("forward+backward", [1.5, 1.5, 1.5, 1])
    assert wrong["direct ms"] == [3000, 3000, 3000, 1]
    summary, listed = capsys.readouterr().out.split("Choices that took more than 1.10")
    rows = [line.split() for line in summary.splitlines() if line.startswith("1-D")]
    # shapes, direct, wrong direct, conv, wrong conv, worst, gain
    assert rows[0][4:] == ["1", "1", "0", "0", "0", "0.500", "2.00"]
    assert rows[1][4:] == ["1", "1", "1", "0", "0", "1.50", "0.667"]
    assert listed.count("1x8x20:5:1:v1") == 1
    assert "1.50 [1.50-1.50]" in listed


def test_the_widths_of_a_schedule(
    bench_rule: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "widths.json"
    case = "1x4x12:9:1:gauss:1"
    arguments = ["--schedule", "--cases", case, "--repeats", "1", "--json", str(path)]
    assert run(bench_rule, monkeypatch, *arguments) == 0
    results = json.loads(path.read_text())["results"]
    widths = list(dict.fromkeys(row["width"] for row in results))
    assert (len(widths), widths[0]) == (5, 4)
    assert widths[-1] == 0.23
    assert {row["longer"] for row in results} == {0, 8}
    assert len(results) == 2 * 2 * len(widths)
    assert {case.kernel[0] for case in bench_rule.SCHEDULED} == {25, 51}


def test_the_grid_of_the_rule(bench_rule: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = bench_rule.grid(quick=False, ndims=(1, 2, 3))
    assert len({case.spec for case in grid}) == len(grid) > 100
    two = [case for case in grid if len(case.size) == 2]
    assert {case.kernel[0] for case in two} >= {3, 7, 17, 31}
    assert {case.channels // case.groups for case in two} == {1, 4, 64}
    kinds = {bench_rule.kind({"case": case.spec})[1] for case in grid}
    assert kinds == {"depthwise", "dense", "groups of 4"}


def test_the_grid_of_the_rule_on_a_gpu(
    bench_rule: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same kinds, but fewer and larger; by number of axes, as the check of a GPU asks."""
    for ndim in (1, 2, 3):
        on_cpu = bench_rule.grid(quick=False, ndims=(ndim,))
        on_gpu = bench_rule.grid(quick=False, ndims=(ndim,), device="cuda")
        assert {len(case.size) for case in on_gpu} == {ndim}
        assert 20 < len({case.spec for case in on_gpu}) <= len(on_cpu)
        kinds = [{bench_rule.kind({"case": c.spec})[1] for c in grid} for grid in (on_cpu, on_gpu)]
        assert kinds[0] == kinds[1]
        assert min(c.batch for c in on_gpu) > max(c.batch for c in on_cpu)


def test_the_rule_is_looked_at_for_some_axes(
    bench_rule: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "rule.json"
    arguments = ["--axes", "1", "--repeats", "1", "--json", str(path)]
    assert run(bench_rule, monkeypatch, *arguments) == 0
    cases = {result["case"] for result in json.loads(path.read_text())["results"]}
    assert len(cases) == 3
    assert all(case.count("x") == 2 for case in cases)  # batch, channels, one axis


@pytest.mark.parametrize("name", ["conv", "rule"])
def test_both_methods_are_timed_on_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer left to itself always takes F.conv there, until there are measurements."""
    suite = load("suite", monkeypatch)
    (benchmark,) = (each for each in suite.BENCHMARKS if each.name == name)
    program = load(benchmark.path.stem, monkeypatch)
    for arguments in benchmark.gpu_runs.values():
        options = program.make_parser().parse_args(["--device", "cuda", *arguments])
        # FFTs have a run of their own, since their package may be missing.
        ours = {"conv", "fft"} if "fft" in arguments else {"direct", "conv"}
        assert name == "rule" or ours <= set(options.methods)
    assert benchmark.gpu_runs
