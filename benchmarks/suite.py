"""The list of the benchmarks: what ``scripts/gpu_check.sh`` runs and ``docs/performance.md`` shows.

A new benchmark is a file here and an entry in :data:`BENCHMARKS`. The file takes the options of
``harness.make_parser``, writes its JSON with ``harness.report`` under the name of the entry, and
has a function ``table(results, upstream)`` that lays the results out as text; if it answers several
questions, each is an entry, and ``layout`` names the module that has the function for it.

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
    #: into several runs, so that those that have ended are kept when time is up. Empty where it
    #: takes too long for the check of a GPU, and is to be run by hand.
    gpu_runs: dict[str, tuple[str, ...]]
    takes_upstream: bool = True  #: whether --upstream adds DCLS 0.1.1 to it
    layout: str = ""  #: module with the function ``table``, if not the file itself
    picture: str = ""  #: program in docs/ that draws the results into docs/images

    @property
    def path(self) -> Path:
        return FOLDER / self.file

    @property
    def layout_module(self) -> str:
        return self.layout or self.path.stem


#: What method="auto" could take on a GPU, and a plain layer.
_GPU_METHODS = ("--methods", "direct", "conv", "plain")

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
        "conv",
        "One layer: convolving with the constructed kernel",
        "bench_conv.py",
        {
            "": _GPU_METHODS,
            # In 16 bits the layers that they are for.
            **{
                dtype: ("--cases", "17x17", "23x23", "--dtype", dtype, *_GPU_METHODS)
                for dtype in ("float16", "bfloat16")
            },
        },
    ),
    Benchmark(
        "rule",
        'The choice of the method: what the rule behind method="auto" rests on',
        "bench_conv.py",
        {f"{ndim}d": ("--rule", "--axes", str(ndim)) for ndim in (2, 1, 3)},
        takes_upstream=False,
        layout="conv_rule",
    ),
    Benchmark(
        "scaling",
        "One layer: how its times grow with the sizes",
        "bench_conv.py",
        {},
        layout="conv_scaling",
        picture="draw_scaling.py",
    ),
    Benchmark("im2col", "The im2col variant", "bench_im2col.py", {"": ()}),
    Benchmark(
        "model",
        "A whole model: training and inference steps",
        "bench_model.py",
        # It writes its JSON after whole passes.
        {
            f"{dtype}-{which}": ("--dtype", dtype, "--passes", which)
            for dtype in ("float32", "bfloat16")
            for which in ("training", "inference")
        },
    ),
)
