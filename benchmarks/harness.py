"""What the benchmarks share: options, timing, the rows of results, and how they are written.

How times are taken. A machine is never quiet, and what disturbs it lasts for seconds. So steps that
are compared run in turn, A B C C B A ..., one sample each a round, and none always follows the
same. A ratio is taken round by round, between neighbours in time. A sample is the time of a call,
measured by ``torch.utils.benchmark.Timer``: it warms up, it waits for the GPU, it keeps Python's
garbage collector out. No cache is flushed between calls, neither a CPU's nor a GPU's L2.

A step of more than half a second is slow: the option ``--slow-repeats`` ends its part after so many
rounds. A peer that takes a hundred times longer then does not take a hundred times the run. Its
ratios come from the rounds that it took part in.

Float32 means float32: TF32, which cuDNN would use on GPUs that have it, is off, except for the
dtype ``tf32`` of layers.

A result is a row: what was run, and what it took. A time or a ratio is a :class:`Summary`, in JSON
``[median, lowest, highest, rounds]``. A column ``ms`` is milliseconds a call, ``MiB`` the extra
peak memory of :mod:`peak_memory`. In a file of results each row is one line.
"""

from __future__ import annotations

import argparse
import datetime as dt
import gc
import inspect
import json
import math
import shlex
import statistics
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import peak_memory
import torch
from machine import UPSTREAM_FILE, machine_facts, upstream_version
from tabulate import tabulate
from torch import Tensor
from torch.utils.benchmark import Timer

from DCLS import info
from DCLS.method import choose, expected_cells

Step = Callable[[], object]
Row = dict[str, Any]
Point = TypeVar("Point")

#: What is timed: inference, or the output with all gradients.
PASSES = ("forward", "forward+backward")
#: Positions as a new layer has them, close to the centre; or uniform over the kernel, as those of
#: a trained layer are spread.
POSITIONS = INITIAL, UNIFORM = ("initial", "uniform")

#: The dtype that is float32 in which torch may round factors to TF32.
TF32 = "tf32"

_SLOW_SECONDS = 0.5

# ---------------------------------------------------------------------------------------- options


def positive_int(text: str) -> int:
    """A type for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"takes an integer of at least 1, got {text!r}")
    return int(text)


def make_parser(
    description: str, *, upstream: bool = False, memory: bool = False
) -> argparse.ArgumentParser:
    """Returns a parser with the options of all benchmarks.

    Args:
        description: the question.
        upstream: whether DCLS 0.1.1 can take part.
        memory: whether peak memory is measured.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.set_defaults(upstream=None, no_memory=True)
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu")
    threads = torch.get_num_threads()
    help = "threads of torch on the CPU (default: torch's own, here %(default)s)"
    add("--threads", type=positive_int, default=threads, metavar="N", help=help)
    help = "rounds of samples (default: 10, with --quick 3)"
    add("--repeats", type=positive_int, metavar="N", help=help)
    help = f"rounds for steps of more than {_SLOW_SECONDS} s (default: as for all)"
    add("--slow-repeats", type=positive_int, metavar="N", help=help)
    help = "fewer rounds of shorter samples: for a glance, not for publication"
    add("--quick", action="store_true", help=help)
    add("--json", type=Path, metavar="PATH", help="write the results there as well")
    if upstream:
        help = "measure DCLS 0.1.1 too, from the FOLDER of "
        help += "pip install --target FOLDER --no-deps dcls==0.1.1"
        add("--upstream", type=Path, metavar="FOLDER", help=help)
    if memory:
        add("--no-memory", action="store_true", default=False, help="leave out the peak memory")
    return parser


