"""Runs the steps of ``scripts/gpu_check.sh`` within a time budget and reports on them.

Every step is a program of its own with a time limit: it may use what is left of the budget but for
what the later steps reserve, so that one that hangs costs the others nothing. The JSON is written
anew whenever a step begins or ends, and with the logs packed into one file. So whatever cuts the
run short, they say which steps passed, failed, were skipped or were not reached; a step that is
under way counts as failed.

A run of some of the steps takes over what the JSON there says about the others, if that is of the
same commit and the same machine.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "scripts")]

import checkout  # noqa: E402
import suite  # noqa: E402
from gpu_plan import make_steps, select, slug  # noqa: E402
from gpu_steps import (  # noqa: E402
    FAILED,
    NOT_REACHED,
    PASSED,
    SKIPPED,
    CutShortError,
    execute,
    time_limits,
)

#: Default of --minutes.
MINUTES = 20.0
#: Seconds kept back for the report.
MARGIN = 3.0
#: A step is not begun with less time than this, in seconds.
LEAST = 1.0
#: What must be equal in an earlier report of which entries are taken over.
SAME = ("commit", "gpu", "driver", "toolkit", "torch", "python")
ARCHIVE = "gpu-check.tar.gz"


# ----------------------------------------------------------------------------------------- reports


class Report:
    """The run: its facts and steps, the JSON file, the table.

    Raises:
        ValueError: the options name a step that there is none of.
    """

    def __init__(self, options: argparse.Namespace, facts: dict[str, Any], begin: float) -> None:
        self.options = options
        self.facts = facts
        self.begin = begin
        self.logs: Path = options.work / "logs"
        self.steps = make_steps(options, facts)
        select(self.steps, options.steps, options.skip)
        self.selected = [step for step in self.steps if step.selected]
        self.path: Path = options.output / f"gpu-check-{slug(facts['gpu'])}.json"
        self.recall()

    def recall(self) -> None:
        """Takes over what an earlier report says about steps that are left out."""
        try:
            earlier = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        known = self.facts["commit"] != "unknown" and not self.facts.get("changed")
        if not known or any(earlier.get(name) != self.facts.get(name) for name in SAME):
            return
        entries = {entry["name"]: entry for entry in earlier["steps"]}
        for step in self.steps:
            if not step.selected and step.name in entries:
                step.recall(entries[step.name])

    def write(self) -> None:
        content = {
            "check": "gpu",
            **self.facts,
            "minutes": round((time.monotonic() - self.begin) / 60, 2),
            "passed": all(step.is_well() for step in self.steps),
            "steps": [step.as_json() for step in self.steps],
        }
        # In one go: a run cut short here leaves the old file or the new one.
        draft = self.path.with_suffix(".tmp")
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        draft.replace(self.path)

    def pack(self) -> None:
        """Packs the logs and the results into one file, which is easily carried away."""
        draft = self.options.output / f"{ARCHIVE}.part"
        with tarfile.open(draft, "w:gz") as archive:
            archive.add(self.logs, self.logs.name)
            for path in sorted(self.options.output.glob(f"*-{slug(self.facts['gpu'])}.json")):
                archive.add(path, path.name)
        draft.replace(draft.with_name(ARCHIVE))

    def run(self, env: dict[str, str]) -> None:
        """Runs the steps; CutShortError if a signal comes."""
        reserves = [step.reserve for step in self.selected]
        deadline = self.begin + 60 * self.options.minutes - MARGIN
        build_failed = False
        for index, step in enumerate(self.selected):
            if step.status == NOT_REACHED:
                limit = time_limits(reserves, index, deadline - time.monotonic())
                if build_failed and step.needs_build:
                    step.status, step.reason = SKIPPED, "the build failed"
                elif limit < LEAST:
                    step.reason = "no time was left"
                else:
                    print(f"gpu_check: {step.name} (at most {limit:.0f} s)", flush=True)
                    step.status, step.reason = FAILED, "cut short"  # unless it gets further
                    self.write()
                    execute(step, limit, self.logs, env)
                    build_failed |= step.name == "build" and step.status == FAILED
                    if step.status == FAILED:
                        lines = [*step.errors, "...", *step.tail]
                        print("\n".join(f"    {line}" for line in lines), flush=True)
            print(
                f"gpu_check: {step.name} {step.status} after {step.seconds:.1f} s"
                + (f" ({step.note()})" if step.note() else ""),
                flush=True,
            )
            self.write()
            self.pack()

    def table(self) -> str:
        """The short report for the reader."""
        facts = self.facts
        commit = facts["commit"] + (", changed since" if facts.get("changed") else "")
        width = max(len(step.name) for step in self.steps)
        lines = [
            "",
            f"DCLS on {facts['gpu']} (compute capability {facts['compute_capability']})",
            f"driver {facts['driver']}, toolkit {facts['toolkit']}, torch {facts['torch']}",
            f"commit {commit}, {facts['date']}",
            "",
        ]
        for step in self.steps:
            line = f"{step.name:{width}}  {step.status:11}  {step.seconds:6.1f} s  {step.note()}"
            lines.append(line.rstrip())
        for step in self.selected:
            if step.shows_output and step.status == PASSED:
                file = self.logs / f"{step.name}.out"
                text = file.read_text(encoding="utf-8", errors="replace")
                lines += ["", f"{step.name}:", text.rstrip()]
        return "\n".join([*lines, "", f"written: {self.path}"])


# ------------------------------------------------------------------------------------------- facts

_ASK_TORCH = """
import json, torch
found = torch.cuda.is_available()
print(json.dumps({
    "torch": torch.__version__,
    "cuda_of_torch": torch.version.cuda or "",
    "gpu": torch.cuda.get_device_name(0) if found else "",
    "compute_capability": ".".join(map(str, torch.cuda.get_device_capability(0))) if found else "",
}))
"""
_MODULES = ("pip", "scikit_build_core", "pybind11", "pytest")
#: What some of the tests import; all else can be run without.
_TEST_MODULES = ("hypothesis", "numpy")
_ASK_MODULES = """
import importlib.util, sys
print(*[name for name in sys.argv[1:] if importlib.util.find_spec(name) is None])
"""


def missing(what: str) -> NoReturn:
    """Ends the program because the machine lacks something."""
    print(f"gpu_check: {what}. Nothing was built.", file=sys.stderr)
    sys.exit(2)


def output_of(*command: str) -> str:
    """What a program prints; "" if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def gather_facts(python: str) -> dict[str, Any]:
    """What the results depend on; ends the program where something needed is missing."""
    answer = output_of(python, "-c", _ASK_TORCH)
    if not answer:
        missing(f"{python} cannot import torch")
    facts = json.loads(answer.splitlines()[-1])
    if not facts["gpu"]:
        missing(f"torch {facts['torch']} of {python} finds no CUDA device")
    absent = output_of(python, "-c", _ASK_MODULES, *_MODULES, *_TEST_MODULES).split()
    lacking = [name for name in absent if name not in _TEST_MODULES]
    lacking += [name for name in ("cmake", "ctest", "ninja") if shutil.which(name) is None]
    if lacking:
        missing(f"these are missing: {', '.join(lacking)}")
    if absent:
        print(f"gpu_check: tests that need {', '.join(absent)} will fail", flush=True)
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    toolkit = re.search(r"release ([\d.]+)", output_of("nvcc", "--version"))
    return {
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["scripts/gpu_check.sh", *sys.argv[1:]]),
        "commit": "unknown",
        **checkout.commit(),
        **facts,
        "driver": driver.splitlines()[0] if driver else "unknown",
        "toolkit": toolkit[1] if toolkit else "unknown",
        "python": sys.version.split()[0],
        "cpus": len(os.sched_getaffinity(0)),
    }


