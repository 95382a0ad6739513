"""The parts of ``scripts/gpu_check.sh`` that need Python: the machine, the benchmarks, the report.

gpu_report.py facts WORK COMMAND   asks for what the results depend on, and writes facts.json
gpu_report.py benchmarks           prints the runs of the benchmarks, one a line
gpu_report.py report WORK OUTPUT   makes the report of facts.json and steps.tsv
"""

from __future__ import annotations

import datetime as dt
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import checkout  # noqa: E402
import suite  # noqa: E402

MODULES = ("torch", "pip", "scikit_build_core", "pybind11", "pytest", "hypothesis")
#: An earlier run's results are kept where these are the same.
SAME = ("commit", "changed", "gpu", "driver", "toolkit", "torch", "python")


def slug(text: str) -> str:
    """Text as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def stop(message: str) -> None:
    """Ends the program because the machine lacks something."""
    print(f"gpu_check: {message}. Nothing was run.", file=sys.stderr)
    sys.exit(2)


def first_line(*command: str) -> str:
    """The first line that a program prints; "unknown" if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout.strip() if done.returncode == 0 else "") or "unknown"


def write_facts(work: Path, command: str) -> None:
    """Writes facts.json, forgets results of other facts; prints the GPU's name and architecture."""
    lacking = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if lacking:
        stop(f"{sys.executable} lacks {', '.join(lacking)}")
    import torch

    if not torch.cuda.is_available():
        stop(f"torch {torch.__version__} of {sys.executable} finds no CUDA device")
    release = re.search(r"release ([\d.]+)", first_line("nvcc", "--version"))
    driver = first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    major, minor = torch.cuda.get_device_capability(0)
    facts = {
        "check": "gpu",
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "commit": "unknown",
        "changed": False,
        **checkout.commit(),
        "gpu": torch.cuda.get_device_name(0),
        "compute_capability": f"{major}.{minor}",
        "driver": driver.splitlines()[0],
        "toolkit": release[1] if release else "unknown",
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }
    file = work / "facts.json"
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    known = facts["commit"] != "unknown" and not facts["changed"]
    if not known or any(earlier.get(name) != facts[name] for name in SAME):
        (work / "steps.tsv").unlink(missing_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(facts), encoding="utf-8")
    print(slug(facts["gpu"]), f"{major}{minor}-real")


def print_benchmarks() -> None:
    """Name, file, whether it takes --upstream, and arguments, with tabs between."""
    for benchmark in suite.BENCHMARKS:
        for run, arguments in benchmark.gpu_runs.items():
            name = "-".join(part for part in (benchmark.name, run) if part)
            print(name, benchmark.file, benchmark.takes_upstream, " ".join(arguments), sep="\t")


def write_report(work: Path, output: Path) -> None:
    """Writes gpu-check-GPU.json and prints a table."""
    facts: dict[str, Any] = json.loads((work / "facts.json").read_text(encoding="utf-8"))
    lines = (work / "steps.tsv").read_text(encoding="utf-8").splitlines()
    keys = ("name", "status", "seconds", "note")
    steps: list[dict[str, Any]] = [dict(zip(keys, line.split("\t"), strict=True)) for line in lines]
    for step in steps:
        step["seconds"] = int(step["seconds"])
        passed = step["status"] == "passed"
        note = step.pop("note")
        step["reason"], step["summary"] = ("", note) if passed else (note, "")
    facts["minutes"] = round(sum(step["seconds"] for step in steps) / 60, 1)
    facts["passed"] = all(step["status"] == "passed" for step in steps)
    facts["steps"] = steps
    path = output / f"gpu-check-{slug(facts['gpu'])}.json"
    # In one go: a run that is killed here leaves the old file or the new one.
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)
    commit = facts["commit"] + (", changed since" if facts["changed"] else "")
    print(f"\nDCLS on {facts['gpu']}, commit {commit}, {facts['date']}")
    print(f"driver {facts['driver']}, toolkit {facts['toolkit']}, torch {facts['torch']}\n")
    width = max(len(step["name"]) for step in steps)
    for step in steps:
        text = f"{step['name']:{width}}  {step['status']:11}  {step['seconds']:4} s"
        print(f"{text}  {step['reason']}{step['summary']}".rstrip())


if __name__ == "__main__":
    action, *paths = sys.argv[1:]
    if action == "facts":
        write_facts(Path(paths[0]), paths[1])
    elif action == "benchmarks":
        print_benchmarks()
    else:
        write_report(Path(paths[0]), Path(paths[1]))
