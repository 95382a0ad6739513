"""bench_parts: what it makes of times, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarking import load, run

SPEC = "4x2x5x6:3x3:1:v1"


def test_parts_are_those_that_the_times_are_made_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bench, path = load("bench_parts", monkeypatch), tmp_path / "parts.json"
    called = []

    def timed(steps: Any, options: Any) -> Any:
        """3 ms for a call, 2 ms for an image, and 5 ms more for one with all cells."""
        called.extend(step() for step in steps.values())
        found = {}
        for name in steps:
            cells, count = name.split("/")
            found[name] = [(3 + int(count) * (7 if cells == "all" else 2)) / 1e3]
        return found

    rates = {"bytes_per_s": 1e9, "multiply_adds_per_s": 1e9}
    monkeypatch.setattr(bench.bench_device, "best_rates", lambda _: rates)
    monkeypatch.setattr(bench.harness, "time_steps", timed)
    assert run(bench, monkeypatch, "--cases", SPEC, "--json", str(path)) == 0
    rows = json.loads(path.read_text())["results"]
    assert [(row["layout"], row["pass"]) for row in rows] == [
        (layout, which)
        for layout in ("contiguous", "channels_last")
        for which in (bench.FORWARD, bench.OF_INPUT, bench.OF_KERNEL)
    ]
    assert len(called) == 4 * len(rows)
    for row in rows:
        assert [row[f"{part} ms"] for part in ("lists", "planes", "products")] == [3, 8, 20]
        assert row["ms"][0] == 31
        # A new element lies on the four cells in the middle of 5x6 points, or fewer.
        assert 0 < row["of the peak"] <= 4 * 4 * 2 * 30 / 1e9 / 20e-3
        assert row["attained"] == pytest.approx(row["of the peak"] * 20 / 31, rel=0.01)


@pytest.mark.parametrize("spec", ["4x2x9:3:1:v1", "1x2x5x6:3x3:1:v1", "4x2x5x6:3x3:1:v1:1"])
def test_it_takes_depthwise_planes_and_a_batch(
    spec: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = load("bench_parts", monkeypatch)
    with pytest.raises(SystemExit):
        run(bench, monkeypatch, "--cases", spec)
    assert "argument --cases: depthwise layers of two axes" in capsys.readouterr().err
