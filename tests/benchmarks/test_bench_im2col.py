"""``benchmarks/bench_im2col.py``, on a case that takes no time."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from benchmarking import load, run


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark with "tiny" cases, torch's convolution and no processes that measure memory."""
    module = load("bench_im2col", monkeypatch)
    cases = {
        "tiny": module.Case(2, 6, 4, (9, 8), 3, 5),
        "tiny-groups": module.Case(2, 6, 4, (7, 6, 5), 2, 3, groups=2),
    }
    monkeypatch.setattr(module, "CASES", cases)
    monkeypatch.setattr(module.harness, "chosen_method", lambda **_: "conv")
    monkeypatch.setattr(
        module.harness.peak_memory, "unavailable", lambda device: f"none of {device}"
    )
    return module


def test_a_run_compares_the_ways(
    bench: ModuleType,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "result.json"
    arguments = ["--cases", "tiny", "tiny-groups", "--versions", "v0", "gauss", "--repeats", "2"]
    arguments += ["--device", device, "--json", str(path)]
    assert run(bench, monkeypatch, *arguments) == 0

    said = capsys.readouterr().out
    assert len([line for line in said.splitlines() if line.startswith("2x6x")]) >= 16
    assert f"Memory was not measured: none of {device}." in said
    report = json.loads(path.read_text())
    assert report["benchmark"] == "im2col"
    assert report["complete"] is True
    expected = []
    for name, version, which in itertools.product(
        ("tiny", "tiny-groups"), ("v0", "gauss"), ("forward", "forward+backward")
    ):
        can_deform = (name, version) == ("tiny", "v0") and bench.deform_conv2d
        methods = ["im2col", "construct", *(["deform"] if can_deform else [])]
        expected += [(str(bench.CASES[name]), version, which, method) for method in methods]
    rows = report["results"]
    assert [(r["case"], r["version"], r["pass"], r["method"]) for r in rows] == expected
    for row in rows:
        assert row["way"] == ("conv" if row["method"] == "construct" else "-")
        assert row["over im2col"][0] > 0
        median, lowest, highest, rounds = row["ms"]
        assert 0 < lowest <= median <= highest
        assert rounds == 2


def test_construct_convolves_as_a_module_would(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ways = {True: "direct", False: "conv"}
    monkeypatch.setattr(bench.harness, "chosen_method", lambda training, **_: ways[training])
    path = tmp_path / "result.json"
    arguments = ["--cases", "tiny", "--versions", "v1", "--repeats", "1", "--json", str(path)]
    assert run(bench, monkeypatch, *arguments) == 0
    rows = json.loads(path.read_text())["results"]
    assert [(row["pass"], row["method"], row["way"]) for row in rows] == [
        ("forward", "im2col", "-"),
        ("forward", "construct", "conv"),
        ("forward+backward", "im2col", "-"),
        ("forward+backward", "construct", "direct"),
        ("forward+backward", "conv", "-"),
    ]


def test_slow_ways_are_timed_in_fewer_rounds(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench.harness, "_SLOW_SECONDS", 0.0)
    path = tmp_path / "result.json"
    arguments = ["--cases", "tiny", "--versions", "v1", "--repeats", "3", "--slow-repeats", "2"]
    assert run(bench, monkeypatch, *arguments, "--json", str(path)) == 0
    (row, *_) = json.loads(path.read_text())["results"]
    assert row["ms"][-1] == 2


def test_ways_that_disagree_are_not_compared(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    construct = bench.run_construct

    def wrong(problem: Any, may_be_direct: bool) -> Any:
        step = construct(problem, may_be_direct)
        return lambda: step() * 1.001

    monkeypatch.setattr(bench, "run_construct", wrong)
    assert run(bench, monkeypatch, "--cases", "tiny", "--versions", "max") == 1
    assert "the output of construct differs from im2col's by 1.0e-03" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tiny", "tiny-groups"])
@pytest.mark.parametrize("way", ["im2col", "construct", "direct", "conv"])
def test_what_a_step_returns(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, way: str
) -> None:
    if way == "direct":
        monkeypatch.setattr(bench.harness, "chosen_method", lambda **_: "direct")
        way = "construct"
    problem = bench.Problem(bench.CASES[name], "gauss", "cpu")
    step, tensors = bench.runs_of(problem, way, 1 << 20)
    forward = bench.make_step(step, tensors, problem.cotangent, "forward")()
    assert isinstance(forward, torch.Tensor)
    assert not forward.requires_grad
    assert forward.nbytes == bench.returned_bytes(problem, tensors, "forward")
    output, gradients = bench.make_step(step, tensors, problem.cotangent, "forward+backward")()
    assert torch.equal(output, forward)
    assert len(gradients) == 4
    returned = output.nbytes + sum(gradient.nbytes for gradient in gradients)
    assert returned == bench.returned_bytes(problem, tensors, "forward+backward")


def test_memory_is_that_of_one_way(bench: ModuleType) -> None:
    step = bench.memory_step(
        3, "tiny", "v1", "im2col", "forward+backward", device="cpu", workspace=1 << 20
    )
    output, gradients = step()
    assert output.shape == (6, 4, 9, 8)  # three times the batch
    assert [gradient.shape for gradient in gradients] == [(6, 6, 9, 8), (4, 6, 3), (2, 6, 3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "no"], "invalid choice: 'no'"),
        (["--versions", "v9"], "invalid choice: 'v9'"),
        (["--methods", "fft"], "invalid choice: 'fft'"),
        (["--workspace", "0"], "argument --workspace"),
    ],
)
def test_bad_arguments(
    bench: ModuleType,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(bench, monkeypatch, *arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
