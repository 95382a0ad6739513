"""What ``docs/performance.md`` says of learned delays (benchmarks/bench_delays.py)."""

from __future__ import annotations

import harness
from performance_sections import Report, markdown, paragraph


def delays_lines(report: Report) -> list[str]:
    """A training step over the schedule of widths, and one step of time with whole delays."""
    rows = report["results"]
    schedule = [
        {name: row[name] for name in row if name != "part"}
        for row in harness.select(rows, {"part": "schedule"})
    ]
    steps = [
        {name: row[name] for name in ("way", "batch", "ms", "over nn.Linear")}
        for row in harness.select(rows, {"part": "step"})
        if "whole" in row["way"]
    ]
    return [
        *paragraph(
            "A training step of `DelayLinear(256, 256, 24)` on 100 steps of 128 sequences, over "
            "the widths of a schedule, beside torch's convolution with the dense kernel and "
            "`Dcls1d` of 0.1.1:"
        ),
        *markdown(schedule),
        *paragraph(
            "One step of time with whole delays, without gradients, beside `nn.Linear` of the "
            "size. *In place* is `step_`; *taps given* spares the comparison of the parameters:"
        ),
        *markdown(steps),
    ]
