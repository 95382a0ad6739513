"""Runs the steps of ``scripts/gpu_check.sh`` within a time budget and reports on them.

Every step is a program of its own with a time limit: it may use what is left of the budget but for
what the later steps reserve, so that one that hangs costs the others nothing. The JSON is written
anew whenever a step begins or ends. So whatever cuts the run short, the file says which steps
passed, failed, were skipped or were not reached; a step that is under way counts as failed.
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
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "scripts")]

import checkout  # noqa: E402
import suite  # noqa: E402
from gpu_steps import (  # noqa: E402
    FAILED,
    NOT_REACHED,
    PASSED,
    SKIPPED,
    CutShortError,
    Step,
    execute,
    skipped,
    time_limits,
)

SANITIZER_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
#: The reserves of the steps below are made for this many minutes, and scaled to others.
MINUTES = 9.0
#: Seconds kept back for the report.
MARGIN = 3.0
#: A step is not begun with less time than this, in seconds.
LEAST = 1.0


# -------------------------------------------------------------------------------- what is to be run


def slug(text: str) -> str:
    """Text as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def benchmark_steps(options: argparse.Namespace, facts: dict[str, Any]) -> list[Step]:
    """The steps of benchmarks/suite.py."""
    steps = []
    for benchmark in suite.BENCHMARKS:
        if not benchmark.path.is_file():
            reason = f"there is no benchmarks/{benchmark.file} yet"
            steps.append(skipped(f"bench-{benchmark.name}", reason))
            continue
        for run, arguments in benchmark.gpu_runs.items():
            name = "-".join(part for part in (benchmark.name, run) if part)
            file = options.output / f"{name}-{slug(facts['gpu'])}.json"
            file.unlink(missing_ok=True)  # an old result is none of this run
            command = [sys.executable, str(benchmark.path), "--device", "cuda", *arguments]
            if options.upstream is not None and benchmark.takes_upstream:
                command += ["--upstream", str(options.upstream)]
            command += ["--json", str(file)]
            steps.append(Step(f"bench-{name}", command, 12, must_write=file, shows_output=True))
    return steps


def make_steps(options: argparse.Namespace, facts: dict[str, Any]) -> list[Step]:
    """All steps, in their order."""
    jobs, python, work = facts["cpus"], sys.executable, options.work
    architecture = facts["compute_capability"].replace(".", "") + "-real"
    install = [python, "-m", "pip", "install", "--no-index", "--no-build-isolation", "--no-deps"]
    install += ["--no-compile", "--disable-pip-version-check", "--target", str(work / "site")]
    for setting in (
        f"build-dir={work / 'wheel'}",
        f"build.tool-args=-j{jobs}",
        "cmake.define.DCLS_CUDA=ON",
        f"cmake.define.DCLS_CUDA_ARCHITECTURES={architecture}",
    ):
        install += ["-C", setting]
    ctest = (
        'cmake --preset dev -B "$1" && cmake --build "$1" --parallel "$2" && '
        'ctest --test-dir "$1" --parallel "$2" --output-on-failure'
    )
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    steps = [
        Step("build", [*install, str(ROOT)], 140, needs_build=False),
        Step(
            "ctest",
            ["bash", "-c", ctest, "ctest", str(work / "ctest"), str(jobs)],
            80,
            must_print=r"100% tests passed",
            needs_build=False,
        ),
        # None passed and all skipped would be no success.
        Step("pytest-gpu", [*pytest, "-m", "gpu"], 80, must_print=r"\b[1-9]\d* passed"),
    ]
    sanitizer = shutil.which("compute-sanitizer")
    for tool in SANITIZER_TOOLS:
        if sanitizer is None:
            steps.append(skipped(tool, "compute-sanitizer is not on the PATH"))
            continue
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9"]
        if tool == "memcheck":
            # torch makes calls of which it expects that they may fail.
            command += ["--report-api-errors", "no", "--padding", "256"]
        command += [python, str(ROOT / "scripts" / "gpu_kernels.py")]
        # The line without which nothing was watched.
        steps.append(Step(tool, command, 25, must_print=r"SUMMARY: 0 (errors|hazards)"))
    steps += benchmark_steps(options, facts)
    steps.append(
        Step(
            "pytest-rest",
            [*pytest, "-m", "not gpu"],
            0,
            must_print=r"\b[1-9]\d* passed",
            optional=True,
        )
    )
    return steps


