"""What ``docs/performance.md`` says of each benchmark: its pictures, words and small tables.

A section gets the results of one file and returns lines of Markdown. All numbers are the results'.
"""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import bench_rule
import bench_small
import harness
from conv_cases import CONV, DCLS_LAYER, PLAIN, UPSTREAM, Case
from harness import INITIAL, PASSES, UNIFORM, Row

Report = dict[str, Any]

PASS_TEXT = {PASSES[0]: "forward", PASSES[1]: "training step (forward and backward)"}
SIZE_TEXT = {
    "kernel size": "kernel size (each axis)",
    "elements": "elements of a kernel",
    "channels": "channels",
    "resolution": "resolution (each axis)",
    "batch": "images in a batch",
}

# ----------------------------------------------------------------------------------- words, numbers


def times(number: float) -> str:
    """A ratio in words: ``1.3 times``, ``34 times``."""
    return f"{two_digits(number)} times"


def two_digits(number: float) -> str:
    """A number to two digits, or to its ones."""
    return f"{number:.0f}" if number >= 9.95 else f"{number:.2g}"


def ms(row: Row) -> str:
    """The median time of a row."""
    return f"{harness.digits(row['ms'].median)} ms"


def ratio(row: Row | None, column: str) -> str:
    """Median and range of a ratio; "" without a row."""
    return str(row[column]) if row else ""


def case_text(spec: str) -> str:
    """A case in two lines: ``depthwise 17x17, v1``, ``34 elements, 8x96x56x56``."""
    case = Case.parse(spec)
    kernel = "x".join(map(str, case.kernel))
    size = "x".join(map(str, (case.batch, case.channels, *case.size)))
    kind = "depthwise" if case.groups == case.channels else "dense"
    plural = "s" if case.elements > 1 else ""
    return f"{kind} {kernel}, {case.version}\n{case.elements} element{plural}, {size}"


def paragraph(text: str) -> list[str]:
    """A paragraph of the page."""
    return [*textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False), ""]


def markdown(rows: Sequence[Row]) -> list[str]:
    """A small table."""
    return [*harness.table(rows, "github").splitlines(), ""]


# ---------------------------------------------------------------------------------------- sections


def conv_lines(report: Report) -> list[str]:
    """One layer."""
    rows = report["results"]

    def best(case: str, method: str, which: str, positions: str = UNIFORM) -> Row | None:
        where = {"case": case, "method": method, "pass": which, "positions": positions}
        return harness.fastest(rows, where)

    table = []
    for case in dict.fromkeys(row["case"] for row in rows):
        ours = best(case, DCLS_LAYER, PASSES[1])
        assert ours is not None
        new = best(case, DCLS_LAYER, PASSES[1], INITIAL)
        entry = {"training step": case_text(case).split("\n")[0], "DCLS": ms(ours)}
        if new:
            entry["new layer"] = ms(new)
        for method, positions, name in (
            (UPSTREAM, UNIFORM, "0.1.1"),
            (CONV, UNIFORM, "dense kernel"),
            (PLAIN, "-", "plain 7x7"),
        ):
            row = best(case, method, PASSES[1], positions)
            entry[name] = times(row["over best"].median) if row else ""
        table.append(entry)
    first = rows[0]["case"]
    ours, old, plain = (
        best(first, method, PASSES[1], positions)
        for method, positions in ((DCLS_LAYER, UNIFORM), (UPSTREAM, UNIFORM), (PLAIN, "-"))
    )
    lines = []
    if ours and old and plain:
        name = case_text(first).replace("\n", ", ")
        lines += [
            *paragraph(
                f"A training step of the first layer ({name}) takes {ms(ours)}. The layer of DCLS "
                f"{report['upstream']} takes {times(old['over best'].median)} as long, and torch's "
                f"plain 7x7 layer {times(plain['over best'].median)}. Each layer is shown in the "
                "memory layout in which it is faster."
            ),
        ]
    if not any(row["positions"] == INITIAL for row in rows):
        lines += ["The positions of a new layer have not been measured yet.", ""]
    lines += paragraph("A training step, and how many times as long the others take:")
    lines += markdown(table)
    if any("MiB" in row for row in rows):
        lines += ["### Memory of one layer", "", *picture("conv-memory", "Memory of one layer")]
        ours, old = (best(first, method, PASSES[1]) for method in (DCLS_LAYER, UPSTREAM))
        if ours and old:
            lines += [
                *paragraph(
                    f"A training step of the first layer takes {ours['MiB']:.1f} MiB, and with "
                    f"DCLS {report['upstream']} {old['MiB']:.1f} MiB."
                ),
            ]
    bounds = [r for r in rows if r.get("positions") == UNIFORM and "attained" in r]
    reached = [row["attained"] for row in bounds if row["layout"] == "contiguous"]
    lines += [
        *paragraph(
            f"The machine sets a floor: the copy of the tensors, or a multiply-add for each point "
            f"and each cell that is not zero. In contiguous layout the layers reach "
            f"{min(reached):.0%} to {max(reached):.0%} of it. Dense kernels can pass it: "
            f"[they need fewer products](developing.md#dense-kernels-on-the-cpu)."
        ),
    ]
    return lines


