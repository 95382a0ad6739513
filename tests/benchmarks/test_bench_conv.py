"""bench_conv, bench_scaling and bench_small: what they count, tiny runs, and what they refuse."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from benchmarking import LAYERS, load, run, stand_in


@pytest.fixture
def conv_cases(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("conv_cases", monkeypatch)


@pytest.fixture
def bench_conv(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("bench_conv", monkeypatch)


# ------------------------------------------------------------------------------------------- cases


def test_the_way_is_what_the_layer_says(conv_cases: ModuleType) -> None:
    """It was that of a new layer of such sizes, whatever this one is like."""
    case = conv_cases.CASES["delays-gauss"]
    problem = conv_cases.Problem.random(case, "contiguous", "cpu", "float32")
    layer = conv_cases.make_layers(case, ["dcls"], "cpu", "float32", "")["dcls"]
    for method in ("direct", "conv"):
        layer.method = method
        for which in conv_cases.PASSES:
            assert conv_cases.way(layer, problem, which) == method


def test_cases_are_read(conv_cases: ModuleType) -> None:
    Case = conv_cases.Case
    case = Case.parse("2x8x14x15:9x5:6:gauss")
    assert (case.batch, case.channels, case.size, case.kernel) == (2, 8, (14, 15), (9, 5))
    assert (case.elements, case.version, case.groups) == (6, "gauss", 8)
    assert Case.parse("32x256x100:25:1:v1:1").groups == 1
    for case in conv_cases.CASES.values():
        again = Case.parse(case.spec)
        assert again.spec == case.spec
        assert again.on("cuda").batch == again.batch
        assert case.on("cpu") == case
        assert case.on("cuda").batch == case.cuda_batch > case.batch


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_positions_and_layouts_are_as_told(conv_cases: ModuleType, layout: str) -> None:
    case = conv_cases.Case.parse("2x8x14x15:9x5:60:v1")
    layer = conv_cases.make_layers(case, ["dcls"], "cpu", "float32", "")["dcls"]
    # As 0.1.1 has it: the first row belongs to the width.
    assert 1.9 < layer.P[0].max() <= 2
    assert 3.9 < layer.P[1].max() <= 4
    new = conv_cases.make_layers(case, ["dcls"], "cpu", "float32", "", "initial")["dcls"]
    assert new.P.std() < 0.7 < layer.P.std()
    problem = conv_cases.Problem.random(case, layout, "cpu", "float32")
    form = conv_cases.memory_format(layout, 2)
    assert problem.input.is_contiguous(memory_format=form)
    assert problem.grad_output.is_contiguous(memory_format=form)
    assert problem.grad_output.shape == layer(problem.input).shape


@pytest.mark.parametrize("spec", ["3x4x9:5:2:v1", "2x2x5x7:9x3:4:v1", "1x2x4x3x6:3x4x5:9:v1:1"])
def test_multiply_adds_leave_out_the_padding(conv_cases: ModuleType, spec: str) -> None:
    case = conv_cases.Case.parse(spec)
    shape = (case.channels, case.channels // case.groups, *case.kernel)
    cells = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.4
    # On ones each product that is not with the padding adds one.
    ones = torch.ones(case.batch, case.channels, *case.size)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(case.size) - 1]
    padding = [length // 2 for length in case.kernel]
    expected = convolve(ones, cells.float(), padding=padding, groups=case.groups).sum().item()
    assert conv_cases.multiply_adds(case, cells) == expected


def test_the_slower_rate_sets_the_floor(conv_cases: ModuleType) -> None:
    case = conv_cases.Case.parse("2x2x5:1:1:v1")  # 40 bytes, 20 multiply-adds of ones
    kernel = torch.tensor([1.0, 0.0]).reshape(2, 1, 1)

    def floor(which: str, bytes_per_s: float) -> tuple[float, str]:
        rates = {"bytes_per_s": bytes_per_s, "multiply_adds_per_s": 10.0}
        return conv_cases.floor_of(case, kernel, which, "bfloat16", rates)

    assert floor("forward", 100.0) == (1.0, "multiply-add")
    assert floor("forward", 10.0) == (8.0, "copy")
    assert floor("forward+backward", 100.0) == (3.0, "multiply-add")
    assert floor("forward+backward", 10.0) == (20.0, "copy")


def test_rates_are_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    options = argparse.Namespace(device="cpu", dtype="float32", quick=True)
    options.repeats, options.slow_repeats, options.min_seconds = 1, None, 0.001
    rates = load("bench_device", monkeypatch).best_rates(options)
    assert 1e7 < rates["bytes_per_s"] < 1e14
    assert 1e6 < rates["multiply_adds_per_s"] < 1e15


# ----------------------------------------------------------------------------------------- layers


def test_a_layer_by_ffts(conv_cases: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a module that plays the package, which takes a kernel of the size of the input."""

    def fft_conv2d(input: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        assert input.dtype == kernel.dtype == torch.float32
        assert input.shape[1:] == kernel.shape
        sizes = [2 * n for n in input.shape[2:]]
        product = torch.fft.rfft2(input, sizes) * torch.fft.rfft2(kernel, sizes)
        return torch.fft.irfft2(product, sizes)[..., : input.shape[2], : input.shape[3]]

    case = conv_cases.Case.parse("2x3x10x9:5x7:4:v1")
    assert "fft" not in conv_cases.make_layers(case, ["dcls", "fft"], "cpu", "float32", "")
    package = ModuleType("subquadratic_ops_torch.fft_conv2d")
    monkeypatch.setattr(package, "fft_conv2d", fft_conv2d, raising=False)
    monkeypatch.setitem(sys.modules, "subquadratic_ops_torch", ModuleType("subquadratic_ops_torch"))
    monkeypatch.setitem(sys.modules, package.__name__, package)
    layer = conv_cases.make_layers(case, ["dcls"], "cpu", "bfloat16", "")["dcls"]
    problem = conv_cases.Problem.random(case, "channels_last", "cpu", "bfloat16")
    results = conv_cases.results_of(conv_cases.FftLayer(layer, case.size), problem)
    assert results["output"].shape == problem.grad_output.shape
    # A convolution of the flipped kernel, from its first cell on: shifted by half of the kernel.
    kernel = layer.to_conv().weight.float().flip(-1, -2)
    padded = F.pad(problem.input.float(), (6, 0, 4, 0))
    shifted = F.conv2d(padded, kernel, layer.bias.float(), groups=3)
    torch.testing.assert_close(results["output"].float(), shifted, rtol=0.02, atol=0.05)
    assert all(grad.isfinite().all() for grad in results.values())


def test_layers_are_compared_with_ours(bench_conv: ModuleType) -> None:
    seconds = {
        "dcls/contiguous/uniform": [4.0, 2.0, 2.0],
        "conv/contiguous/uniform": [8.0, 8.0, 8.0],
        "dcls/channels_last/uniform": [1.0, 1.0, 1.0],
        "dcls/channels_last/initial": [0.5, 0.5, 0.5],  # is not what is compared with
        "conv/channels_last/uniform": [9.0],  # a slow step, which left after one round
    }
    found = bench_conv.compare(seconds, ("contiguous", "channels_last"))
    assert found["conv/contiguous/uniform"]["over dcls"] == (4, 2, 4, 3)
    assert found["conv/contiguous/uniform"]["over best"] == (8, 8, 8, 3)
    assert found["conv/channels_last/uniform"]["over dcls"] == (9, 9, 9, 1)
    assert found["dcls/channels_last/initial"]["over best"] == (0.5, 0.5, 0.5, 3)


def test_tiny_run(
    bench_conv: ModuleType,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    upstream = stand_in(tmp_path / "other", LAYERS.format(factor=1))
    path = tmp_path / "result.json"
    arguments = ["--cases", "2x4x9x8:7x7:5:gauss", "2x4x20:5:1:v1:1", "--repeats", "2"]
    arguments += ["--no-memory", "--methods", "conv", "plain", "direct", "--device", device]
    assert (
        run(bench_conv, monkeypatch, *arguments, "--upstream", str(upstream), "--json", str(path))
        == 0
    )
    said = capsys.readouterr().out
    assert "DCLS 0.1.1 was not measured" not in said
    assert "Memory was not measured: by --no-memory." in said
    report = json.loads(path.read_text())
    assert (report["benchmark"], report["complete"]) == ("conv", True)
    assert report["upstream"] == "0.1.1"
    rows = report["results"]
    expected = []
    for case, layouts, plain in (
        ("2x4x9x8:7x7:5:gauss", ["contiguous", "channels_last"], ["plain"]),
        ("2x4x20:5:1:v1:1", ["contiguous"], []),
    ):
        for which in ("forward", "forward+backward"):
            methods = [("dcls", "uniform"), ("dcls", "initial"), ("conv", "uniform")]
            methods += [(each, "-") for each in plain]
            methods += [("direct", "uniform"), ("upstream", "uniform")]
            expected += [
                (case, which, method, layout, positions)
                for method, positions in methods
                for layout in layouts
            ]
    names = ("case", "pass", "method", "layout", "positions")
    assert [tuple(row[name] for name in names) for row in rows] == expected
    for row in rows:
        assert all(row[name][-1] == 2 for name in ("ms", "over dcls", "over best"))
        if row["method"] == "dcls":
            assert row["way"] in ("direct", "conv")
            assert 0 < row["cells"] <= 1
            assert row["attained"] == pytest.approx(row["floor ms"] / row["ms"][0], rel=2e-3)
        else:
            assert "way" not in row


def test_memory_of_the_layers(
    bench_conv: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reason = load("peak_memory", monkeypatch).unavailable("cpu")
    if reason:
        pytest.skip(reason)
    path = tmp_path / "result.json"
    # Input and output have 16 MiB each, so that nothing has to be scaled up.
    arguments = ["--cases", "4x64x16384:3:1:v1", "--repeats", "1", "--methods", "direct"]
    assert run(bench_conv, monkeypatch, *arguments, "--json", str(path)) == 0
    rows = [row for row in json.loads(path.read_text())["results"] if "MiB" in row]
    assert [(row["pass"], row["method"]) for row in rows] == [
        (which, method)
        for which in ("forward", "forward+backward")
        for method in ("dcls", "direct")
    ]
    for row in rows:
        # The output is returned, and in training the gradient of the input as well.
        least, most = (16, 64) if row["pass"] == "forward" else (32, 96)
        assert least <= row["MiB"] < most


def test_other_results_are_not_compared(
    bench_conv: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    upstream = stand_in(tmp_path / "other", LAYERS.format(factor=1.001))
    arguments = ["--cases", "1x2x20:5:1:v1", "--upstream", str(upstream), "--no-memory"]
    assert run(bench_conv, monkeypatch, *arguments) == 1
    assert (
        "the output of upstream (contiguous) differs from that of F.conv in float64 by 1.0e-03"
        in (capsys.readouterr().err)
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes(
    bench_conv: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    dtype: str,
) -> None:
    upstream = stand_in(tmp_path / "other", LAYERS.format(factor=1))
    arguments = ["--cases", "1x4x9x9:5x5:3:v1", "--dtype", dtype, "--repeats", "1", "--no-memory"]
    assert run(bench_conv, monkeypatch, *arguments, "--upstream", str(upstream)) == 0
    left_out = f"its layers take no {dtype}" in capsys.readouterr().err
    assert left_out == (dtype != "float64")


# ------------------------------------------------------------------------------ other questions


def test_scaling_varies_one_size_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "scaling-test.json"
    arguments = ["--cases", "1x4x8x8:5x5:3:v1", "--repeats", "1", "--json", str(path)]
    assert run(load("bench_scaling", monkeypatch), monkeypatch, *arguments) == 0
    report = json.loads(path.read_text())
    assert (report["benchmark"], report["complete"]) == ("scaling", True)
    points = {(row["varied"], row["value"]): row["case"] for row in report["results"]}
    assert points == {
        ("kernel size", 3): "1x4x8x8:3x3:3:v1",
        ("kernel size", 5): "1x4x8x8:5x5:3:v1",
        ("elements", 1): "1x4x8x8:5x5:1:v1",
        ("elements", 4): "1x4x8x8:5x5:4:v1",
        ("channels", 12): "1x12x8x8:5x5:3:v1",
        ("channels", 24): "1x24x8x8:5x5:3:v1",
        ("resolution", 7): "1x4x7x7:5x5:3:v1",
        ("resolution", 14): "1x4x14x14:5x5:3:v1",
        ("batch", 1): "1x4x8x8:5x5:3:v1",
        ("batch", 2): "2x4x8x8:5x5:3:v1",
    }
    names = ("method", "layout", "positions")
    for which in ("forward", "forward+backward"):
        rows = [row for row in report["results"] if row["pass"] == which]
        assert {tuple(row[name] for name in names) for row in rows} == {
            ("dcls", "contiguous", "uniform"),
            ("dcls", "contiguous", "initial"),
            ("conv", "contiguous", "uniform"),
            ("conv", "channels_last", "uniform"),
            ("plain", "channels_last", "-"),
        }


@pytest.mark.parametrize(("over", "status"), [(1.2, 0), (1.3, 1)])
def test_a_small_layer_is_held_against_torchs(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    over: float,
    status: int,
) -> None:
    bench, path = load("bench_small", monkeypatch), tmp_path / "small.json"
    calls: list[str] = []

    def timed(steps: Any, options: Any) -> Any:
        """The layer with uniform positions takes ``over`` times as long as torch's."""
        calls.extend(steps)
        assert (options.repeats, options.min_seconds) == (300, 0.0)
        for step in steps.values():
            step()
        return {name: [over if name == "uniform" else 1.0] for name in steps}

    monkeypatch.setattr(bench.harness, "time_steps", timed)
    assert run(bench, monkeypatch, "--check", "--json", str(path)) == status
    assert calls == ["initial", "uniform", "-"] * 2
    rows = json.loads(path.read_text())["results"]
    assert [row["over torch"][0] for row in rows] == [1.0, over, 1.0] * 2
    # 1.3 times are allowed in the forward pass, not in a training step.
    message = "forward+backward with uniform positions takes 1.3 times as long as torch's layer"
    assert (message in capsys.readouterr().out) == bool(status)
    assert run(bench, monkeypatch) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--cases", "3by4"],
            "argument --cases: takes 17x17, 23x23, 1d, 3d, delays, delays-gauss",
        ),
        (["--cases", "1x4x9:3x3:1:v1"], "got '1x4x9:3x3:1:v1'"),
        (["--cases", "1x4x9:3:0:v1"], "got '1x4x9:3:0:v1'"),
        (["--cases", "1x4x9:3:1:v1:3"], "got '1x4x9:3:1:v1:3'"),
        (["--cases", "1x4x9:3:1:v7"], "got '1x4x9:3:1:v7'"),
        (["--methods", "magic"], "argument --methods: invalid choice: 'magic'"),
        (["--slow-repeats", "0"], "argument --slow-repeats: takes an integer of at least 1"),
    ],
)
def test_nonsense_is_refused(
    bench_conv: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(bench_conv, monkeypatch, *arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
