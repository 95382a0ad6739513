"""docs/performance.md is what docs/make_performance.py makes of benchmarks/results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKE = ROOT / "docs" / "make_performance.py"

pytestmark = pytest.mark.skipif(not MAKE.is_file(), reason="takes a source tree")

SECONDS = {"median": 0.002, "min": 0.001, "max": 0.004}
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
    "results": [
        {"case": "copy of 1 MiB", "dtype": "float32", "bytes": 8_000_000_000, "seconds": SECONDS}
    ],
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


def make(results: Path, page: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(MAKE), "--results", str(results), "--page", str(page), *more],
        capture_output=True,
        text=True,
    )


def test_the_committed_page_is_current():
    done = subprocess.run([sys.executable, str(MAKE), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_results_it_says_so(tmp_path):
    page = tmp_path / "page.md"
    assert make(tmp_path, page).returncode == 0
    text = page.read_text()
    assert text.count("*Not measured yet.*") == text.count("\n### ") == 14
    assert "*Not run on a GPU yet.*" in text


def test_results_are_shown_with_their_origin(tmp_path):
    (tmp_path / "device-x.json").write_text(json.dumps(DEVICE))
    (tmp_path / "gpu-check-x.json").write_text(json.dumps(CHECK))
    page = tmp_path / "page.md"
    done = make(tmp_path, page)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.count("*Not measured yet.*") == 13
    for part in (
        "NVIDIA Imaginary 100, CUDA 13.6 (driver for 13.7); torch 9.9; 2031-02-03; DCLS 1.2.3, ",
        "DCLS 1.2.3, commit 0123456789, changed since",
        "$ python benchmarks/bench_device.py --device cuda",
        "copy of 1 MiB  float32  2.000 [1.000-4.000]  4000.0 [2000.0-8000.0]  GB/s",
        "**NVIDIA Imaginary 100**, driver 999.1, CUDA 13.7; torch 9.9; 2031-02-03; commit unknown",
        "| build | passed | 61.5 |  |",
        "| racecheck | failed | 2.5 | a \\| b |",
    ):
        assert part in text
    assert "*Not run on a GPU yet.*" not in text


def test_check_sees_a_change(tmp_path):
    page = tmp_path / "page.md"
    done = make(tmp_path, page, "--check")
    assert done.returncode == 1
    assert not page.exists()
    make(tmp_path, page)
    assert make(tmp_path, page, "--check").returncode == 0
    (tmp_path / "gpu-check-x.json").write_text(json.dumps(CHECK))
    done = make(tmp_path, page, "--check")
    assert done.returncode == 1
    assert "run python docs/make_performance.py" in done.stderr


def test_a_file_of_something_else_is_an_error(tmp_path):
    (tmp_path / "other.json").write_text('{"benchmark": "speed of light", "device": "cpu"}')
    done = make(tmp_path, tmp_path / "page.md")
    assert done.returncode != 0
    assert "other.json is neither of a benchmark" in done.stderr