# ----------------------------------------------------------------------------------------- reports


class Report:
    """The run: its facts and steps, the JSON file, the table."""

    def __init__(self, options: argparse.Namespace, facts: dict[str, Any]) -> None:
        self.options = options
        self.facts = facts
        self.steps = make_steps(options, facts)
        self.begin = time.monotonic()
        self.path: Path = options.output / f"gpu-check-{slug(facts['gpu'])}.json"

    def failed(self) -> bool:
        """Whether any step failed, or was not reached though it should have been."""
        return any(
            step.status == FAILED or (step.status == NOT_REACHED and not step.optional)
            for step in self.steps
        )

    def write(self) -> None:
        content = {
            "check": "gpu",
            **self.facts,
            "minutes": round((time.monotonic() - self.begin) / 60, 2),
            "passed": not self.failed(),
            "steps": [step.as_json() for step in self.steps],
        }
        # In one go: a run cut short here leaves the old file or the new one.
        draft = self.path.with_suffix(".tmp")
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        draft.replace(self.path)

    def run(self, logs: Path, env: dict[str, str]) -> None:
        """Runs the steps; CutShortError if a signal comes."""
        scale = self.options.minutes / MINUTES
        reserves = [step.reserve * scale for step in self.steps]
        deadline = self.begin + 60 * self.options.minutes - MARGIN
        build_failed = False
        for index, step in enumerate(self.steps):
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
                    execute(step, limit, logs, env)
                    build_failed |= step.name == "build" and step.status == FAILED
                    if step.status == FAILED:
                        print("\n".join(f"    {line}" for line in step.tail), flush=True)
            note = "; ".join(part for part in (step.reason, step.summary) if part)
            print(
                f"gpu_check: {step.name} {step.status} after {step.seconds:.1f} s"
                + (f" ({note})" if note else ""),
                flush=True,
            )
            self.write()

    def table(self, logs: Path) -> str:
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
            note = "; ".join(part for part in (step.reason, step.summary) if part)
            line = f"{step.name:{width}}  {step.status:11}  {step.seconds:6.1f} s  {note}"
            lines.append(line.rstrip())
        for step in self.steps:
            if step.shows_output and step.status == PASSED:
                text = (logs / f"{step.name}.out").read_text(encoding="utf-8", errors="replace")
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
_MODULES = ("pip", "scikit_build_core", "pybind11", "pytest", "hypothesis", "numpy")
_ASK_MODULES = """
import importlib.util, sys
print(*[name for name in sys.argv[1:] if importlib.util.find_spec(name) is None])
"""


def missing(what: str) -> None:
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
    lacking = output_of(python, "-c", _ASK_MODULES, *_MODULES).split()
    lacking += [name for name in ("cmake", "ctest", "ninja") if shutil.which(name) is None]
    if lacking:
        missing(f"these are missing: {', '.join(lacking)}")
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
    """Runs all steps; returns the exit status."""
    options = parse_options()
    facts = gather_facts(sys.executable)
    logs, site = options.work / "logs", options.work / "site"
    shutil.rmtree(site, ignore_errors=True)
    for folder in (logs, options.output):
        folder.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "PIP_NO_INPUT": "1"}
    env["PATH"] = os.pathsep.join([str(site / "bin"), os.environ["PATH"]])
    env["PYTHONPATH"] = os.pathsep.join(
        part for part in (str(site), os.environ.get("PYTHONPATH", "")) if part
    )
    report = Report(options, facts)

    def stop(number: int, frame: object) -> None:  # noqa: ARG001
        for other in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(other, signal.SIG_IGN)  # one is enough
        raise CutShortError(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        report.run(logs, env)
    except CutShortError as error:
        print(f"gpu_check: cut short: {error}", flush=True)
    report.write()
    print(report.table(logs))
    return 1 if report.failed() else 0


if __name__ == "__main__":
    sys.exit(main())
