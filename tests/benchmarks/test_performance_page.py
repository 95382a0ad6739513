"""docs/performance.md is what docs/make_performance.py makes of benchmarks/results."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from benchmarking import load

ROOT = Path(__file__).parents[2]
MAKE = ROOT / "docs" / "make_performance.py"

pytestmark = pytest.mark.skipif(not MAKE.is_file(), reason="takes a source tree")

DEVICE = {
    "benchmark": "device",
    "device": "cuda",
    "date": "2031-02-03T04:05:06+00:00",
    "command": "python benchmarks/bench_device.py --device cuda",
    "machine": {
        "gpu": "NVIDIA Imaginary 100",
        "driver": "13.7",
        "cuda_toolkit": "13.6",
        "torch": "9.9",
        "dcls": {"version": "1.2.3", "commit": "0123456789abcdef", "changed": True},
    },
    "results": [{"step": "copy of 1 MiB", "dtype": "float32", "ms": [2.0, 1.0, 4.0, 3]}],
}
CHECK = {
    "check": "gpu",
    "gpu": "NVIDIA Imaginary 100",
    "driver": "999.1",
    "toolkit": "13.7",
    "torch": "9.9",
    "date": "2031-02-03T04:05:06+00:00",
    "commit": "unknown",
    "command": "scripts/gpu_check.sh",
    "minutes": 7.5,
    "steps": [
        {"name": "build", "status": "passed", "reason": "", "summary": "", "seconds": 61.5},
        {
            "name": "racecheck",
            "status": "failed",
            "reason": "a | b",
            "summary": "",
            "seconds": 2.5,
        },
    ],
}


@pytest.fixture
def make(monkeypatch, capsys):
    """Runs a program of docs/; returns its exit status and what it said."""

    def run(*arguments: object, name: str = "make_performance") -> tuple[int, str]:
        program = load(name, monkeypatch, ROOT / "docs")
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        status = program.main()
        return status, "".join(capsys.readouterr())

    return run


def test_the_committed_page_is_current(make):
    assert make("--check") == (0, "")


#: Rows of the tables of docs/choosing.md: the file, the case, and the version of im2col cases.
CONV = [
    ("8x96x56x56:17x17:34:v1", ""),
    ("8x96x56x56:23x23:26:gauss", ""),
    ("8x256x4096:129:16:v1", ""),
    ("2x32x16x32x32:9x9x9:20:v1", ""),
    ("32x256x100:25:1:v1:1", ""),
    ("32x256x100:25:1:gauss:1", ""),
    ("8x64x56x56 to 64, 9 in 15", "v0"),
    ("8x64x56x56 to 64, 9 in 31", "v0"),
]


def fastest(case: str, version: str, step: str, methods: set[str], layout: str = "") -> dict:
    """The row of results with the least time."""
    name = "im2col-cpu" if version else "conv-cpu"
    results = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())["results"]
    rows = [r for r in results if r["case"] == case and r["pass"] == step]
    rows = [r for r in rows if r["method"] in methods and r.get("version", "") == version]
    rows = [r for r in rows if r.get("positions") != "initial" and layout in r.get("layout", "")]
    return min(rows, key=lambda row: row["ms"][0])


def numbers(cells: list[str]) -> list[float]:
    """The times in ms and the memory in MiB."""
    found = re.findall(r"([\d.]+) (ms|s|MiB)", " ".join(cells))
    return [1000 * float(n) if unit == "s" else float(n) for n, unit in found]


def test_the_figures_of_the_page_on_choosing_are_those_of_the_results():
    text = (ROOT / "docs" / "choosing.md").read_text()
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    timed = [numbers(row[1:]) for row in rows if numbers(row[1:])]
    want = []
    for case, version in CONV:
        ours = fastest(case, version, "forward+backward", {"dcls", "im2col"})
        torch = fastest(case, version, "forward+backward", {"conv"})
        want.append([ours["ms"][0], ours["MiB"], torch["ms"][0], torch["MiB"]])
    for number, layout in ((0, "channels_last"), (0, "contiguous"), (3, ""), (4, ""), (6, "")):
        both = ({"dcls", "im2col"}, {"conv"})
        want.append([fastest(*CONV[number], "forward", m, layout)["ms"][0] for m in both])
    assert len(timed) == len(want)
    for got, expected in zip(timed, want, strict=True):
        assert got == pytest.approx(expected, rel=0.03)


def test_without_results_it_says_so(make, tmp_path):
    page = tmp_path / "page.md"
    assert make("--results", tmp_path, "--page", page) == (0, "")
    text = page.read_text()
    # Each of the sections, the origins, and the GPU.
    assert text.count("*Not measured yet.*") == text.count("\n## ") == 11
    assert "**Nothing has been measured on a GPU.**" in text
    assert "*The tests have not been run on a GPU yet.*" in text


def test_results_are_shown_with_their_origin(make, tmp_path):
    (tmp_path / "device-x.json").write_text(json.dumps(DEVICE))
    (tmp_path / "gpu-check-x.json").write_text(json.dumps(CHECK))
    page = tmp_path / "page.md"
    assert make("--results", tmp_path, "--page", page) == (0, "")
    text = page.read_text()
    assert text.count("*Not measured yet.*") == 10
    assert "Nothing has been measured on a GPU" not in text
    for part in (
        "NVIDIA Imaginary 100, CUDA 13.6 (driver for 13.7); torch 9.9; 2031-02-03; DCLS 1.2.3, ",
        "DCLS 1.2.3, commit 0123456789, changed since",
        "`python benchmarks/bench_device.py --device cuda`",
        "**NVIDIA Imaginary 100**, driver 999.1, CUDA 13.7; torch 9.9; 2031-02-03; commit unknown",
    ):
        assert part in text
    rows = [line.replace(" ", "") for line in text.splitlines() if line.startswith("|")]
    assert rows[2:] == ["|build|passed|61.5||", "|racecheck|failed|2.50|a\\|b|"]
    assert "have not been run on a GPU yet" not in text


MODEL = {
    "model": "cuda",
    "command": "python benchmarks/cuda_model.py --write",
    "architecture": "sm_90",
    "nvcc": "Build imaginary",
    "results": [
        {
            "layer": "96@56x56 17x17 v1",
            "dtype": "float32",
            "layout": "NCHW",
            "kernel": kernel,
            "pass": which,
            "registers": 77,
            "spill_instructions": 3,
            "blocks": {"H200": 5},
            "instructions": 400,
            "classes": {"FMA": 90, "tensor": 10, "integer": 300},
            "load_wavefronts": 1.234,
            "us": {"H200": time, "A100": 2 * time},
            "binds": {"H200": "issue"},
            "floor_us": {"H200": 124.4},
        }
        for kernel, which, time in (
            ("layer_prepare", "forward", 4.5),
            ("conv_forward", "forward", 570.7),
            ("conv_forward", "backward", 560.0),
        )
    ],
}


def test_the_model_is_shown_as_a_model(make, tmp_path):
    page = tmp_path / "page.md"
    assert make("--results", tmp_path, "--page", page) == (0, "")
    assert "*Not modelled yet.*" in page.read_text()
    (tmp_path / "cuda-model.json").write_text(json.dumps(MODEL))
    assert make("--results", tmp_path, "--page", page) == (0, "")
    text = page.read_text()
    assert "**Nothing in this section is measured.**" in text
    assert "**Nothing has been measured on a GPU.**" in text
    assert "*Not modelled yet.*" not in text
    rows = [line.replace(" ", "") for line in text.splitlines() if line.startswith("|")]
    # Layer, model on each GPU, floor, and the column for what a GPU will say.
    assert "|layer|H200,model|A100,model|floor(H200)|measured|" in rows
    assert "|96@56x5617x17v1,float32,NCHW|575+560|1150+1120|124||" in rows
    assert "|conv_forward(backward),float32,NCHW|77|3|5|400|25%|1.23|issue|" in rows


def test_check_sees_a_change(make, tmp_path):
    page = tmp_path / "page.md"
    files = ("--results", tmp_path, "--page", page)
    status, _ = make(*files, "--check")
    assert status == 1
    assert not page.exists()
    make(*files)
    assert make(*files, "--check") == (0, "")
    (tmp_path / "gpu-check-x.json").write_text(json.dumps(CHECK))
    status, said = make(*files, "--check")
    assert status == 1
    assert "run python docs/make_performance.py" in said


def row(**more: object) -> dict[str, object]:
    return {"pass": "forward+backward", "positions": "uniform", "ms": [2.0, 1.5, 4.0, 5], **more}


def test_every_number_is_a_result(make, tmp_path):
    """Sentences and tables follow from the rows."""
    head = {"device": "cpu", "date": "2031-02-03T04:05:06+00:00", "command": "x", "complete": True}
    head["machine"] = {"cpu": "Imaginary", "simd": "avx9", "threads": 3, "cpus": 4, "torch": "9.9"}
    head["machine"] |= {"dcls": {"version": "1.2.3"}}
    conv = [
        row(case="2x4x9x9:5x5:3:v1", method=method, layout=layout, way="direct", attained=0.25)
        | {"ms": [time, time, time, 5], "over best": [time / 2, time / 2, time / 2, 5]}
        for method, layout, time in (
            ("dcls", "contiguous", 2.0),
            ("dcls", "channels_last", 3.0),
            ("upstream", "contiguous", 90.0),
            ("upstream", "channels_last", 84.0),
        )
    ]
    conv.append({**conv[0], "positions": "initial", "ms": [1.25, 1.0, 1.5, 5]})
    plain = {**conv[0], "method": "plain", "positions": "-", "over best": [3.5, 3.5, 3.5, 5]}
    small = [
        row(layer="Dcls2d") | {"pass": which, "over torch": [over, over, over, 300]}
        for which, over in (("forward", 1.37), ("forward+backward", 1.19))
    ]
    rule = [
        {"case": "2x4x9x9:5x5:3:v1", "layout": "contiguous", "pass": "forward", "chosen": "conv"}
        | {"ratio": [value, value, value, 3]}
        for value in (0.25, 1.0, 1.21)
    ]
    for name, benchmark, rows in (
        ("conv", "conv", [*conv, plain]),
        ("small", "small", small),
        ("conv-rule", "rule", rule),
    ):
        content = {**head, "benchmark": benchmark, "upstream": "0.1.1", "results": rows}
        (tmp_path / f"{name}-cpu.json").write_text(json.dumps(content))
    page = tmp_path / "page.md"
    assert make("--results", tmp_path, "--page", page) == (0, "")
    text = " ".join(page.read_text().split())
    for part in (
        "on this machine: Imaginary, AVX9, 3 threads of 4 CPUs; torch 9.9.",
        "(depthwise 5x5, v1, 3 elements, 2x4x9x9) takes 2.00 ms.",
        "0.1.1 takes 42 times as long, and torch's plain 7x7 layer 3.5 times.",
        "the layers reach 25% to 25% of it",
        "step takes 1.2 times as long as that of `nn.Conv2d`, and a forward pass 1.4 times",
        "at most 1.25 and 1.5 are allowed",
        "3 in all",
        "1 choices took more than 10% longer",
        # The third root of 0.25 * 1.21.
        "the other method takes 1.5 times as long",
    ):
        assert part in text, part
    (line,) = [x for x in page.read_text().splitlines() if x.startswith("| depthwise 5x5")]
    cells = [cell.strip() for cell in line.split("|")[2:-1]]
    assert cells == ["2.00 ms", "1.25 ms", "42 times", "", "3.5 times"]


def test_pictures_are_of_the_results(make, tmp_path):
    """Drawn anew for other results, and missed where they are not."""
    pytest.importorskip("matplotlib")
    for file in (ROOT / "benchmarks" / "results").glob("*.json"):
        shutil.copy(file, tmp_path)
    files = ("--results", tmp_path, "--images", tmp_path)
    pages = (*files, "--page", tmp_path / "page.md")
    make(*pages)
    status, said = make(*pages, "--check")
    assert status == 1
    assert "run python docs/draw_performance.py for conv-cpu.png" in said
    make(*files, name="draw_performance")
    assert make(*pages, "--check") == (0, "")
    assert (tmp_path / "scaling-cpu.png").read_bytes().startswith(b"\x89PNG")
    file = tmp_path / "model-cpu.json"
    file.write_text(file.read_text().replace('"ms": [', '"ms": [ '))
    status, said = make(*pages, "--check")
    assert status == 1
    assert "docs/draw_performance.py for model-cpu.png" in said


def test_a_file_of_something_else_is_an_error(make, tmp_path):
    (tmp_path / "other.json").write_text('{"benchmark": "speed of light", "device": "cpu"}')
    with pytest.raises(ValueError, match=r"other.json is neither of a benchmark"):
        make("--results", tmp_path, "--page", tmp_path / "page.md")
