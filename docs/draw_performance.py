"""Draws the pictures of ``docs/performance.md`` from ``benchmarks/results/*-cpu.json``.

    python docs/draw_performance.py

Each picture holds the digest of the results that it was drawn from, by which
``docs/make_performance.py --check`` knows whether it is current. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import harness  # noqa: E402
import make_performance as page  # noqa: E402
from conv_cases import CONV, DCLS_LAYER, PLAIN, UPSTREAM  # noqa: E402
from harness import INITIAL, PASSES, UNIFORM, Row, Summary  # noqa: E402
from performance_sections import PASS_TEXT, SIZE_TEXT, Report, case_text  # noqa: E402

BLUE, LIGHT, GREY, ORANGE, GREEN = "#0072b2", "#7fc4ec", "#8a8a8a", "#d55e00", "#009e73"
#: Inches: 750 pixels of a page, on which 9 points are 12 pixels.
WIDTH, DPI = 7.5, 200
STYLE = {"fontsize": 8.5}

Bars = dict[str, tuple[str, Sequence[Summary | float | None]]]


# ------------------------------------------------------------------------------------------- parts


def bars(axes: Axes, groups: Sequence[str], series: Bars, label: str, log: bool = True) -> None:
    """Horizontal bars in groups, from top to bottom, with their values behind them.

    Args:
        axes: where.
        groups: the names of the groups.
        series: for each series its colour, and a value for each group: a Summary, whose range is a
            thin line, a number, or None.
        label: of the axis of values.
        log: whether that is logarithmic.
    """
    height = 0.8 / len(series)
    highest = 0.0
    for group in range(len(groups)):
        present = [(colour, values[group]) for colour, values in series.values()]
        present = [(colour, value) for colour, value in present if value is not None]
        for index, (colour, value) in enumerate(present):
            low, median, high = (value,) * 3
            if isinstance(value, Summary):
                median, low, high, _ = value
            y = group + (index - (len(present) - 1) / 2) * height
            axes.barh(y, median, height * 0.92, color=colour, zorder=2)
            axes.plot([low, high], [y, y], color="0.15", lw=0.9, zorder=3)
            end, at, text = (high, y), (4, 0), harness.digits(median)
            axes.annotate(text, end, at, textcoords="offset points", va="center", fontsize=7)
            highest = max(highest, high)
    axes.set_yticks(range(len(groups)), labels=groups, **STYLE)
    axes.set_ylim(len(groups) - 0.45, -0.55)
    axes.set_xlabel(label, **STYLE)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.88", linewidth=0.6)
    axes.set_axisbelow(True)
    if log:
        axes.set_xlabel(f"{label} (logarithmic)", **STYLE)
        axes.set_xscale("log")
        low, _ = axes.get_xlim()
        axes.set_xlim(low, highest * (highest / low) ** 0.16)
        # A short axis has few powers of ten: 2 and 5 times these are labelled, too.
        short = highest / low < 100
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if short else (1,)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, highest * 1.16)
    axes.spines[["top", "right", "left"]].set_visible(False)


def legend(figure: Figure, names: dict[str, str], columns: int) -> None:
    """A legend above the panels, of the colours of bars."""
    handles = [Patch(color=colour, label=name) for name, colour in names.items()]
    figure.legend(handles=handles, loc="upper center", ncols=columns, frameon=False, **STYLE)


def panels(columns: int, height: float) -> tuple[Figure, Sequence[Axes]]:
    """A white figure with panels beside each other."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white", layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.32 / height))  # type: ignore[union-attr]
    grid = figure.subplots(1, columns, squeeze=False, sharey=True)[0]
    return figure, list(grid)


def layers(upstream: str) -> dict[tuple[str, str], tuple[str, str]]:
    """Name and colour of the layers, by method and positions."""
    return {
        (DCLS_LAYER, UNIFORM): ("DCLS", BLUE),
        (DCLS_LAYER, INITIAL): ("DCLS, new layer", GREEN),
        (PLAIN, "-"): ("plain 7x7 of torch", GREY),
        (CONV, UNIFORM): ("torch, dense kernel", LIGHT),
        (UPSTREAM, UNIFORM): (f"DCLS {upstream}", ORANGE),
    }


# ---------------------------------------------------------------------------------------- pictures


