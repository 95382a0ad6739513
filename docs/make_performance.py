"""Writes ``docs/performance.md`` from the JSON files in ``benchmarks/results``.

    python docs/make_performance.py           # writes the page
    python docs/make_performance.py --check   # exit status 1 if the page is not what it would write

Every figure of the page comes out of such a file: ``benchmarks/bench_*.py --json`` writes those of
the benchmarks, ``scripts/gpu_check.sh`` that of the checks on a GPU. A table is the one that the
benchmark itself prints.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import suite  # noqa: E402

PAGE = ROOT / "docs" / "performance.md"
IMAGES = ROOT / "docs" / "images"
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
NOT_MEASURED = "*Not measured yet.*"

HEAD = """\
# Performance

<!-- Written by docs/make_performance.py from benchmarks/results/*.json: change those. -->

Each table says on which machine, when, from which commit and by which command it was measured; the
JSON files in [benchmarks/results](../benchmarks/results) hold every sample. How times and memory
are taken is told at the top of [harness.py](../benchmarks/harness.py) and of the benchmark's own
file. Figures of different machines or dates are not to be compared.
"""


class ResultError(ValueError):
    """A file in benchmarks/results that no benchmark of the suite wrote."""


def load(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the reports of the benchmarks, and those of the checks on a GPU, by file name."""
    benchmarks, checks = [], []
    names = {benchmark.name for benchmark in suite.BENCHMARKS}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("check") == "gpu":
            checks.append(content)
        elif content.get("benchmark") in names and content.get("device") in DEVICES:
            benchmarks.append({**content, "file": path.name})
        else:
            raise ResultError(f"{path} is neither of a benchmark in suite.py nor of a GPU check")
    return benchmarks, checks


def commit_text(facts: dict[str, Any]) -> str:
    """Text such as ``commit 1a2b3c4d5e, changed since``."""
    if facts.get("commit", "unknown") == "unknown":
        return "commit unknown"
    return f"commit {facts['commit'][:10]}" + (", changed since" if facts.get("changed") else "")


def machine_text(report: dict[str, Any]) -> str:
    """Where, when and from what a report is."""
    machine = report["machine"]
    if report["device"] == "cuda":
        where = f"{machine['gpu']}, CUDA {machine['cuda_toolkit']}"
        where += f" (driver for {machine['driver']})"
    else:
        where = f"{machine['cpu']}, {machine['threads']} threads of {machine['cpus']} CPUs"
        where += f", {machine['simd']}"
    return (
        f"{where}; torch {machine['torch']}; {report['date'][:10]}; "
        f"DCLS {machine['dcls']['version']}, {commit_text(machine['dcls'])}"
    )


def tables_of(benchmark: suite.Benchmark, reports: list[dict[str, Any]]) -> list[str]:
    """The lines for the reports of one benchmark on one kind of device."""
    module = __import__(benchmark.layout_module)
    lines: list[str] = []
    for report in reports:
        file = report["file"]
        table = module.table(report["results"], report.get("upstream", "0.1.1"))
        lines += [
            f"**{machine_text(report)}** ([{file}](../benchmarks/results/{file}))",
            "",
            "```text",
            f"$ {report['command']}",
            table,
            "```",
            "",
        ]
        picture = IMAGES / f"{Path(file).stem}.png"
        if benchmark.picture and picture.is_file():
            lines += [
                f"![{benchmark.title}](images/{picture.name})",
                "",
                f"*Drawn from that file by [{benchmark.picture}]({benchmark.picture}).*",
                "",
            ]
    return lines


def check_lines(check: dict[str, Any]) -> list[str]:
    """The lines for one run of scripts/gpu_check.sh."""
    origin = (
        f"**{check['gpu']}**, driver {check['driver']}, CUDA {check['toolkit']}; "
        f"torch {check['torch']}; {check['date'][:10]}; {commit_text(check)}; "
        f"`{check['command']}`, {check['minutes']} minutes"
    )
    lines = [
        origin,
        "",
        "| step | result | seconds | |",
        "|---|---|---:|---|",
    ]
    for step in check["steps"]:
        note = "; ".join(part for part in (step["reason"], step["summary"]) if part)
        note = note.replace("|", "\\|")
        lines.append(f"| {step['name']} | {step['status']} | {step['seconds']} | {note} |")
    return [*lines, ""]


def page(folder: Path) -> str:
    """The text of the page for the results in a folder."""
    benchmarks, checks = load(folder)
    lines = [HEAD]
    for benchmark in suite.BENCHMARKS:
        lines += [f"## {benchmark.title}", ""]
        for device, name in DEVICES.items():
            reports = [
                report
                for report in benchmarks
                if (report["benchmark"], report["device"]) == (benchmark.name, device)
            ]
            lines += [f"### {name}", ""]
            lines += tables_of(benchmark, reports) if reports else [NOT_MEASURED, ""]
    lines += ["## Tests and checks on a GPU", ""]
    lines += [
        "By `scripts/gpu_check.sh`, which also takes the figures above that are of a GPU.",
        "",
    ]
    for check in checks:
        lines += check_lines(check)
    if not checks:
        lines += ["*Not run on a GPU yet.*", ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Writes or checks the page; returns the exit status."""
    parser = argparse.ArgumentParser(description="Writes docs/performance.md.")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    parser.add_argument("--results", type=Path, default=suite.RESULTS, metavar="FOLDER")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="PATH")
    options = parser.parse_args()
    text = page(options.results)
    if not options.check:
        options.page.write_text(text, encoding="utf-8")
        return 0
    present = options.page.read_text(encoding="utf-8") if options.page.is_file() else ""
    if present == text:
        return 0
    print(
        f"{options.page} is not what {options.results} makes: run python docs/make_performance.py",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
