"""The list of the benchmarks: what ``scripts/gpu_check.sh`` runs and ``docs/performance.md`` shows.

A new benchmark is a file here and an entry in :data:`BENCHMARKS`. The file takes the options of
``harness.make_parser``, writes its JSON with ``harness.report`` under the name of the entry, and
has a function ``table(results, upstream)`` that lays the results out as text.

An entry may stand here before its file does: then it is shown as not measured yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"


@dataclass(frozen=True)
class Benchmark:
    """One question, and the program that answers it."""

    name: str  #: in the JSON, "benchmark"
    title: str
    file: str
    #: Arguments of each run on a GPU, by the name of the run. What a long benchmark measures is cut
    #: into several runs, so that those that have ended are kept when time is up.
    gpu_runs: dict[str, tuple[str, ...]]
    takes_upstream: bool = True  #: whether --upstream adds DCLS 0.1.1 to it

    @property
    def path(self) -> Path:
        return FOLDER / self.file


BENCHMARKS = (
    Benchmark(
        "device",
        "What the machine can do: a copy and a matrix product",
        "bench_device.py",
        {"": ()},
        takes_upstream=False,
    ),
    Benchmark(
        "construct",
        "Building the dense kernel",
        "bench_construct.py",
        {case: ("--cases", case) for case in ("2d", "depthwise", "1d", "3d")},
    ),
    Benchmark(
        "direct_conv",
        "Direct convolution, which skips the zeros of the kernel",
        "bench_direct_conv.py",
        {"": ()},
    ),
    Benchmark("im2col", "The im2col variant", "bench_im2col.py", {"": ()}),
    Benchmark("model", "A whole model: a training step", "bench_model.py", {"": ()}),
)
