"""Writes ``docs/performance.md`` from the files in ``benchmarks/results``.

    python docs/make_performance.py           # writes the page
    python docs/make_performance.py --check   # exit status 1 if page or pictures are not current

Every number of the page comes out of such a file. ``benchmarks/suite.py`` writes the files for the
CPU, ``scripts/gpu_check.sh`` the files for a GPU, ``benchmarks/cuda_model.py`` that of the model.
``docs/draw_performance.py`` draws the pictures.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import harness  # noqa: E402
import suite  # noqa: E402
from performance_delays import delays_lines  # noqa: E402
from performance_model import model_lines  # noqa: E402
from performance_sections import (  # noqa: E402
    FURTHER,
    SECTIONS,
    Report,
    markdown,
    paragraph,
    picture,
)

PAGE = ROOT / "docs" / "performance.md"
IMAGES = ROOT / "docs" / "images"
RESULTS = suite.RESULTS
NOT_MEASURED = "*Not measured yet.*"
#: The benchmark whose results are on a page of their own, see make_claims.py.
ELSEWHERE = "claims"
#: The pictures, and the results on the CPU that each is drawn from.
SOURCES = {
    "conv": "conv",
    "conv-memory": "conv",
    "small": "small",
    "scaling": "scaling",
    "scaling-forward": "scaling",
    "conv-rule": "conv-rule",
    "construct": "construct",
    "im2col": "im2col",
    "model": "model",
}
HEAD = """\
# Performance

<!-- Written by docs/make_performance.py from benchmarks/results: change those. -->

{where}

- A **training step** is a forward and a backward pass, with the gradients of the input and of all
  parameters. **Forward** is inference. Both build the kernel.
- Times are medians of several rounds. Thin lines in the pictures are the ranges. What is compared
  ran in turn in the same run; [harness.py](../benchmarks/harness.py) says how.
- **Memory** is the extra peak of a step: what it returns counts, what was there before does not.
- *torch, dense kernel* is the same layer with `method="conv"`: it builds the kernel, and torch
  convolves with all of its cells.
- Positions are uniform over the kernel, where training ends, if nothing else is said. *New layer*
  means the positions of a new layer, close to the centre.

Do not compare figures of different machines or dates. This command measures all of it again:

