"""What the benchmarks share: options, timing, the other DCLS, the machine, tables and JSON.

How times are taken. A machine is never quiet, and what disturbs it lasts for seconds. So the steps
that are to be compared run in turn, A B C C B A ..., one sample each a round, so that none always
follows the same; ratios are taken round by round, between neighbours in time; and a result is the
median over the rounds with the lowest and highest beside it. A sample is the mean of as many calls
as fill a minimum time. Before the first round each step has run twice. On CUDA the time is that
between two events. No cache is flushed between calls, neither a CPU's nor a GPU's L2: what fits in
one is found there by the next call, as it would be in a loop.

Products and convolutions in float32 are in float32: TF32, which cuDNN would use on GPUs that have
it, is off. It would be another arithmetic than that of the kernels that it is compared with.

A step of more than half a second is slow: on CPU it runs once before the first round, and the
option ``--slow-repeats`` ends its part after so many rounds, so that a peer that takes a hundred
times longer does not take a hundred times the run. Its ratios are those of the rounds it was in.

Peak memory is the subject of :mod:`peak_memory`.
"""

from __future__ import annotations

import argparse
import datetime as dt
import gc
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import checkout
import torch

from DCLS import info

Step = Callable[[], object]

_MAX_CALLS = 100_000
_BURST = 10
_SLOW_SECONDS = 0.5
_UPSTREAM_FILE = Path("DCLS", "construct", "modules.py")


# ---------------------------------------------------------------------------------------- options


