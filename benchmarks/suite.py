"""The list of the benchmarks, and the one command that measures all of them on a CPU.

    pip install --target build/dcls-0.1.1 --no-deps dcls==0.1.1
    python benchmarks/suite.py --upstream build/dcls-0.1.1 --threads 2

It writes ``benchmarks/results/NAME-cpu.json``, the pictures, ``docs/performance.md`` and
``docs/claims.md``. On two idle cores it should take less than 40 minutes. ``scripts/gpu_check.sh``
runs the list on a GPU.

A new benchmark is a file here and an entry in :data:`BENCHMARKS`. The file takes the options of
``harness.make_parser`` and measures with ``harness.run`` under the name of the entry.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"
ROOT = FOLDER.parent

#: Arguments of each run, by the name of the run.
Runs = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Benchmark:
    """One question, and the program that answers it."""

    name: str  #: in the JSON, "benchmark"
    title: str
    file: str
    #: On a CPU. What takes long on one is measured in fewer rounds.
    cpu_runs: Runs
    #: On a GPU. What a long benchmark measures is cut into several runs, so that those that have
    #: ended are kept when time is up. Empty where it takes too long for the check of a GPU.
    gpu_runs: Runs = field(default_factory=dict)
    takes_upstream: bool = True  #: whether --upstream adds DCLS 0.1.1 to it
    without_upstream: tuple[str, ...] = ()  #: runs on a CPU that leave it out

    @property
    def path(self) -> Path:
        return FOLDER / self.file


#: What method="auto" could take on a GPU, and a plain layer.
_GPU_METHODS = ("--methods", "direct", "conv", "plain")
_FIVE = ("--repeats", "5", "--slow-repeats", "1")
_THREE = ("--repeats", "3", "--slow-repeats", "1")
_WIDTHS = (*_THREE, "--schedule")
_DEPTHWISE = (*_THREE, "--depthwise")

BENCHMARKS = (
    Benchmark(
        "device",
        "What the machine can do",
        "bench_device.py",
        {"device": ()},
        {"": ()},
        takes_upstream=False,
    ),
    Benchmark(
        "conv",
        "One layer",
        "bench_conv.py",
        {"conv": _FIVE},
        {
            "": _GPU_METHODS,
            # In 16 bits, and with TF32, the layers that they are for.
            **{
                dtype: ("--cases", "17x17", "23x23", "--dtype", dtype, *_GPU_METHODS)
                for dtype in ("float16", "bfloat16", "tf32")
            },
            # A run of its own: it needs another package.
            "fft": ("--cases", "17x17", "23x23", "--methods", "fft", "conv"),
        },
    ),
    Benchmark(
        "parts",
        "Where the time goes",
        "bench_parts.py",
        {
            "parts": ("--repeats", "7"),
            "parts-bfloat16": ("--repeats", "7", "--dtype", "bfloat16"),
        },
        takes_upstream=False,
    ),
    Benchmark(
        "small",
        "A small layer",
        "bench_small.py",
        {"small": ("--threads", "1")},
        takes_upstream=False,
    ),
    Benchmark(
        "scaling",
        "How the times of a layer grow with its sizes",
        "bench_scaling.py",
        {"scaling": _THREE},
    ),
    Benchmark(
        "rule",
        "The choice of the method",
        "bench_rule.py",
        {
            "conv-rule": _THREE,
            "conv-rule-small": ("--repeats", "5", "--few"),
            # A machine has the vectors of one of them, and leaves the other one as it is.
            "conv-rule-narrow": (*_DEPTHWISE, "--vectors", "narrow"),
            "conv-rule-wide": (*_DEPTHWISE, "--vectors", "wide"),
            "conv-rule-widths": _WIDTHS,
            "conv-rule-widths-1": (*_WIDTHS, "--threads", "1"),
        },
        {f"{ndim}d": ("--axes", str(ndim)) for ndim in (2, 1, 3)},
        without_upstream=("conv-rule", "conv-rule-small", "conv-rule-narrow", "conv-rule-wide"),
    ),
    Benchmark(
        "construct",
        "Building the dense kernel",
        "bench_construct.py",
        {"construct": _FIVE},
        {case: ("--cases", case) for case in ("2d", "depthwise", "1d", "3d")},
    ),
    Benchmark(
        "im2col",
        "The im2col variant",
        "bench_im2col.py",
        {"im2col": (*_FIVE, "--cases", "2d-7", "2d-15", "2d", "depthwise", "1d")},
        {"": ()},
        takes_upstream=False,
    ),
    Benchmark(
        "delays",
        "Learned delays",
        "bench_delays.py",
        {"delays": ("--repeats", "5", "--slow-repeats", "3")},
    ),
    Benchmark(
        "model",
        "A whole model",
        "bench_model.py",
        {
            "model": _FIVE,
            # The two that are closest, in more rounds.
            "model-training": (
                *("--repeats", "21", "--kernels", "17x17", "--passes", "training"),
                *("--layouts", "channels_last", "--no-conv"),
            ),
        },
        # It writes its JSON after whole passes.
        {
            f"{dtype}-{which}": ("--dtype", dtype, "--passes", which)
            for dtype in ("float32", "bfloat16")
            for which in ("training", "inference")
        },
        without_upstream=("model-training",),
    ),
    Benchmark(
        "claims",
        "The papers in miniature",
        "claims.py",
        {
            **{
                f"claims-{task}": ("--threads", "1", "--tasks", task)
                for task in ("pixels", "delays", "signals", "digits")
            },
            "claims-speed": ("--threads", "1", "--timing"),
        },
        takes_upstream=False,
    ),
)


def cpu_commands(threads: int, upstream: Path | None) -> dict[str, list[str]]:
    """Returns the commands that measure all on a CPU, by the name of the file of results.

    Paths start from :data:`ROOT`, for the results repeat them.
    """
    commands = {}
    for benchmark in BENCHMARKS:
        for name, arguments in benchmark.cpu_runs.items():
            command = [sys.executable, f"benchmarks/{benchmark.file}", "--threads", str(threads)]
            takes_upstream = benchmark.takes_upstream and name not in benchmark.without_upstream
            if upstream is not None and takes_upstream:
                command += ["--upstream", os.path.relpath(upstream, ROOT)]
            output = ("--json", f"benchmarks/results/{name}-cpu.json")
            commands[name] = [*command, *arguments, *output]
    return commands


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures all on a CPU, draws and writes the page; returns the exit status."""
    parser = argparse.ArgumentParser(description="Measures all benchmarks on this CPU.")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--upstream", type=Path, metavar="FOLDER", help="of DCLS 0.1.1")
    names = [name for benchmark in BENCHMARKS for name in benchmark.cpu_runs]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--dry-run", action="store_true", help="show the commands, run nothing")
    options = parser.parse_args(arguments)
    commands = cpu_commands(options.threads, options.upstream)
    steps = [commands[name] for name in options.only]
    pages = ("draw_performance", "make_performance", "make_claims")
    steps += [[sys.executable, f"docs/{name}.py"] for name in pages]
    for command in steps:
        print(*command, flush=True)
        begin = time.monotonic()
        if not options.dry_run and subprocess.run(command, cwd=ROOT).returncode != 0:
            return 1
        print(f"took {time.monotonic() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
