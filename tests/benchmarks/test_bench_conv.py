"""bench_conv and bench_model: what they count, tiny runs, and what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from benchmarking import load, run, stand_in

#: Stands in for the modules of DCLS 0.1.1: our layers, and how far off their output is.
LAYERS = """
import DCLS

class Dcls1d(DCLS.Dcls1d):
    def forward(self, x):
        return {factor} * super().forward(x)

class Dcls2d(DCLS.Dcls2d):
    def forward(self, x):
        return {factor} * super().forward(x)
"""
DRAW = Path(__file__).parents[2] / "docs" / "draw_scaling.py"


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def conv_cases(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("conv_cases", monkeypatch)


@pytest.fixture
def bench_conv(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("bench_conv", monkeypatch)


@pytest.fixture
def bench_model(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("bench_model", monkeypatch)


# ------------------------------------------------------------------------------------------- cases


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


def test_the_slower_rate_sets_the_floor(
    conv_cases: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    roofline = load("roofline", monkeypatch)
    case = conv_cases.Case.parse("2x2x5:1:1:v1")
    kernel = torch.ones(2, 1, 1)
    support = torch.tensor([True, False]).reshape(2, 1, 1)
    forward = roofline.work_of(case, kernel, support, "forward", "bfloat16")
    assert forward == {"bytes": 2 * 40, "multiply_adds_dense": 20, "multiply_adds": 20}
    both = roofline.work_of(case, kernel, support, "forward+backward", "bfloat16")
    assert both == {"bytes": 5 * 40, "multiply_adds_dense": 60, "multiply_adds": 50}
    rates = {"bytes_per_s": 100.0, "multiply_adds_per_s": 10.0}
    assert roofline.floor_of(both, rates) == {"seconds": 5.0, "bound": "multiply-add"}
    rates = {"bytes_per_s": 10.0, "multiply_adds_per_s": 10.0}
    assert roofline.floor_of(both, rates) == {"seconds": 20.0, "bound": "copy"}


def test_rates_are_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = load("roofline", monkeypatch).measure_rates("cpu", "float32", 1, quick=True)
    assert 1e7 < rates["bytes_per_s"] < 1e14
    assert 1e6 < rates["multiply_adds_per_s"] < 1e15


# ----------------------------------------------------------------------------------------- layers


def test_peers_are_compared_in_their_better_layouts(
    bench_conv: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    Timing = load("harness", monkeypatch).Timing
    timings = {
        "dcls/contiguous": Timing(1, [4.0, 2.0, 2.0]),
        "conv/contiguous": Timing(1, [8.0, 8.0, 8.0]),
        "dcls/channels_last": Timing(1, [1.0, 1.0, 1.0]),
        "conv/channels_last": Timing(1, [9.0]),  # a slow step, which left after one round
    }
    found = bench_conv.compare(timings, ("contiguous", "channels_last"))
    assert found["better_layout"] == {"dcls": "channels_last", "conv": "contiguous"}
    over = found["over_dcls"]
    assert over["contiguous"]["conv"] == {"median": 4, "min": 2, "max": 4}
    assert over["channels_last"]["conv"] == {"median": 9, "min": 9, "max": 9}
    assert over["better layouts"]["conv"] == {"median": 8, "min": 8, "max": 8}


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
    assert "0.1.1 ms" in said
    assert "Memory was not measured: by --no-memory." in said
    report = json.loads(path.read_text())
    assert (report["benchmark"], report["complete"]) == ("conv", True)
    passes = [(result["case"], result["pass"]) for result in report["results"]]
    assert passes == [
        (case, which)
        for case in ("2x4x9x8:7x7:5:gauss", "2x4x20:5:1:v1:1")
        for which in ("forward", "forward+backward")
    ]
    for result in report["results"]:
        two = len(result["case"].split(":")[0].split("x")) == 4
        layouts = ["contiguous", "channels_last"] if two else ["contiguous"]
        methods = ["dcls", "conv", *(["plain"] if two else []), "direct", "upstream"]
        assert list(result["seconds"]) == [f"{m}/{layout}" for m in methods for layout in layouts]
        assert all(len(timing["samples"]) == 2 for timing in result["seconds"].values())
        assert result["way"].keys() == set(layouts)
        assert 0 < result["nonzero_cells"] <= 1
        assert result["over_dcls"].keys() == {*layouts, "better layouts"}
        floor = result["roofline"]
        assert floor["multiply_adds"] <= floor["multiply_adds_dense"]
        best = min(result["seconds"][f"dcls/{layout}"]["median"] for layout in layouts)
        assert floor["attained"] == pytest.approx(floor["floor_seconds"] / best, rel=1e-4)


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
    forward, both = (result["memory"] for result in json.loads(path.read_text())["results"])
    for method in ("dcls/contiguous", "direct/contiguous"):
        assert forward[method]["scale"] == 1
        assert forward[method]["bytes"] >= 16 << 20
        # The output and the gradient of the input are returned.
        assert 32 << 20 <= both[method]["bytes"] < 96 << 20


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
    left_out = f"its layers take no parameters in {dtype}." in capsys.readouterr().out
    assert left_out == (dtype != "float64")


# ----------------------------------------------------------------------------- scaling and the rule


def test_scaling_and_its_picture(
    bench_conv: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "scaling-test.json"
    arguments = ["--scaling", "--cases", "1x4x8x8:5x5:3:v1", "--repeats", "1", "--json", str(path)]
    assert run(bench_conv, monkeypatch, *arguments) == 0
    report = json.loads(path.read_text())
    assert (report["benchmark"], report["complete"]) == ("scaling", True)
    points = {(result["axis"], result["value"]): result["case"] for result in report["results"]}
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
    table = load("conv_scaling", monkeypatch).table(report["results"], "")
    assert len(table.splitlines()) == 2 + 2 * len(points)
    pytest.importorskip("matplotlib")
    draw = [sys.executable, str(DRAW), "--results", str(tmp_path), "--images", str(tmp_path)]
    done = subprocess.run(draw, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "scaling-test.png").read_bytes().startswith(b"\x89PNG")


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
        (["--scaling", "--rule"], "not allowed with argument"),
        (["--scaling", "--cases", "1d", "3d"], "argument --cases: --scaling takes one"),
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


# ------------------------------------------------------------------------------------------ models


def test_tiny_model(
    bench_model: ModuleType,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    upstream = stand_in(tmp_path / "other", LAYERS.format(factor=1))
    path = tmp_path / "result.json"
    arguments = ["--size", "toy", "--repeats", "1", "--no-memory", "--device", device]
    assert (
        run(bench_model, monkeypatch, *arguments, "--upstream", str(upstream), "--json", str(path))
        == 0
    )
    assert "torch, dense kernel" in capsys.readouterr().out
    report = json.loads(path.read_text())
    assert (report["benchmark"], report["complete"]) == ("model", True)
    # 2 passes, of 2 layouts, of the plain model and of 3 methods for 2 kernels.
    assert len(report["results"]) == 2 * 2 * (1 + 2 * 3)
    for result in report["results"]:
        if result["method"] == "plain":
            assert result["over_plain"]["median"] == 1
        assert result["over_better_plain"]["median"] > 0


@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
def test_layers_of_a_model_get_its_layout(
    bench_model: ModuleType, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    convnext = load("convnext", monkeypatch)
    size = convnext.Size((2, 2), (8, 16), 32, 2)
    model = convnext.make_model(size, "17x17", "dcls", layout, "cpu", "")
    seen = []
    layers = [block.depthwise for stage in model.stages for block in stage]
    for layer in layers:
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    convnext.make_step(model, size, "inference", "cpu", "float32")()
    assert len(seen) == len(layers) == 4
    assert all(maps.is_contiguous(memory_format=convnext.LAYOUTS[layout]) for maps in seen)


def test_a_training_step_leaves_the_positions(
    bench_model: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    convnext = load("convnext", monkeypatch)
    size = convnext.Size((1,), (8,), 16, 2)
    model = convnext.make_model(size, "23x23", "dcls", "NCHW", "cpu", "")
    layer = model.stages[0][0].depthwise
    before = layer.P.detach().clone()
    step = convnext.make_step(model, size, "training", "cpu", "float32")
    for _ in range(3):
        step()
    assert 0 < (layer.P - before).abs().max() < 1e-6
    assert all(parameter.grad is None for parameter in model.parameters())


def test_too_small_images_are_refused(
    bench_model: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(bench_model, monkeypatch, "--size", "tiny", "--resolution", "31")
    assert stop.value.code == 2
    assert "argument --resolution: takes at least 32, got 31" in capsys.readouterr().err


def test_every_benchmark_has_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = load("suite", monkeypatch)
    for benchmark in suite.BENCHMARKS:
        if benchmark.path.is_file():
            assert callable(load(benchmark.layout_module, monkeypatch).table)
        if benchmark.picture:
            assert (DRAW.parent / benchmark.picture).is_file()