def small_lines(report: Report) -> list[str]:
    """A small layer."""
    forward, both = (
        max(
            row["over torch"].median
            for row in harness.select(report["results"], {"pass": which, "layer": "Dcls2d"})
        )
        for which in PASSES
    )
    allowed = bench_small.ALLOWED
    return [
        *paragraph(
            "Here the calls take the time, not the arithmetic. A training step takes "
            f"{times(both)} as long as that of `nn.Conv2d`, and a forward pass {times(forward)}; "
            f"at most {allowed[PASSES[1]]} and {allowed[PASSES[0]]} are allowed "
            "(`python benchmarks/bench_small.py --check`)."
        ),
        *markdown(report["results"]),
    ]


def parts_lines(report: Report) -> list[str]:
    """Where the time of a pass goes."""
    return [
        *paragraph(
            "Each pass of depthwise layers in parts: the **lists** of the cells and the call, "
            "which do not grow with the batch; the copies of **planes** into scratch memory and "
            "back; and the **products**. *Of the peak* is the share of the machine's "
            "multiply-adds that the products reach, and *attained* what the whole pass does, at "
            "one multiply-add for each cell and point. Dense kernels need fewer: see [the fast FIR "
            "algorithm](developing.md#dense-kernels-on-the-cpu). A part is a difference of "
            "medians, and can be below 0 where it is small."
        ),
        *markdown(report["results"]),
    ]


def bfloat16_lines(report: Report) -> list[str]:
    """The same passes of bfloat16 tensors."""
    return [
        *paragraph("The same passes of bfloat16 tensors. The peak is that of float32."),
        *markdown(report["results"]),
    ]


def depthwise_lines(report: Report) -> list[str]:
    """The choice of the method for depthwise planes, by the vectors of a machine."""
    rows = report["results"]
    wrong = bench_rule.wrong(rows)
    most = max(1 / row["ratio"].median for row in rows)
    return paragraph(
        f"On a machine with {report['machine']['simd'].upper()}, depthwise planes of all sizes of "
        f"map and kernel: of {len(rows)} choices {len(wrong)} took more than 10% longer than the "
        f"other method, and the other method takes up to {times(most)} as long "
        "(`python benchmarks/bench_rule.py --depthwise`)."
    )


def scaling_lines(report: Report) -> list[str]:
    """How times grow."""
    rows = harness.select(report["results"], {"method": DCLS_LAYER, "positions": UNIFORM})
    table = []
    for size in dict.fromkeys(row["varied"] for row in rows):
        lowest, *_, highest = harness.select(rows, {"varied": size, "pass": PASSES[1]})
        growth = highest["ms"].median / lowest["ms"].median
        text = f"{lowest['value']} to {highest['value']}"
        table.append({"size": SIZE_TEXT[size], "from, to": text, "DCLS takes": times(growth)})
    base = case_text(report["base"]).replace("\n", ", ")
    return [
        *paragraph(
            f"The layer is {base}; in each panel one size varies. Time grows with the elements, "
            "the channels, the pixels and the images. Torch with the dense kernel pays for each "
            "cell of the kernel. A layer with as many elements pays for their cells only."
        ),
        *picture("scaling-forward", "How the forward pass of a layer grows with its sizes"),
        "How many times as long a training step takes at the end of a panel as at its start:",
        "",
        *markdown(table),
    ]