def draw_layers(report: Report, column: str, label: str) -> Figure:
    """A column of the results of one layer, each in its faster layout."""
    rows = report["results"]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    present = {
        key: style
        for key, style in layers(report.get("upstream", "")).items()
        if any((r["method"], r["positions"]) == key and column in r for r in rows)
    }
    figure, grid = panels(2, 0.95 + 0.17 * len(cases) * len(present))
    for axes, which in zip(grid, PASSES, strict=True):
        series: Bars = {}
        for (method, positions), (name, colour) in present.items():
            where = {"pass": which, "method": method, "positions": positions}
            found = [harness.fastest(rows, {**where, "case": case}) for case in cases]
            series[name] = (colour, [row and row.get(column) for row in found])
        bars(axes, [case_text(case) for case in cases], series, label)
        axes.set_title(PASS_TEXT[which], fontsize=9.5)
    legend(figure, dict(present.values()), len(present))
    return figure


def draw_scaling(report: Report, which: str) -> Figure:
    """The times of a pass over each size, a panel for each; bands are the ranges."""
    rows = harness.select(report["results"], {"pass": which})
    sizes = list(dict.fromkeys(row["varied"] for row in rows))
    figure = Figure(figsize=(WIDTH, 5.2), dpi=DPI, facecolor="white", layout="constrained")
    grid = figure.subplots(2, 3, sharey=True).flat
    lines = {}
    for axes, size in zip(grid, sizes, strict=False):
        points = harness.select(rows, {"varied": size})
        values = sorted({point["value"] for point in points})
        for (method, positions), (name, colour) in layers(report.get("upstream", "")).items():
            for layout, dash in (("contiguous", "-"), ("channels_last", "--")):
                where = {"method": method, "positions": positions, "layout": layout}
                timed = harness.select(points, where)
                if not timed:
                    continue
                x = [point["value"] for point in timed]
                median, low, high, _ = zip(*(point["ms"] for point in timed), strict=True)
                wide = 2.2 if colour == BLUE else 1.4
                (line,) = axes.plot(
                    x, median, dash, color=colour, lw=wide, marker="o", markersize=2.5
                )
                axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
                lines[name if dash == "-" else f"{name}, channels_last"] = line
        axes.set(xscale="log", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_major_locator(FixedLocator(values))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(values, labels=[str(value) for value in values], fontsize=7.5)
        axes.tick_params(axis="y", labelsize=8)
        axes.grid(color="0.88", linewidth=0.6)
        axes.set_xlabel(SIZE_TEXT[size], **STYLE)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (figure.axes[0], figure.axes[3]):
        axes.set_ylabel("milliseconds", **STYLE)
    figure.axes[-1].axis("off")
    figure.axes[-1].legend(lines.values(), lines, loc="center", frameon=False, **STYLE)
    figure.suptitle(f"{PASS_TEXT[which]}: one size varied, the others kept", fontsize=9.5)
    return figure


def draw_rule(report: Report) -> Figure:
    """All choices: how many times as long the chosen method took as the other."""
    import bench_rule

    figure = Figure(figsize=(WIDTH, 3.7), dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.subplots()
    kinds: dict[tuple[str, str], list[Row]] = {}
    for row in report["results"]:
        kinds.setdefault(bench_rule.kind(row), []).append(row)
    names = sorted(kinds)
    for y, name in enumerate(names):
        for method, colour, shift in ((bench_rule.DIRECT, BLUE, -0.2), (CONV, ORANGE, 0.2)):
            taken = harness.select(kinds[name], {"chosen": method})
            x = [row["ratio"].median for row in taken]
            # Spread over a band, so that equal ones can be told apart.
            height = [y + shift + (7 * index % 11 - 5) * 0.025 for index in range(len(x))]
            text = f"{method} was chosen" if y == 0 else None
            axes.scatter(x, height, s=9, color=colour, alpha=0.7, linewidth=0, label=text)
    axes.axvline(1, color="0.3", lw=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    low, high = axes.get_xlim()
    axes.axvspan(bench_rule.TOLERATED, high, color="0.93", zorder=0)
    axes.set_xlim(low, high)
    axes.set_yticks(range(len(names)), labels=[" ".join(name) for name in names], **STYLE)
    axes.invert_yaxis()
    label = "time of the chosen method / time of the other (grey: more than 10% longer)"
    axes.set_xlabel(label, **STYLE)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.88", linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, markerscale=1.8, **STYLE)
    return figure


def draw_construct(report: Report) -> Figure:
    """Time and memory of building the kernel, by version, in training."""
    rows = harness.select(report["results"], {"pass": PASSES[1]})
    versions = list(dict.fromkeys(row["version"] for row in rows))
    names = {"module": ("DCLS", BLUE), "upstream": (f"DCLS {report.get('upstream')}", ORANGE)}
    figure, grid = panels(2, 2.5)
    for axes, column, label in zip(
        grid, ("ms", "kernels"), ("milliseconds", "extra peak memory, in kernels"), strict=True
    ):
        series: Bars = {}
        for by, (name, colour) in names.items():
            found = [harness.fastest(rows, {"by": by, "version": v}) for v in versions]
            series[name] = (colour, [row and row.get(column) for row in found])
        bars(axes, versions, series, label)
    legend(figure, dict(names.values()), 2)
    return figure


def draw_im2col(report: Report) -> Figure:
    """The training steps of all cases, by method."""
    rows = harness.select(report["results"], {"pass": PASSES[1]})
    names = {
        "im2col": ("im2col", BLUE),
        "construct": ("construct, as a module does it", GREEN),
        "conv": ("construct, torch's convolution", LIGHT),
        "deform": ("torchvision's deform_conv2d", ORANGE),
    }
    names = {key: name for key, name in names.items() if harness.select(rows, {"method": key})}
    groups = list(dict.fromkeys((row["case"], row["version"]) for row in rows))
    figure, (axes,) = panels(1, 0.9 + 0.15 * len(groups) * len(names))
    series: Bars = {}
    for method, (name, colour) in names.items():
        found = [
            harness.fastest(
                rows, dict(zip(("case", "version"), g, strict=True)) | {"method": method}
            )
            for g in groups
        ]
        series[name] = (colour, [row and row["ms"] for row in found])
    bars(axes, [f"{case}\n{version}" for case, version in groups], series, "milliseconds")
    legend(figure, dict(names.values()), len(names))
    return figure


def draw_model(report: Report) -> Figure:
    """A step of the model, each in its faster layout."""
    rows = report["results"]
    kernels = list(dict.fromkeys(row["kernel"] for row in rows))
    names = {
        key[0]: style
        for key, style in layers(report.get("upstream", "")).items()
        if key[1] != INITIAL
    }
    names[PLAIN] = ("plain 7x7 of torch", GREY)
    figure, grid = panels(2, 0.9 + 0.19 * len(kernels) * len(names))
    for axes, which in zip(grid, ("inference", "training"), strict=True):
        series: Bars = {}
        for method, (name, colour) in names.items():
            where = {"pass": which, "method": method}
            found = [harness.fastest(rows, {**where, "kernel": kernel}) for kernel in kernels]
            series[name] = (colour, [row and row["ms"] for row in found])
        bars(axes, kernels, series, "milliseconds")
        axes.set_title(f"{which} step", fontsize=9.5)
    legend(figure, dict(names.values()), len(names))
    return figure


def draw_small(report: Report) -> Figure:
    """A small layer beside torch's."""
    rows = report["results"]
    names = {
        UNIFORM: ("DCLS", BLUE),
        INITIAL: ("DCLS, new layer", GREEN),
        "-": ("nn.Conv2d", GREY),
    }
    figure, (axes,) = panels(1, 2.2)
    series: Bars = {}
    for positions, (name, colour) in names.items():
        found = [harness.fastest(rows, {"pass": p, "positions": positions}) for p in PASSES]
        # The range of single calls is that of the machine's interruptions.
        series[name] = (colour, [row and row["ms"].median * 1e3 for row in found])
    bars(axes, [PASS_TEXT[p] for p in PASSES], series, "microseconds", log=False)
    legend(figure, dict(names.values()), len(names))
    return figure


DRAW: dict[str, Callable[[Report], Figure]] = {
    "conv": lambda report: draw_layers(report, "ms", "milliseconds"),
    "conv-memory": lambda report: draw_layers(report, "MiB", "extra peak memory (MiB)"),
    "small": draw_small,
    "scaling": lambda report: draw_scaling(report, PASSES[1]),
    "scaling-forward": lambda report: draw_scaling(report, PASSES[0]),
    "conv-rule": draw_rule,
    "construct": draw_construct,
    "im2col": draw_im2col,
    "model": draw_model,
}


def main() -> int:
    """Draws all whose results there are; returns the exit status."""
    parser = argparse.ArgumentParser(description="Draws the pictures of docs/performance.md.")
    parser.add_argument("--results", type=Path, default=page.RESULTS, metavar="FOLDER")
    parser.add_argument("--images", type=Path, default=page.IMAGES, metavar="FOLDER")
    options = parser.parse_args()
    for name, source in page.SOURCES.items():
        path = options.results / f"{source}-cpu.json"
        if path.is_file():
            target = options.images / f"{name}-cpu.png"
            note = {"Source": page.digest(path), "Software": None}
            DRAW[name](harness.read_json(path)).savefig(target, metadata=note)
            print(f"written: {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
