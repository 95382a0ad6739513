"""What ``docs/performance.md`` says of the model of the CUDA kernels (benchmarks/cuda_model.py)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from performance_sections import Report, markdown, paragraph

TITLE = "### A model of the CUDA kernels"
#: The layer whose kernels are shown one by one.
SHOWN = "96@56x56 17x17 v1"


def microseconds(rows: Iterable[dict[str, Any]], which: str, device: str) -> str:
    """The modelled time of all launches of a pass."""
    return f"{sum(row['us'][device] for row in rows if row['pass'].startswith(which)):.0f}"


def step_rows(report: Report) -> list[dict[str, Any]]:
    """A row for each layer, dtype and layout."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in report["results"]:
        name = f"{row['layer']}, {row['dtype']}, {row['layout']}"
        groups.setdefault(name, []).append(row)
    table = []
    for name, rows in groups.items():
        if name.startswith("im2col"):
            continue
        entry: dict[str, Any] = {"layer": name}
        for device in rows[0]["us"]:
            both = (microseconds(rows, which, device) for which in ("forward", "backward"))
            entry[f"{device}, model"] = " + ".join(both)
        entry["floor (H200)"] = f"{rows[0]['floor_us']['H200']:.0f}"
        entry["measured"] = ""
        table.append(entry)
    return table


def kernel_rows(report: Report) -> list[dict[str, Any]]:
    """A row for each kernel of one layer."""
    return [
        {
            "kernel": f"{row['kernel']} ({row['pass']}), {row['dtype']}, {row['layout']}",
            "registers": str(row["registers"]),
            "spills": str(row["spill_instructions"]),
            "blocks": str(row["blocks"]["H200"]),
            "instructions": str(row["instructions"]),
            "FMA": f"{multiplies(row):.0%}",
            "wavefronts": f"{row['load_wavefronts']:.2f}" if row["load_wavefronts"] else "",
            "binds": row["binds"]["H200"],
        }
        for row in report["results"]
        if row["layer"] == SHOWN
    ]


def multiplies(row: dict[str, Any]) -> float:
    """The share of multiply-adds in the warp instructions."""
    classes = row["classes"]
    return float(classes.get("FMA", 0) + classes.get("tensor", 0)) / float(row["instructions"])


def model_lines(report: Report | None) -> list[str]:
    """The section."""
    lines = [TITLE, ""]
    if report is None:
        return [*lines, "*Not modelled yet.*", ""]
    lines += paragraph(
        "**Nothing in this section is measured.** An interpreter runs a few blocks of each launch "
        f"from the machine code that nvcc makes for {report['architecture']}. So registers, "
        "instructions and bank conflicts are exact. A time is what the busiest resource of the GPU "
        "needs at least: issue, shared memory, multiply-adds, integers, tensor cores, L2 or DRAM. "
        "The model sees no latency. Expect more on a GPU. For the A100 and the RTX 4090 the same "
        "machine code is counted."
    )
    lines += paragraph(
        f"`{report['command']}` writes these figures ({report['nvcc']}), and `--check` compares "
        "with them. The positions are spread over the kernel. Microseconds of the launches of a "
        "forward and of a backward pass, without the time between launches; the floor is that of "
        "one convolution: its tensors moved once, or in float32 its products. *parts* are the "
        "functions for construct and convolution, one after the other. Of *tf32* "
        "there are the layers that it is launched for ([the rule](method.md#why-it-is-cheap))."
    )
    lines += markdown(step_rows(report))
    lines += paragraph(
        f"The kernels of one layer ({SHOWN}). *blocks* fit into a multiprocessor of an H200. "
        "*instructions* counts all warps of a block, and *FMA* is the share of multiply-adds. "
        "*wavefronts* are those of a load from shared memory, over the least possible: 1 means "
        "that no bank conflicts. *binds* is the busiest resource."
    )
    return [*lines, *markdown(kernel_rows(report))]