def positive_int(text: str) -> int:
    """A type for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"takes an integer of at least 1, got {text!r}")
    return value


def make_parser(description: str) -> argparse.ArgumentParser:
    """Returns a parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--threads",
        type=positive_int,
        default=torch.get_num_threads(),
        metavar="N",
        help="threads of torch on the CPU (default: torch's own, here %(default)s)",
    )
    parser.add_argument(
        "--repeats",
        type=positive_int,
        metavar="N",
        help="rounds of samples (default: 10, with --quick 3)",
    )
    parser.add_argument(
        "--slow-repeats",
        type=positive_int,
        metavar="N",
        help=f"rounds for steps of more than {_SLOW_SECONDS} s (default: as for all)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="fewer rounds of shorter samples: for a glance, not for publication",
    )
    parser.add_argument(
        "--upstream",
        type=Path,
        metavar="FOLDER",
        help="measure DCLS 0.1.1 too, from the FOLDER of "
        "pip install --target FOLDER --no-deps dcls==0.1.1",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there as well")
    return parser


def apply_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Checks the common options, completes them, and sets the number of threads, and TF32 off.

    Adds ``min_seconds``, the least duration of a sample. Leaves with status 2 and a message where
    the options ask for what cannot be, before anything is measured.
    """
    if options.device == "cuda":
        status = info.collect()["cuda"]
        if not torch.cuda.is_available():
            parser.error("argument --device: torch finds no CUDA device")
        if not status["available"]:
            parser.error(f"argument --device: DCLS has no CUDA here: {status['reason']}")
    if options.upstream is not None and not (options.upstream / _UPSTREAM_FILE).is_file():
        parser.error(
            f"argument --upstream: there is no {_UPSTREAM_FILE} in {options.upstream}; fill it by "
            f"pip install --target {options.upstream} --no-deps dcls==0.1.1"
        )
    if options.json is not None:
        if not options.json.parent.is_dir():
            parser.error(f"argument --json: there is no folder {options.json.parent}")
        if options.json.is_dir():
            parser.error(f"argument --json: takes a file, {options.json} is a folder")
    if options.repeats is None:
        options.repeats = 3 if options.quick else 10
    options.min_seconds = 0.005 if options.quick else 0.05
    torch.set_num_threads(options.threads)
    with warnings.catch_warnings():
        # From torch 2.9 on there is another way to say it, which older ones do not know.
        warnings.filterwarnings("ignore", "Please use the new API settings to control TF32")
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


# ----------------------------------------------------------------------------------------- timing


@dataclass(frozen=True)
class Summary:
    """A median and how far the samples spread around it."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary:
        return cls(statistics.median(samples), min(samples), max(samples))

    @classmethod
    def read(cls, entry: Mapping[str, float]) -> Summary:
        """Of what :meth:`as_json` returned."""
        return cls(entry["median"], entry["min"], entry["max"])

    def show(self, digits: int, factor: float = 1.0) -> str:
        """Text such as ``12.3 [11.9-14.0]``."""
        median, lowest, highest = (
            f"{value * factor:.{digits}f}" for value in (self.median, self.lowest, self.highest)
        )
        return f"{median} [{lowest}-{highest}]"

    def as_json(self) -> dict[str, float]:
        return {"median": self.median, "min": self.lowest, "max": self.highest}


@dataclass
class Timing:
    """Seconds a call, one sample for each round, each the mean over ``calls`` calls."""

    calls: int
    samples: list[float] = field(default_factory=list)

    @property
    def summary(self) -> Summary:
        return Summary.of(self.samples)

    def as_json(self) -> dict[str, Any]:
        samples = [float(f"{sample:.6g}") for sample in self.samples]
        return {**Summary.of(samples).as_json(), "calls_per_sample": self.calls, "samples": samples}


def time_interleaved(
    steps: Mapping[str, Step],
    *,
    device: str,
    repeats: int,
    min_seconds: float,
    slow_repeats: int | None = None,
) -> dict[str, Timing]:
    """Times steps in turn, see the top of this file.

    Args:
        steps: what to time, by name; called without arguments.
        device: ``cpu`` or ``cuda``.
        repeats: rounds.
        min_seconds: least duration of a sample, in seconds.
        slow_repeats: rounds for slow steps, if fewer than ``repeats``; None for as many.
    """
    timings, rounds = {}, {}
    for name, step in steps.items():
        once = _sample(step, 1, device)
        # On CUDA the first call of all loads libraries, which takes seconds.
        if device == "cuda" or once <= _SLOW_SECONDS:
            once = _sample(step, 1, device)
        if device == "cuda" and 0 < once < min_seconds:
            # One call alone waits for its launches, which in a sample overlap with other calls.
            once = _sample(step, min(_BURST, math.ceil(min_seconds / once)), device)
        calls = _MAX_CALLS if once <= 0 else math.ceil(min_seconds / once)
        timings[name] = Timing(min(max(calls, 1), _MAX_CALLS))
        rounds[name] = repeats if once <= _SLOW_SECONDS else min(repeats, slow_repeats or repeats)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for index in range(repeats):
            gc.collect()
            for name in list(steps) if index % 2 == 0 else reversed(steps):
                if index >= rounds[name]:
                    continue
                step = steps[name]
                timings[name].samples.append(_sample(step, timings[name].calls, device))
    finally:
        if collecting:
            gc.enable()
    return timings


def time_steps(steps: Mapping[str, Step], options: argparse.Namespace) -> dict[str, Timing]:
    """Times steps in turn, as the options of :func:`make_parser` ask for."""
    return time_interleaved(
        steps,
        device=options.device,
        repeats=options.repeats,
        min_seconds=options.min_seconds,
        slow_repeats=options.slow_repeats,
    )


def _sample(step: Step, calls: int, device: str) -> float:
    """Mean seconds a call."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            step()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / calls
    begin = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - begin) / calls


def ratios(slow: Timing, fast: Timing) -> Summary:
    """How many times longer ``slow`` takes than ``fast``, in each round that has both."""
    return Summary.of([a / b for a, b in zip(slow.samples, fast.samples, strict=False)])


# --------------------------------------------------------------------------------- the other DCLS


def load_upstream(folder: Path) -> ModuleType:
    """Loads the construct modules of another DCLS beside ours, under another name."""
    spec = importlib.util.spec_from_file_location("upstream_dcls", folder / _UPSTREAM_FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def upstream_version(folder: Path) -> str:
    """The version that pip noted in a folder; "of unknown version" where it noted none."""
    for found in importlib.metadata.distributions(name="dcls", path=[str(folder)]):
        return found.version
    return "of unknown version"


# ------------------------------------------------------------------------------------ the machine


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine_facts(device: str) -> dict[str, Any]:
    """What the numbers depend on, as JSON can hold it."""
    facts = info.collect()
    found: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cpus": facts["threads"]["cpus"],
        "threads": torch.get_num_threads(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "system": f"{platform.system()} {platform.machine()}",
        "python": facts["python"],
        "torch": facts["torch"]["version"],
        "dcls": {"version": facts["dcls"]["version"], **checkout.commit()},
        "compiler": facts["native"]["compiler"],
        "simd": facts["native"]["simd"],
    }
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
        found["driver"] = facts["cuda"]["driver"]
        found["cuda_toolkit"] = facts["native"]["cuda_toolkit"]
        found["cuda_of_torch"] = facts["torch"]["cuda"]
        backends = torch.backends
        found["tf32"] = backends.cudnn.allow_tf32 or backends.cuda.matmul.allow_tf32
    return found


# ----------------------------------------------------------------------------------------- output


def progress(message: str) -> None:
    """Says on stderr what is being measured."""
    print(message, file=sys.stderr, flush=True)


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int) -> str:
    """Lays out rows under headers; all but the first ``text_columns`` are set flush right."""
    table = [list(headers), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        cells = [
            text.ljust(width) if column < text_columns else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(table[0]), rule, *(line(row) for row in table[1:])])


def report(
    benchmark: str, options: argparse.Namespace, results: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns what a JSON file of results holds: how they came about, and the results."""
    found = {
        "benchmark": benchmark,
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "device": options.device,
        "repeats": options.repeats,
        "min_seconds": options.min_seconds,
        "machine": machine_facts(options.device),
    }
    if options.upstream is not None:
        found["upstream"] = upstream_version(options.upstream)
    return {**found, "results": list(results)}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a report, in one step: a reader finds what was there before or all of the new."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    draft.replace(path)