def rule_lines(report: Report) -> list[str]:
    """The choice of the method."""
    rows = report["results"]
    wrong = bench_rule.wrong(rows)
    gain = math.exp(-sum(math.log(row["ratio"].median) for row in rows) / len(rows))
    table = []
    for which in PASSES:
        for method in (bench_rule.DIRECT, CONV):
            group = harness.select(rows, {"pass": which, "chosen": method})
            slow = len(bench_rule.wrong(group))
            entry = {"pass": PASS_TEXT[which], "chosen": method, "choices": len(group)}
            worst = harness.digits(max(row["ratio"].median for row in group)) if group else "-"
            table.append({**entry, "more than 10% slower": slow, "slowest": worst})
    return [
        *paragraph(
            f"Each dot is one layer, in one layout and one pass: {len(rows)} in all. Left of 1, "
            f"the layer chose the faster method. {len(wrong)} choices took more than 10% longer "
            "than the other method. On average (geometric mean) the other method takes "
            f"{times(gain)} as long. [The guide](method.md) says what the methods are, and "
            "[method.py](../python/DCLS/method.py) has the rule."
        ),
        *markdown(table),
    ]


def widths_lines(report: Report) -> list[str]:
    """The choice of the method over a schedule of widths."""
    rows = report["results"]
    table = []
    for which in PASSES:
        for batch in dict.fromkeys(Case.parse(row["case"]).batch for row in rows):
            group = [
                row
                for row in harness.select(rows, {"pass": which})
                if Case.parse(row["case"]).batch == batch
            ]
            entry = {"pass": PASS_TEXT[which], "batch": batch, "choices": len(group)}
            entry["direct"] = sum(row["chosen"] == bench_rule.DIRECT for row in group)
            entry["more than 10% slower"] = len(bench_rule.wrong(group))
            entry["slowest"] = harness.digits(max(row["ratio"].median for row in group))
            if "upstream ms" in group[0]:
                least = min(row["upstream ms"].median / taken(row) for row in group)
                entry["least over DCLS, 0.1.1"] = harness.digits(least)
            table.append(entry)
    threads = report["machine"]["threads"]
    first, last = (harness.digits(rows[at]["width"]) for at in (0, -1))
    return [
        *paragraph(
            "Trainers of delays narrow their gaussians from epoch to epoch. Here layers of 128 and "
            f"256 channels with 25 and 51 steps of delay go from wide gaussians, {first} steps in "
            f"the shorter, to {last}. Their input of 100 steps is padded by the layer, or before "
            "it. A layer counts its cells as it goes, and changes the method in between. "
            f"Threads: {threads}."
        ),
        *markdown(table),
    ]


def taken(row: Row) -> float:
    """The milliseconds of the chosen method."""
    chosen: harness.Summary = row[f"{row['chosen']} ms"]
    return chosen.median


def construct_lines(report: Report) -> list[str]:
    """Building the kernel."""
    table = []
    rows = report["results"]
    for version in dict.fromkeys(row["version"] for row in rows):
        where = {"version": version, "pass": PASSES[1]}
        ours, old = (harness.fastest(rows, {**where, "by": by}) for by in ("module", "upstream"))
        assert ours is not None
        entry = {"version": version, "DCLS": ms(ours), "0.1.1": ms(old) if old else ""}
        entry["0.1.1 over DCLS"] = ratio(old, "over module")
        for name, row in (("memory, DCLS", ours), ("memory, 0.1.1", old)):
            entry[name] = f"{row['kernels']:.3g}" if row and "kernels" in row else ""
        table.append(entry)
    channels, elements, size = rows[0]["case"].split(":")
    return [
        *paragraph(
            f"The kernels of {channels} channels, with {elements} elements in {size}, are built, "
            "and the gradients of weight, position and width computed. The operator needs little "
            "more memory than the kernel that it returns: here the size of that kernel is 1."
        ),
        *markdown(table),
    ]


