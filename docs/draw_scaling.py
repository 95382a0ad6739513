"""Draws docs/images/NAME.png from benchmarks/results/NAME.json, for each NAME that scaling-* fits.

    python benchmarks/bench_conv.py --scaling --json benchmarks/results/scaling-cpu.json
    python docs/draw_scaling.py

How the time of a layer grows with each of its sizes: a column for each size, a row for each pass.
Lines are the medians, and the bands the ranges, of the rounds. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"

#: Labels and styles of the layers, by what the JSON calls them.
STYLES = {
    "dcls/contiguous": ("DCLS", {"color": "#c0392b", "linewidth": 2.2}),
    "conv/contiguous": ("torch with the dense kernel", {"color": "#2471a3"}),
    "conv/channels_last": ("… channels_last", {"color": "#2471a3", "linestyle": "--"}),
    "plain/channels_last": ("plain 7x7, channels_last", {"color": "0.35", "linestyle": ":"}),
    "upstream/contiguous": ("DCLS {upstream}", {"color": "#b7950b"}),
}
UNITS = {
    "kernel size": "kernel size (cells along each axis)",
    "elements": "elements of a kernel",
    "channels": "channels",
    "resolution": "resolution (pixels along each axis)",
    "batch": "batch (images)",
}


def draw_panel(axes: Axes, points: list[dict[str, Any]], upstream: str) -> None:
    """The times over one size in one pass."""
    values = [point["value"] for point in points]
    for name, (label, style) in STYLES.items():
        timed = [point for point in points if name in point["seconds"]]
        if not timed:
            continue
        x = [point["value"] for point in timed]
        median, low, high = (
            [point["seconds"][name][part] * 1e3 for point in timed]
            for part in ("median", "min", "max")
        )
        axes.plot(
            x, median, marker="o", markersize=3, label=label.format(upstream=upstream), **style
        )
        axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(values, labels=[str(value) for value in values], fontsize=7)
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(alpha=0.3, linewidth=0.5)


def draw(report: dict[str, Any]) -> Figure:
    """Draws one file of results."""
    results = report["results"]
    sizes = list(dict.fromkeys(result["axis"] for result in results))
    passes = list(dict.fromkeys(result["pass"] for result in results))
    figure = Figure(figsize=(2.6 * len(sizes) + 0.8, 2.5 * len(passes) + 1.1), dpi=150)
    grid = figure.subplots(len(passes), len(sizes), squeeze=False, sharey="row")
    for row, which in zip(grid, passes, strict=True):
        for axes, size in zip(row, sizes, strict=True):
            points = [r for r in results if (r["axis"], r["pass"]) == (size, which)]
            draw_panel(axes, points, report.get("upstream", ""))
        row[0].set_ylabel(f"{which} (ms)", fontsize=9)
    for axes, size in zip(grid[-1], sizes, strict=True):
        axes.set_xlabel(UNITS.get(size, size), fontsize=9)
    machine = report["machine"]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    figure.suptitle(
        f"{report['base']}, {results[0]['dtype']}: each size varied. {where}", fontsize=9
    )
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 0.98))
    return figure


def main() -> None:
    """Draws all."""
    parser = argparse.ArgumentParser(description="Draws how times grow with the sizes.")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--images", type=Path, default=IMAGES, metavar="FOLDER")
    options = parser.parse_args()
    for path in sorted(options.results.glob("scaling-*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        target = options.images / f"{path.stem}.png"
        draw(report).savefig(target)
        print(f"written: {target}")


if __name__ == "__main__":
    main()