```sh
pip install --target build/dcls-0.1.1 --no-deps dcls==0.1.1
python benchmarks/suite.py --upstream build/dcls-0.1.1 --threads 2
```
"""


class ResultError(ValueError):
    """A file in benchmarks/results that no benchmark of the suite wrote."""


@dataclass
class Results:
    """What the files of a folder hold."""

    cpu: dict[str, Report] = field(default_factory=dict)  #: reports of the CPU by file name
    gpu: list[Report] = field(default_factory=list)
    checks: list[Report] = field(default_factory=list)  #: runs of scripts/gpu_check.sh
    model: Report | None = None  #: of benchmarks/cuda_model.py


def load(folder: Path) -> Results:
    """Reads the files of results."""
    results = Results()
    names = {benchmark.name for benchmark in suite.BENCHMARKS}
    for path in sorted(folder.glob("*.json")):
        content = {"file": path.name, **harness.read_json(path)}
        if content.get("check") == "gpu":
            results.checks.append(content)
        elif content.get("model") == "cuda":
            results.model = content
        elif content.get("benchmark") not in names or content.get("device") not in ("cpu", "cuda"):
            raise ResultError(f"{path} is neither of a benchmark in suite.py nor of a GPU check")
        elif content["benchmark"] == ELSEWHERE:
            continue
        elif content["device"] == "cuda":
            results.gpu.append(content)
        else:
            results.cpu[path.stem.removesuffix("-cpu")] = content
    return results


def digest(path: Path) -> str:
    """What a picture says of the results that it was drawn from."""
    return f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


def commit_text(facts: dict[str, Any]) -> str:
    """Text such as ``commit 1a2b3c4d5e, changed since``."""
    if facts.get("commit", "unknown") == "unknown":
        return "commit unknown"
    return f"commit {facts['commit'][:10]}" + (", changed since" if facts.get("changed") else "")


def machine_text(report: Report) -> str:
    """The machine of a report, and its torch."""
    machine = report["machine"]
    if report["device"] == "cuda":
        where = f"{machine['gpu']}, CUDA {machine['cuda_toolkit']}"
        where += f" (driver for {machine['driver']})"
    else:
        where = f"{machine['cpu']}, {machine['simd'].upper()}, {machine['threads']} thread"
        where += f"{'s' if machine['threads'] > 1 else ''} of {machine['cpus']} CPUs"
    return f"{where}; torch {machine['torch']}"


def origin_rows(reports: Sequence[Report]) -> list[str]:
    """A line for each file of results: how it came about."""
    lines = []
    for report in reports:
        file = report["file"]
        dcls = report["machine"]["dcls"]
        lines.append(
            f"- [{file}](../benchmarks/results/{file}): `{report['command']}`; "
            f"{machine_text(report)}; {report['date'][:10]}; DCLS {dcls['version']}, "
            f"{commit_text(dcls)}"
        )
    return [*lines, ""]


def check_lines(check: Report) -> list[str]:
    """The lines for one run of scripts/gpu_check.sh."""
    origin = (
        f"**{check['gpu']}**, driver {check['driver']}, CUDA {check['toolkit']}; "
        f"torch {check['torch']}; {check['date'][:10]}; {commit_text(check)}; "
        f"`{check['command']}`, {check['minutes']} minutes"
    )
    rows = []
    for step in check["steps"]:
        note = "; ".join(part for part in (step["reason"], step["summary"]) if part)
        rows.append({"step": step["name"], "result": step["status"]})
        rows[-1] |= {"seconds": step["seconds"], "note": note.replace("|", "\\|")}
    return [origin, "", *markdown(rows)]


def page(folder: Path) -> str:
    """The text of the page for the results in a folder."""
    results = load(folder)
    cpu, gpu, checks = results.cpu, results.gpu, results.checks
    where = "Nothing has been measured yet."
    if cpu:
        machines = sorted({machine_text(report) for report in cpu.values()})
        float32 = "All times are in float32, if nothing else is said"
        where = f"{float32}, on this machine: {machines[0]}."
        if len(machines) > 1:
            where = f"{float32}. Each section names the machine that measured it."
    if not gpu:
        where += " **Nothing has been measured on a GPU.**"
    lines = [HEAD.format(where="\n".join(paragraph(where)[:-1]))]
    titles = {name: each.title for each in suite.BENCHMARKS for name in each.cpu_runs}
    for name, words in {**SECTIONS, "delays": delays_lines}.items():
        lines += [f"## {titles[name]}", ""]
        if name in cpu:
            if len(machines) > 1:
                lines += [f"*{machine_text(cpu[name])}*", ""]
            lines += picture(name, titles[name]) if name in SOURCES else []
            lines += words(cpu[name])
        else:
            lines += [NOT_MEASURED, ""]
        for more, further in FURTHER.get(name, {}).items():
            if more in cpu:
                if len(machines) > 1:
                    lines += [f"*{machine_text(cpu[more])}*", ""]
                lines += further(cpu[more])
    lines += ["## The results and how they came about", ""]
    lines += ["Each file has a line for each row of results.", ""] if cpu else [NOT_MEASURED, ""]
    lines += origin_rows(list(cpu.values()))
    lines += ["## On a GPU", ""]
    lines += origin_rows(gpu) if gpu else [NOT_MEASURED, ""]
    lines += ["`scripts/gpu_check.sh` takes these figures, and runs the tests.", ""]
    for check in checks:
        lines += check_lines(check)
    if not checks:
        lines += ["*The tests have not been run on a GPU yet.*", ""]
    lines += model_lines(results.model)
    return "\n".join(lines).rstrip() + "\n"


def stale_pictures(results: Path, images: Path) -> list[str]:
    """The pictures that are missing, or drawn from other results."""
    stale = []
    for name, source in SOURCES.items():
        path, image = results / f"{source}-cpu.json", images / f"{name}-cpu.png"
        drawn = image.read_bytes() if image.is_file() else b""
        if path.is_file() and digest(path).encode() not in drawn:
            stale.append(image.name)
    return stale


def differs(page: Path, text: str, program: str) -> bool:
    """Whether a page is not the text, and says which program makes it so."""
    current = page.is_file() and page.read_text(encoding="utf-8") == text
    if not current:
        print(f"{page} is not what the results make: run {program}", file=sys.stderr)
    return not current


def main() -> int:
    """Writes or checks the page; returns the exit status."""
    parser = argparse.ArgumentParser(description="Writes docs/performance.md.")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--images", type=Path, default=IMAGES, metavar="FOLDER")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="PATH")
    options = parser.parse_args()
    text = page(options.results)
    if not options.check:
        options.page.write_text(text, encoding="utf-8")
        return 0
    stale = stale_pictures(options.results, options.images)
    if stale:
        print(f"run python docs/draw_performance.py for {', '.join(stale)}", file=sys.stderr)
    return int(differs(options.page, text, "python docs/make_performance.py") or bool(stale))


if __name__ == "__main__":
    sys.exit(main())
