"""What does a second thread gain, and what does it cost on a machine that is busy?

    python benchmarks/bench_threads.py --busy 2

The same calls on one and on two threads, in a process of its own for each setting of OpenMP: first
on the machine as it is, then beside so many processes that do nothing but compute. Such a machine
stops a thread now and then for some milliseconds: most calls do not notice, a few take a hundred
times longer. So what is given is the mean of the calls of a second, not the median.

``over 1`` is how many times longer a call takes on two threads than on one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

import bench_im2col
import conv_cases
import harness
import torch
from conv_cases import DCLS_LAYER, Case, Problem
from harness import PASSES, Row

import DCLS
from DCLS.delays import DelayLinear
from DCLS.functional import construct_kernel

#: What is set before a process starts: the names of OpenMP and of GCC's runtime, which is torch's.
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "default": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
}
THREADS = (1, 2)


def _layer(spec: str) -> harness.Step:
    """A training step of a depthwise layer."""
    case = Case.parse(spec)
    (layer,) = conv_cases.make_layers(case, [DCLS_LAYER], "cpu", "float32", "").values()
    return conv_cases.make_step(
        layer, Problem.random(case, "contiguous", "cpu", "float32"), PASSES[1]
    )


def _im2col(*sizes: int) -> harness.Step:
    """A training step of im2col on one axis, of sizes (batch, channels, length, grid points)."""
    batch, channels, length, size = sizes
    case = bench_im2col.Case(batch, channels, channels, (length,), 9, size)
    problem = bench_im2col.Problem(case, "v1", "cpu")
    run, tensors = bench_im2col.runs_of(problem, bench_im2col.IM2COL, 1 << 26)
    return bench_im2col.make_step(run, tensors, problem.cotangent, PASSES[1])


def _construct() -> harness.Step:
    """The dense kernels of gaussians."""
    weight, P = torch.randn(128, 128, 9), torch.randn(2, 128, 128, 9)
    SIG = torch.full_like(P, 0.5)
    return lambda: construct_kernel(weight, P, SIG, dilated_kernel_size=(17, 17), version="gauss")


def _delays() -> harness.Step:
    """A step of time of whole delays."""
    torch.manual_seed(0)
    layer = DelayLinear(256, 256, 24)
    DCLS.round_(layer)
    x, state = torch.randn(128, 256), layer.initial_state(128)
    with torch.no_grad():
        taps = layer.taps()

    def run() -> object:
        with torch.no_grad():
            return layer.step_(x, state, taps)

    return run


CALLS: dict[str, Callable[[], harness.Step]] = {
    "layer 8x96x56x56": lambda: _layer("8x96x56x56:17x17:34:v1"),
    "layer 8x384x14x14": lambda: _layer("8x384x14x14:17x17:34:v1"),
    "layer 8x768x7x7": lambda: _layer("8x768x7x7:7x7:9:v1"),
    "im2col 4x16x512": lambda: _im2col(4, 16, 512, 65),
    "im2col 8x64x1024": lambda: _im2col(8, 64, 1024, 129),
    "construct 128x128x9": _construct,
    "delays 128x256": _delays,
}


def mean_seconds(step: harness.Step, threads: int, seconds: float) -> float:
    """What a call takes, warmed up, over all calls of so many seconds."""
    torch.set_num_threads(threads)
    step()
    count, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds or count < 2:
        step()
        count += 1
    return taken / count


def measure_here(calls: list[str], seconds: float) -> dict[str, list[float]]:
    """Milliseconds of calls on each number of threads."""
    found: dict[str, list[float]] = {}
    for name in calls:
        step = CALLS[name]()
        found[name] = [1e3 * mean_seconds(step, threads, seconds) for threads in THREADS]
    return found


def measure(environment: str, busy: int, options: argparse.Namespace) -> list[Row]:
    """Returns the rows of a setting beside so many busy processes."""
    command = [sys.executable, __file__, "--here", "--seconds", str(options.seconds)]
    command += ["--calls", *options.calls]
    with ExitStack() as stack:
        for _ in range(busy):
            process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(process.wait)
            stack.callback(process.kill)
        done = subprocess.run(
            command,
            env={**os.environ, **ENVIRONMENTS[environment]},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return [
        {
            "environment": environment,
            "busy": str(busy),
            "call": name,
            "1 thread ms": harness.rounded(one),
            "2 threads ms": harness.rounded(two),
            "over 1": harness.rounded(two / one),
        }
        for name, (one, two) in json.loads(done.stdout).items()
    ]


def show(rows: list[Row]) -> str:
    """Lays the rows out."""
    return f"{harness.table(rows)}\n\nThe times here are single means, without a range."


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = harness.make_parser("What a second thread gains, and costs on a busy machine.")
    add = parser.add_argument
    help = "processes that keep the machine busy (default: %(default)s)"
    add("--busy", type=harness.positive_int, default=2, metavar="N", help=help)
    help = "of each measurement (default: %(default)s)"
    add("--seconds", type=float, default=1.0, help=help)
    add("--calls", nargs="+", choices=CALLS, default=list(CALLS), metavar="CALL")
    add("--environments", nargs="+", choices=ENVIRONMENTS, default=list(ENVIRONMENTS))
    add("--here", action="store_true", help=argparse.SUPPRESS)  # the child's part
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure_here(options.calls, options.seconds)))
        return 0
    harness.apply_options(parser, options)
    if options.device != "cpu":
        parser.error("argument --device: this benchmark is of the CPU")
    points = [(name, busy) for busy in (0, options.busy) for name in options.environments]
    return harness.run(
        "threads", parser, options, points, lambda point: measure(*point, options), show=show
    )


if __name__ == "__main__":
    sys.exit(main())