def im2col_lines(report: Report) -> list[str]:
    """The im2col variant."""
    rows = harness.select(report["results"], {"pass": PASSES[1], "method": "construct"})
    faster = [row for row in rows if row["over im2col"].median > 1]
    slower = [row for row in rows if row["over im2col"].median <= 1]
    text = ""
    if faster:
        low, high = (f(r["over im2col"].median for r in faster) for f in (min, max))
        text += f"In {len(faster)} of {len(rows)} cases im2col is faster: a construct module takes "
        text += f"{two_digits(low)} to {times(high)} as long. "
    if slower:
        low, high = (f(1 / r["over im2col"].median for r in slower) for f in (min, max))
        names = " and ".join(dict.fromkeys(f"`{row['case']}`" for row in slower))
        text += f"For {names} the construct module is faster: im2col takes "
        text += f"{two_digits(low)} to {times(high)} as long. "
    text = "A case is the input, the output channels, the elements and the grid's size. " + text
    return paragraph(text + "[The page on im2col](im2col.md) says when to use which.")


def model_lines(report: Report) -> list[str]:
    """A whole model."""
    rows = report["results"]
    table = []
    for kernel in dict.fromkeys(row["kernel"] for row in rows):
        for method, name in ((PLAIN, "torch"), (DCLS_LAYER, "DCLS"), (UPSTREAM, "0.1.1")):
            steps = [
                harness.fastest(rows, {"kernel": kernel, "method": method, "pass": which})
                for which in ("training", "inference")
            ]
            if all(steps):
                entry = {"kernel": kernel, "by": name}
                for step in steps:
                    assert step is not None
                    entry[f"{step['pass']} over 7x7"] = ratio(step, "over best")
                    if step["pass"] == "training" and "MiB" in step:
                        entry["MiB in training"] = f"{step['MiB']:.0f}"
                table.append(entry)
    return [
        *paragraph(
            f"The model is a small ConvNeXt (`--size {report['size']}`) on {report['batch']} "
            f"images of {report['resolution']} pixels, with all depthwise layers replaced. Each "
            "model is shown in its faster layout; ratios are over the plain 7x7 model in its "
            "faster layout."
        ),
        *markdown(table),
    ]


def close_lines(report: Report) -> list[str]:
    """The same model with the two kinds of layer that are closest, in more rounds."""
    row = harness.fastest(report["results"], {"method": DCLS_LAYER, "pass": "training"})
    if row is None:
        return []
    return [
        *paragraph(
            f"In a run of its own, with {row['ms'].rounds} rounds, a training step with "
            f"{row['kernel']} DCLS layers took {ms(row)} in {row['layout']}. It took "
            f"{row['over 7x7']} times as long as with the plain 7x7 layers in the same layout."
        ),
    ]


def picture(name: str, title: str) -> list[str]:
    """A picture."""
    return [f"![{title}](images/{name}-cpu.png)", ""]


#: More results, and their words, that follow those of a section.
FURTHER: dict[str, dict[str, Callable[[Report], list[str]]]] = {
    "conv-rule": {
        "conv-rule-narrow": depthwise_lines,
        "conv-rule-wide": depthwise_lines,
        "conv-rule-widths": widths_lines,
        "conv-rule-widths-1": widths_lines,
    },
    "model": {"model-training": close_lines},
    "parts": {"parts-bfloat16": bfloat16_lines},
}
#: A section: the results that it shows, and its words.
SECTIONS: dict[str, Callable[[Report], list[str]]] = {
    "conv": conv_lines,
    "parts": parts_lines,
    "small": small_lines,
    "scaling": scaling_lines,
    "conv-rule": rule_lines,
    "construct": construct_lines,
    "im2col": im2col_lines,
    "model": model_lines,
}
