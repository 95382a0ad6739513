"""bench_model: tiny runs, what it refuses, and the command that measures all."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from benchmarking import LAYERS, load, run, stand_in


@pytest.fixture
def bench_model(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("bench_model", monkeypatch)


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
    assert "over 7x7" in capsys.readouterr().out
    report = json.loads(path.read_text())
    assert (report["benchmark"], report["complete"]) == ("model", True)
    # 2 passes, of 2 layouts, of the plain model and of 3 methods for 2 kernels.
    assert len(report["results"]) == 2 * 2 * (1 + 2 * 3)
    for row in report["results"]:
        if row["method"] == "plain":
            assert row["over 7x7"][0] == 1
        assert row["over best"][0] > 0


@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
def test_layers_of_a_model_get_its_layout(
    bench_model: ModuleType, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    size = bench_model.Size((2, 2), (8, 16), 32, 2)
    model = bench_model.make_model(size, "17x17", "dcls", layout, "cpu", "")
    seen = []
    layers = [block.depthwise for stage in model.stages for block in stage]
    for layer in layers:
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    bench_model.make_step(model, size, "inference", "cpu", "float32")()
    assert len(seen) == len(layers) == 4
    assert all(maps.is_contiguous(memory_format=bench_model.LAYOUTS[layout]) for maps in seen)


def test_a_training_step_leaves_the_positions(
    bench_model: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = bench_model.Size((1,), (8,), 16, 2)
    model = bench_model.make_model(size, "23x23", "dcls", "NCHW", "cpu", "")
    layer = model.stages[0][0].depthwise
    before = layer.P.detach().clone()
    step = bench_model.make_step(model, size, "training", "cpu", "float32")
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


def test_one_command_measures_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The commands of suite.py are ones that the benchmarks understand."""
    suite, harness = load("suite", monkeypatch), load("harness", monkeypatch)
    upstream = stand_in(tmp_path, LAYERS.format(factor=1))
    assert suite.main(["--dry-run", "--upstream", str(upstream)]) == 0
    commands = suite.cpu_commands(2, upstream)
    monkeypatch.chdir(suite.ROOT)
    files = {file.stem for file in suite.RESULTS.glob("*-cpu.json")}
    assert files <= {f"{name}-cpu" for name in commands}
    assert "--upstream" in commands["model"]
    assert "--upstream" not in commands["model-training"]
    said = capsys.readouterr().out
    measured: list[str] = []
    monkeypatch.setattr(harness, "run", lambda name, *_, **__: measured.append(name) or 0)
    monkeypatch.setattr(load("bench_device", monkeypatch), "best_rates", lambda _: {})
    monkeypatch.setattr(load("bench_model", monkeypatch), "make_model", lambda *_: None)
    for _, program, *arguments in commands.values():
        assert program in said
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        assert load(Path(program).stem, monkeypatch).main() == 0
    assert set(measured) == {benchmark.name for benchmark in suite.BENCHMARKS}