def parse_options() -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = argparse.ArgumentParser(prog="gpu_check.sh")
    parser.add_argument("--upstream", type=Path)
    parser.add_argument("--output", type=Path, default=suite.RESULTS)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu-check")
    parser.add_argument("--steps", nargs="+", default=[])
    parser.add_argument("--skip", nargs="+", default=[])
    parser.add_argument("--commit")
    options = parser.parse_args()
    if not 0 < options.minutes < float("inf"):
        parser.error(f"argument --minutes: takes a number above 0, got {options.minutes}")
    if options.upstream is not None and not options.upstream.is_dir():
        parser.error(f"argument --upstream: there is no folder {options.upstream}")
    for name in ("upstream", "output", "work"):  # the steps run in the project's folder
        path = getattr(options, name)
        setattr(options, name, path.resolve() if path is not None else None)
    return options


def main() -> int:
    """Runs the steps; returns the exit status."""
    begin = time.monotonic()
    options = parse_options()
    if options.commit is not None:
        os.environ[checkout.VARIABLE] = options.commit  # for the benchmarks, too
    facts = gather_facts(sys.executable)
    site = options.work / "site"
    try:
        report = Report(options, facts, begin)
    except ValueError as error:
        missing(f"argument --steps or --skip: {error}")
    build = report.steps[0]
    if build.selected:
        shutil.rmtree(site, ignore_errors=True)
    elif not site.is_dir() and any(step.needs_build for step in report.selected):
        missing(f"there is no build in {options.work}, and the step build was not selected")
    for folder in (report.logs, options.output):
        folder.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "PIP_NO_INPUT": "1"}
    env["PATH"] = os.pathsep.join([str(site / "bin"), os.environ["PATH"]])
    env["PYTHONPATH"] = os.pathsep.join(
        part for part in (str(site), os.environ.get("PYTHONPATH", "")) if part
    )

    def stop(number: int, frame: object) -> None:  # noqa: ARG001
        for other in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(other, signal.SIG_IGN)  # one is enough
        raise CutShortError(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        report.run(env)
    except CutShortError as error:
        print(f"gpu_check: cut short: {error}", flush=True)
    report.write()
    (report.logs / "report.txt").write_text(report.table() + "\n", encoding="utf-8")
    report.pack()
    print(report.table())
    return 0 if all(step.is_well() for step in report.selected) else 1


if __name__ == "__main__":
    sys.exit(main())