def apply_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Checks the common options, completes them, and sets the number of threads, and TF32.

    Adds ``min_seconds``, the least duration of a sample, and ``no_memory_reason``, "" where memory
    is measured. Leaves with status 2 and a message where an option cannot be met.
    """
    if options.device == "cuda":
        status = info.collect()["cuda"]
        if not torch.cuda.is_available():
            parser.error("argument --device: torch finds no CUDA device")
        if not status["available"]:
            parser.error(f"argument --device: DCLS has no CUDA here: {status['reason']}")
    if options.upstream is not None and not (options.upstream / UPSTREAM_FILE).is_file():
        parser.error(
            f"argument --upstream: there is no {UPSTREAM_FILE} in {options.upstream}; fill it by "
            f"pip install --target {options.upstream} --no-deps dcls==0.1.1"
        )
    if options.json is not None:
        if not options.json.parent.is_dir():
            parser.error(f"argument --json: there is no folder {options.json.parent}")
        if options.json.is_dir():
            parser.error(f"argument --json: takes a file, {options.json} is a folder")
    options.repeats = options.repeats or (3 if options.quick else 10)
    options.min_seconds = 0.005 if options.quick else 0.05
    unavailable = peak_memory.unavailable
    options.no_memory_reason = (
        "by --no-memory" if options.no_memory else unavailable(options.device)
    )
    torch.set_num_threads(options.threads)
    with warnings.catch_warnings():
        # From torch 2.9 on there is another way to say it, which older ones do not know.
        warnings.filterwarnings("ignore", "Please use the new API settings to control TF32")
        allowed = getattr(options, "dtype", "") == TF32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


# ----------------------------------------------------------------------------------------- timing


class Summary(NamedTuple):
    """A median, and how far the samples spread around it."""

    median: float
    lowest: float
    highest: float
    rounds: int

    @classmethod
    def of(cls, samples: Sequence[float], factor: float = 1.0) -> Summary:
        """Of samples, each times a factor."""
        figures = statistics.median(samples), min(samples), max(samples)
        return cls(*(rounded(figure * factor) for figure in figures), len(samples))

    def __str__(self) -> str:
        """Text such as ``12.3 [11.9-14.0]``."""
        return f"{digits(self.median)} [{digits(self.lowest)}-{digits(self.highest)}]"


def rounded(number: float) -> float:
    """A number to four digits: no time is known to more."""
    return float(f"{number:.4g}")


def milliseconds(seconds: Sequence[float]) -> Summary:
    """Summary, in milliseconds, of samples in seconds."""
    return Summary.of(seconds, 1e3)


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Summary:
    """How many times longer ``slow`` takes than ``fast``, in each round that has both."""
    return Summary.of([a / b for a, b in zip(slow, fast, strict=False)])


def time_steps(steps: Mapping[str, Step], options: argparse.Namespace) -> dict[str, list[float]]:
    """Times steps in turn, see the top of this file.

    Args:
        steps: what to time, by name; called without arguments.
        options: ``repeats``, the rounds; ``slow_repeats``, those of slow steps or None; and
            ``min_seconds``, the least duration of a sample.

    Returns:
        Seconds a call, a sample for each round.
    """
    threads = torch.get_num_threads()
    timers = {
        name: Timer("step()", globals={"step": step}, num_threads=threads)
        for name, step in steps.items()
    }
    samples: dict[str, list[float]] = {name: [] for name in steps}
    gc.collect()
    for index in range(options.repeats):
        for name in list(steps) if index % 2 == 0 else reversed(steps):
            taken = samples[name]
            if not taken:  # finds out how many calls fill a sample, and warms up
                sample = timers[name].blocked_autorange(min_run_time=options.min_seconds)
            elif taken[0] > _SLOW_SECONDS and index >= (options.slow_repeats or options.repeats):
                continue
            else:
                sample = timers[name].timeit(max(1, math.ceil(options.min_seconds / taken[0])))
            taken.append(sample.median)
    return samples


def extra_peaks(
    factory: Callable[..., Step], asked: Mapping[Point, Row], options: argparse.Namespace
) -> dict[Point, peak_memory.Peak]:
    """Measures the extra peaks of steps, on CPU in one fresh process; {} where they are left out.

    Args:
        factory: a function of a module that gives a step; see :func:`peak_memory.extra_peaks`.
        asked: its arguments but ``scale`` and ``device``, by the name of the step.
        options: of the run.
    """
    if options.no_memory_reason:
        return {}
    arguments = [{"device": options.device, **each} for each in asked.values()]
    found = peak_memory.extra_peaks(
        Path(inspect.getfile(factory)),
        factory.__name__,
        arguments,
        device=options.device,
        threads=options.threads,
    )
    return dict(zip(asked, found, strict=True))


# ------------------------------------------------------------------------- what is compared with


class DisagreementError(RuntimeError):
    """Two ways compute different things, so that comparing their times means nothing."""


def check_agreement(what: str, got: Tensor, expected: Tensor, limit: float) -> None:
    """Raises DisagreementError unless two tensors agree to ``limit`` times the norm."""
    error = ((got.to(expected.dtype) - expected).norm() / expected.norm()).item()
    if not error <= limit:
        raise DisagreementError(f"{what} by {error:.1e} of its norm, more than {limit:.0e}")


def chosen_method(
    *,
    input_shape: Sequence[int],
    dtype: torch.dtype,
    layout: str,
    device_type: str,
    out_channels: int,
    groups: int,
    dilated_kernel_size: Sequence[int],
    kernel_count: int,
    version: str,
    training: bool,
) -> str:
    """How a new layer of these sizes convolves by itself: ``direct`` or ``conv``.

    ``layout`` is ``channels_first`` or ``channels_last``.
    """
    return choose(
        input_shape=input_shape,
        out_channels=out_channels,
        groups=groups,
        kernel_size=dilated_kernel_size,
        cells=expected_cells(version, kernel_count, (), dilated_kernel_size),
        training=training,
        dtype=dtype,
        padding=[size // 2 for size in dilated_kernel_size],
        channels_last=layout == "channels_last",
        device_type=device_type,
    ).method


# ---------------------------------------------------------------------------------------- results


def report(
    benchmark: str, options: argparse.Namespace, rows: Sequence[Row], **facts: Any
) -> dict[str, Any]:
    """Returns what a file of results holds: how they came about, and the rows."""
    if options.upstream is not None:
        facts["upstream"] = upstream_version(options.upstream)
    return {
        "benchmark": benchmark,
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "device": options.device,
        "machine": machine_facts(options.device),
        **facts,
        "results": list(rows),
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a report, each row on a line; in one step: a reader finds the old or the new."""
    head = [
        f" {json.dumps(key)}: {json.dumps(value)}"
        for key, value in content.items()
        if key != "results"
    ]
    rows = [f"  {json.dumps(row, allow_nan=False)}" for row in content["results"]]
    text = ",\n".join([*head, ' "results": [\n' + ",\n".join(rows) + "\n ]"])
    draft = path.with_name(path.name + ".part")
    draft.write_text(f"{{\n{text}\n}}\n", encoding="utf-8")
    draft.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Reads what :func:`write_json` wrote."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for row in content.get("results", ()):
        row.update({k: Summary(*v) for k, v in row.items() if isinstance(v, list)})
    return content


