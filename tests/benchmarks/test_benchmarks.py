"""The benchmarks: their measurements of known things, a tiny run, and their errors."""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from benchmarking import BENCHMARKS, load, run, stand_in

import DCLS
from DCLS import _backend

MIB = 1 << 20

#: Stands in for the modules of DCLS 0.1.1: the reference, with P in the order of its 2-D gauss.
STAND_IN = """
from DCLS import reference

class ConstructKernel2d:
    def __init__(self, out_channels, in_channels, groups, kernel_count, size, version):
        self.size, self.version = size, version

    def __call__(self, W, P, SIG):
        P, SIG = P.flip(0), None if SIG is None else SIG.flip(0)
        return {factor} * reference.construct_kernel(
            W, P, SIG, dilated_kernel_size=self.size, version=self.version
        )
"""

#: Steps of known size: a result of 2 parts and on the way 3, in float32 numbers each.
PROBE = """
import torch

def make(scale, numbers):
    def step():
        kept = torch.ones(2 * numbers * scale)
        torch.ones(numbers * scale).add_(1)
        return kept
    return step

def broken(scale):
    raise ValueError("no such problem")
"""


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("harness", monkeypatch)


@pytest.fixture
def peak_memory(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("peak_memory", monkeypatch)


@pytest.fixture
def bench_construct(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("bench_construct", monkeypatch)


# ------------------------------------------------------------------------------------ peak memory


def needs_peak_memory(peak_memory: ModuleType) -> None:
    reason = peak_memory.unavailable("cpu")
    if reason:
        pytest.skip(reason)


def test_extra_peak_of_known_steps(peak_memory: ModuleType, tmp_path: Path) -> None:
    needs_peak_memory(peak_memory)
    script = tmp_path / "probe.py"
    script.write_text(PROBE)
    ballast = torch.ones(256 * MIB // 4)  # of this process: must not matter to the child
    # 48 MiB; and 3 KiB, which is below what one step can resolve.
    arguments = [{"numbers": 4 * MIB}, {"numbers": 256}]
    large, small = peak_memory.extra_peaks(script, "make", arguments, device="cpu", threads=1)
    assert ballast[-1] == 1
    # The counters of the system may lag by a megabyte on a machine of many CPUs.
    assert large.scale == 1
    assert large.times(16 * MIB) == pytest.approx(3, rel=0.03)
    assert small.scale > 1000
    assert small.extra_bytes >= peak_memory.RESOLVED_BYTES
    assert small.times(1024) == pytest.approx(3, rel=0.08)


def test_failure_in_the_child_is_told(peak_memory: ModuleType, tmp_path: Path) -> None:
    needs_peak_memory(peak_memory)
    script = tmp_path / "probe.py"
    script.write_text(PROBE)
    with pytest.raises(RuntimeError, match=r"(?s)exit status 1.*no such problem"):
        peak_memory.extra_peaks(script, "broken", [{}], device="cpu", threads=1)


# ----------------------------------------------------------------------------------------- timing


def timed_steps(
    harness: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> tuple[Callable[[str, float], Callable[[], None]], list[str]]:
    """Makes steps that take so many seconds of a clock of their own, and the list of their calls.

    On a busy machine a sleep may take many times what it was told.
    """
    now, calls = [0.0], []
    timer = functools.partial(harness.Timer, timer=lambda: now[0])
    monkeypatch.setattr(harness, "Timer", timer)

    def step(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            calls.append(name)
            now[0] += seconds

        return call

    return step, calls


def test_steps_are_timed_in_turn(harness: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = timed_steps(harness, monkeypatch)
    options = argparse.Namespace(repeats=4, min_seconds=0.01, slow_repeats=None)
    seconds = harness.time_steps({"slow": step("slow", 0.02), "fast": step("fast", 0.002)}, options)
    turns = [name for name, _ in itertools.groupby(calls)]
    # None always follows the other: slow fast, fast slow, slow fast, fast slow.
    assert turns == ["slow", "fast", "slow", "fast", "slow"]
    assert calls.count("fast") > calls.count("slow")
    assert len(seconds["slow"]) == len(seconds["fast"]) == 4
    assert seconds["slow"] == pytest.approx([0.02] * 4)
    assert seconds["fast"] == pytest.approx([0.002] * 4)


def test_ratios_are_taken_round_by_round(harness: ModuleType) -> None:
    slow, fast = [10.0, 90.0, 20.0], [1.0, 30.0, 5.0]
    ratio = harness.ratio(slow, fast)
    assert ratio == (4, 3, 10, 3)
    assert str(ratio) == "4.00 [3.00-10.0]"
    assert harness.ratio(slow, fast[:1]) == (10, 10, 10, 1)
    assert harness.milliseconds(slow) == (20_000, 10_000, 90_000, 3)
    assert harness.Summary.of([1 / 3, 2 / 3, 1 / 7]) == (0.3333, 0.1429, 0.6667, 3)


def test_slow_steps_leave_earlier(harness: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "_SLOW_SECONDS", 0.01)
    step, calls = timed_steps(harness, monkeypatch)
    options = argparse.Namespace(repeats=4, min_seconds=1e-6, slow_repeats=2)
    seconds = harness.time_steps({"slow": step("slow", 0.02), "fast": step("fast", 0.001)}, options)
    assert {name: len(samples) for name, samples in seconds.items()} == {"slow": 2, "fast": 4}
    assert calls.count("slow") < calls.count("fast")
    pairs = list(zip(seconds["slow"], seconds["fast"], strict=False))
    ratio = harness.ratio(seconds["slow"], seconds["fast"])
    assert ratio.lowest > 1
    assert ratio.median == pytest.approx(sum(a / b for a, b in pairs) / 2, rel=1e-3)


def test_float32_is_measured_as_float32(
    harness: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Imaginary 100")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    assert harness.machine_facts("cuda")["tf32"] is True
    parser = harness.make_parser("")
    options = parser.parse_args([])
    options.dtype = "tf32"
    harness.apply_options(parser, options)
    assert torch.backends.cudnn.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32
    harness.apply_options(parser, parser.parse_args([]))
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert harness.machine_facts("cuda")["tf32"] is False


def test_a_table_has_what_any_row_has(harness: ModuleType) -> None:
    rows = [{"name": "a", "ms": 1.0}, {"name": "longer", "ms": 1234.5, "note": "yes"}]
    rows[0]["ratio"] = harness.Summary.of([0.5, 0.25])
    lines = [line.split() for line in harness.table(rows).splitlines()]
    assert lines[0] == ["name", "ms", "ratio", "note"]
    assert lines[2:] == [
        ["a", "1.00", "0.375", "[0.250-0.500]", "-"],
        ["longer", "1234", "-", "yes"],
    ]
    assert harness.table([]) == "none"


def test_a_file_has_a_line_for_each_row(harness: ModuleType, tmp_path: Path) -> None:
    rows = [{"case": "a", "ms": harness.Summary.of([1.0, 2.0])}, {"case": "b", "MiB": 1.5}]
    content = {"benchmark": "x", "machine": {"cpu": "y"}, "results": rows}
    path = tmp_path / "x.json"
    harness.write_json(path, content)
    assert len(path.read_text().splitlines()) == 2 + 2 + 2 + len(rows)
    assert harness.read_json(path) == content
    assert str(harness.read_json(path)["results"][0]["ms"]) == "1.50 [1.00-2.00]"


# ---------------------------------------------------------------------------------- the benchmark


def test_tiny_run_beside_another_dcls(
    bench_construct: ModuleType,
    peak_memory: ModuleType,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    upstream, path = (
        stand_in(tmp_path / "other", STAND_IN.format(factor=1.0)),
        tmp_path / "result.json",
    )
    arguments = ["--cases", "8x3:6:7x7", "--versions", "gauss", "--repeats", "2"]
    arguments += ["--device", device, "--upstream", str(upstream), "--json", str(path)]
    assert run(bench_construct, monkeypatch, *arguments) == 0

    names = ("module", "function", "upstream", "fill")
    header, rule, *rows = capsys.readouterr().out.splitlines()[:10]
    assert header.startswith("case")
    assert set(rule) == {"-", " "}
    ran = [("gauss", which, name) for which in ("forward", "forward+backward") for name in names]
    assert [tuple(row.split()[1:4]) for row in rows] == ran

    report = json.loads(path.read_text())
    assert report["benchmark"] == "construct"
    assert report["upstream"] == "0.1.1"
    assert report["complete"] is True
    assert report["command"].startswith("python bench.py --threads 1 --quick --cases 8x3:6:7x7")
    machine = report["machine"]
    assert machine["threads"] == 1
    assert machine["torch"] == torch.__version__
    assert machine["dcls"]["version"] == DCLS.__version__
    assert all(machine[key] for key in ("cpu", "cpus", "backend", "python"))
    assert ("simd" in machine) == (_backend.native is not None)
    results = report["results"]
    assert [(row["version"], row["pass"], row["by"]) for row in results] == ran
    for row in results:
        for median, lowest, highest, rounds in (row["ms"], row["over module"]):
            assert 0 < lowest <= median <= highest
            assert rounds == 2
        assert (row["by"] == "module") <= (row["over module"] == [1, 1, 1, 2])
        if row["by"] in ("module", "fill"):
            rate = 8 * 3 * 49 * 4 / row["ms"][0] / 1e6
            assert row["GB/s"] == pytest.approx(rate, rel=2e-3)
    if _backend.native is not None and not peak_memory.unavailable(device):
        memory = [row["kernels"] for row in results if "kernels" in row]
        for module, reference in zip(memory[::2], memory[1::2], strict=True):
            assert 0.95 < module <= 3
            # The reference multiplies the taps of all elements before it sums them.
            assert reference > module


def test_run_alone_says_what_was_not_measured(
    bench_construct: ModuleType,
    peak_memory: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(peak_memory, "unavailable", lambda device: f"no memory of {device}")
    arguments = ["--cases", "2x1:2:5", "2x1:2:3x3x3", "--versions", "v0", "max", "--repeats", "1"]
    assert run(bench_construct, monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    assert len([line for line in said.splitlines() if line.startswith("2x1:2:")]) == 8 * 3
    assert "DCLS 0.1.1 was not measured: give its folder by --upstream." in said
    assert "Memory was not measured: no memory of cpu." in said


def test_stopped_run_leaves_what_it_measured(
    bench_construct: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measure = bench_construct.measure

    def stopped_at_max(case: Any, version: str, options: Any) -> Any:
        if version == "max":
            raise KeyboardInterrupt
        return measure(case, version, options)

    monkeypatch.setattr(bench_construct, "measure", stopped_at_max)
    path = tmp_path / "result.json"
    arguments = [
        "--cases",
        "2x1:2:5",
        "--versions",
        "v1",
        "max",
        "v0",
        "--no-memory",
        "--json",
        str(path),
    ]
    with pytest.raises(KeyboardInterrupt):
        run(bench_construct, monkeypatch, *arguments)
    report = json.loads(path.read_text())
    assert report["complete"] is False
    assert {result["version"] for result in report["results"]} == {"v1"}
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_other_results_are_not_compared(
    bench_construct: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    upstream, path = (
        stand_in(tmp_path / "other", STAND_IN.format(factor=1.001)),
        tmp_path / "result.json",
    )
    arguments = ["--cases", "2x2:2:5x5", "--versions", "gauss"]
    arguments += ["--upstream", str(upstream), "--json", str(path)]
    assert run(bench_construct, monkeypatch, *arguments) == 1
    assert "the kernel of DCLS 0.1.1 differs from ours by 1.0e-03" in capsys.readouterr().err
    assert not path.exists()


def test_cases_are_read(bench_construct: ModuleType) -> None:
    parse = bench_construct.Case.parse
    assert parse("2d").kernel_bytes == 128 * 128 * 17 * 17 * 4
    assert parse("3x2:5:7x9").kernel_shape == (3, 2, 7, 9)
    for case in bench_construct.CASES.values():
        assert parse(str(case)).kernel_shape == case.kernel_shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "3by4"], "argument --cases: takes 2d, depthwise, 1d, 3d, or sizes"),
        (["--cases", "4x0:1:3"], "of at least 1 such as 128x128:9:17x17, got '4x0:1:3'"),
        (["--cases", "4x4:1:3x3x3x3"], "got '4x4:1:3x3x3x3'"),
        (["--versions", "v7"], "argument --versions: invalid choice: 'v7'"),
        (["--repeats", "0"], "argument --repeats: takes an integer of at least 1, got '0'"),
        (["--threads", "some"], "argument --threads: takes an integer of at least 1, got 'some'"),
        (["--upstream", "nowhere"], "argument --upstream: there is no DCLS/construct/modules.py"),
        (["--json", "nowhere/x.json"], "argument --json: there is no folder nowhere"),
        (["--json", "."], "argument --json: takes a file, . is a folder"),
    ],
)
def test_nonsense_is_refused(
    bench_construct: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run(bench_construct, monkeypatch, *arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_cuda_that_is_not_there_is_refused(
    bench_construct: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        run(bench_construct, monkeypatch, "--device", "cuda")
    assert stop.value.code == 2
    assert "argument --device: torch finds no CUDA device" in capsys.readouterr().err


def test_script_runs_from_anywhere(tmp_path: Path) -> None:
    arguments = ["--quick", "--threads", "1", "--cases", "nonsense"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "bench_construct.py"), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "bench_construct.py: error: argument --cases: takes 2d" in done.stderr
    assert "Traceback" not in done.stderr
