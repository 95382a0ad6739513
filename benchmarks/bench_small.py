"""Does a small layer cost what torch's does? There it is the calls that take the time.

    python benchmarks/bench_small.py           # 1 thread, medians of 300 rounds
    python benchmarks/bench_small.py --check   # exit status 1 if it costs more than it may

``Dcls2d(32, 32, 9, dilated_kernel_size=9, padding=4, groups=32)`` on 1x32x8x8, with the positions
of a new layer and with uniform ones, beside ``nn.Conv2d(32, 32, 9, padding=4, groups=32)``. A
sample is one call; ``over torch`` is how many times longer a layer takes, round by round.
"""

from __future__ import annotations

import argparse
import sys

import conv_cases
import harness
from conv_cases import DCLS_LAYER, Case, Problem
from harness import PASSES, POSITIONS, Row
from torch import nn

CASE = Case(1, 32, (8, 8), (9, 9), 9, "v1", 32)
#: The most that a pass may take, in times of torch's layer.
ALLOWED = {PASSES[0]: 1.5, PASSES[1]: 1.25}


def measure(which: str, options: argparse.Namespace) -> list[Row]:
    """Returns the rows of a pass."""
    make = conv_cases.make_layers
    layers: dict[str, nn.Module] = {
        positions: make(CASE, [DCLS_LAYER], "cpu", "float32", "", positions)[DCLS_LAYER]
        for positions in POSITIONS
    }
    layers["-"] = nn.Conv2d(
        CASE.channels, CASE.channels, CASE.kernel, padding=CASE.kernel[0] // 2, groups=CASE.groups
    )
    problem = Problem.random(CASE, "contiguous", "cpu", "float32")
    steps = {name: conv_cases.make_step(layer, problem, which) for name, layer in layers.items()}
    timings = harness.time_steps(steps, options)
    return [
        {
            "pass": which,
            "layer": "nn.Conv2d" if positions == "-" else "Dcls2d",
            "positions": positions,
            "ms": harness.milliseconds(seconds),
            "over torch": harness.ratio(seconds, timings["-"]),
        }
        for positions, seconds in timings.items()
    ]


def too_slow(rows: list[Row]) -> list[str]:
    """Says of each pass that takes longer than it may by how much."""
    return [
        f"{row['pass']} with {row['positions']} positions takes {row['over torch'].median} times "
        f"as long as torch's layer; at most {ALLOWED[row['pass']]} are allowed"
        for row in rows
        if row["over torch"].median > ALLOWED[row["pass"]]
    ]


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = harness.make_parser("Whether a small layer costs what torch's does.")
    parser.set_defaults(threads=1, repeats=300)
    parser.add_argument("--check", action="store_true", help="exit status 1 if it costs too much")
    options = parser.parse_args()
    harness.apply_options(parser, options)
    if options.device != "cpu":
        parser.error("argument --device: this benchmark is of the CPU")
    options.min_seconds = 0.0  # a sample is one call
    found: list[str] = []

    def show(rows: list[Row]) -> str:
        found.extend(too_slow(rows))
        return "\n".join([harness.table(rows), *found])

    status = harness.run(
        "small", parser, options, PASSES, lambda which: measure(which, options), show=show
    )
    return 1 if options.check and found else status


if __name__ == "__main__":
    sys.exit(main())