def select(rows: Iterable[Row], where: Row) -> list[Row]:
    """The rows that have the given values."""
    return [row for row in rows if all(row.get(key) == value for key, value in where.items())]


def fastest(rows: Iterable[Row], where: Row) -> Row | None:
    """The row of the lowest median time among those that have the given values; None if none."""
    return min(select(rows, where), key=lambda row: row["ms"].median, default=None)


def digits(number: float) -> str:
    """A number to three digits, or to its ones: ``0.0123``, ``12.3``, ``1230``."""
    before = math.floor(math.log10(abs(number))) if number else 0
    return f"{number:.{max(0, 2 - before)}f}"


def table(rows: Iterable[Row], style: str = "simple") -> str:
    """Lays out rows, as text or in another style of tabulate's; "-" where a row has no such value.

    Returns:
        "none" if there are no rows.
    """
    rows = list(rows)
    if not rows:
        return "none"
    headers = list(dict.fromkeys(key for row in rows for key in row))
    is_text = [all(isinstance(row.get(key, ""), str) for row in rows) for key in headers]

    def show(value: Any) -> str:
        return digits(value) if isinstance(value, float) else str(value)

    cells = [[show(row.get(key, "-")) for key in headers] for row in rows]
    align = ["left" if text else "right" for text in is_text]
    return tabulate(cells, headers, tablefmt=style, colalign=align, disable_numparse=True)


def progress(message: str) -> None:
    """Says on stderr what is being measured."""
    print(message, file=sys.stderr, flush=True)


def run(
    benchmark: str,
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    points: Sequence[Point],
    measure: Callable[[Point], list[Row]],
    *,
    show: Callable[[list[Row]], str] = table,
    **facts: Any,
) -> int:
    """Measures all points of a benchmark, prints the results, and writes them if asked to.

    The JSON file is written anew after each point, for a run takes long and may be stopped;
    "complete" says whether it has them all.

    Args:
        benchmark: its name in :mod:`suite`.
        parser: its parser.
        options: what :func:`apply_options` completed.
        points: what to measure.
        measure: gives the rows of a point.
        show: lays the rows out.
        facts: more entries for the head of the file.

    Returns:
        The exit status: 1 if what is compared disagrees.
    """
    rows: list[Row] = []
    for number, point in enumerate(points, 1):
        text = " ".join(map(str, point)) if type(point) is tuple else point
        progress(f"{number} of {len(points)}: {text}")
        try:
            rows += measure(point)
        except DisagreementError as error:
            print(f"{parser.prog}: error: {error}", file=sys.stderr)
            return 1
        if options.json is not None:
            content = report(benchmark, options, rows, **facts, complete=number == len(points))
            write_json(options.json, content)
    print(show(rows))
    print("\nTimes and ratios: median [lowest-highest] of the rounds.")
    # What the parser does not offer is not missed.
    actions = {action.dest for action in parser._actions}
    if options.upstream is None and "upstream" in actions:
        print("DCLS 0.1.1 was not measured: give its folder by --upstream.")
    if options.no_memory_reason and "no_memory" in actions:
        print(f"Memory was not measured: {options.no_memory_reason}.")
    if options.json is not None:
        print(f"written: {options.json}")
    return 0
