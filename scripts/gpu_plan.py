"""The steps of ``scripts/gpu_check.sh``: what it runs, the most valuable first."""

from __future__ import annotations

import argparse
import fnmatch
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "scripts")]

import suite  # noqa: E402
from gpu_steps import Step, skipped  # noqa: E402

#: The test files with tests for a GPU, by step: a kernel that breaks CUDA ends its step only.
GPU_TESTS = {
    "cuda": ("torch_tools/test_cuda.py",),
    "construct": ("ops/test_construct.py", "ops/test_construct_support.py"),
    "direct-conv": ("ops/test_direct_conv.py",),
    "im2col": ("ops/test_im2col.py",),
    "direct-conv-ops": ("ops/test_direct_conv_ops.py",),
    "im2col-ops": ("ops/test_im2col_ops.py",),
    "ops": ("ops/test_ops.py", "ops/test_forward_mode.py"),
    "modules": (
        "nn/test_fold.py",
        "compat/test_golden_differences.py",
        "nn/test_method.py",
        "nn/test_modules.py",
        "nn/test_nothing_stale.py",
        "compat/test_trainer_vision.py",
    ),
    "torch-tools": ("torch_tools/test_torch_tools.py",),
    "benchmarks": (
        "benchmarks/test_bench_conv.py",
        "benchmarks/test_bench_im2col.py",
        "benchmarks/test_benchmarks.py",
    ),
}
SANITIZER_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
#: What ``gpu_kernels.py --only`` takes.
FAMILIES = ("construct", "direct_conv", "im2col")
#: Seconds that each run of a benchmark needs, by its name, in the order in which they are run.
BENCHMARK_SECONDS = {
    "conv": 30,
    "rule": 60,
    "construct": 15,
    "im2col": 40,
    "device": 15,
    "model": 30,
}


def slug(text: str) -> str:
    """Text as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def build_step(options: argparse.Namespace, facts: dict[str, Any]) -> Step:
    """Builds for this GPU, into a folder of its own."""
    architecture = facts["compute_capability"].replace(".", "") + "-real"
    install = [sys.executable, "-m", "pip", "install", "-v", "--no-index", "--no-build-isolation"]
    install += ["--no-deps", "--no-compile", "--disable-pip-version-check"]
    install += ["--target", str(options.work / "site")]
    for setting in (
        f"build-dir={options.work / 'wheel'}",
        f"build.tool-args=-j{facts['cpus']}",
        "cmake.define.DCLS_CUDA=ON",
        f"cmake.define.DCLS_CUDA_ARCHITECTURES={architecture}",
    ):
        install += ["-C", setting]
    return Step("build", [*install, str(ROOT)], 120, needs_build=False)


def pytest_step(options: argparse.Namespace, name: str, *arguments: str, **more: Any) -> Step:
    """A run of pytest that says of each test how it went, also where it is cut short."""
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider"]
    # Not an error: this machine's torch, triton and drivers may warn of things of their own.
    command += ["-W", "default", "-o", "faulthandler_timeout=60"]
    command += [f"--junitxml={options.work / 'logs' / name}.xml"]
    # None passed and all skipped would be no success.
    return Step(name, [*command, *arguments], must_print=r"\b[1-9]\d* passed", **more)


def find_sanitizer() -> str | None:
    """Where compute-sanitizer is: on the PATH or in the toolkit."""
    toolkits = [Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda")]
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        toolkits.append(Path(nvcc).resolve().parents[1])
    folders = [str(toolkit / part) for toolkit in toolkits for part in ("bin", "compute-sanitizer")]
    return shutil.which(
        "compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), *folders])
    )


def sanitizer_steps() -> list[Step]:
    """Each tool of compute-sanitizer on each family of operators."""
    sanitizer = find_sanitizer()
    steps = []
    for tool in SANITIZER_TOOLS:
        for family in FAMILIES:
            name = f"{tool}-{family}"
            if sanitizer is None:
                steps.append(skipped(name, "compute-sanitizer was not found"))
                continue
            command = [sanitizer, "--tool", tool, "--error-exitcode", "9"]
            if tool == "memcheck":
                # torch makes calls of which it expects that they may fail.
                command += ["--report-api-errors", "no", "--padding", "256"]
            if tool in ("racecheck", "synccheck"):
                # Not cuBLAS's kernels, which im2col uses, too: they are slow here, and not ours.
                # The others have to see them: what they write is initialised.
                command += ["--kernel-regex", "kns=dcls"]
            command += [sys.executable, str(ROOT / "scripts" / "gpu_kernels.py"), "--only", family]
            # The line without which nothing was watched.
            steps.append(Step(name, command, 20, must_print=r"SUMMARY: 0 (errors|hazards)"))
    return steps


def benchmark_steps(options: argparse.Namespace, facts: dict[str, Any]) -> list[Step]:
    """The steps of benchmarks/suite.py."""
    steps = []
    order = list(BENCHMARK_SECONDS)
    runs = [benchmark for benchmark in suite.BENCHMARKS if benchmark.gpu_runs]
    for benchmark in sorted(runs, key=lambda each: order.index(each.name)):
        if not benchmark.path.is_file():
            reason = f"there is no benchmarks/{benchmark.file} yet"
            steps.append(skipped(f"bench-{benchmark.name}", reason, optional=True))
            continue
        for run, arguments in benchmark.gpu_runs.items():
            name = "-".join(part for part in (benchmark.name, run) if part)
            file = options.output / f"{name}-{slug(facts['gpu'])}.json"
            command = [sys.executable, str(benchmark.path), "--device", "cuda", *arguments]
            command += ["--repeats", "3", "--slow-repeats", "2"]
            if options.upstream is not None and benchmark.takes_upstream:
                command += ["--upstream", str(options.upstream)]
            command += ["--json", str(file)]
            seconds = BENCHMARK_SECONDS[benchmark.name]
            steps.append(
                Step(f"bench-{name}", command, seconds, must_write=file, shows_output=True)
            )
    return steps


def make_steps(options: argparse.Namespace, facts: dict[str, Any]) -> list[Step]:
    """All steps, in their order."""
    steps = [build_step(options, facts)]
    for group, names in GPU_TESTS.items():
        files = [str(ROOT / "tests" / name) for name in names]
        steps.append(pytest_step(options, f"pytest-{group}", "-m", "gpu", *files, reserve=20))
    steps += sanitizer_steps()
    steps += benchmark_steps(options, facts)
    # What needs no GPU comes last.
    steps.append(pytest_step(options, "pytest-rest", "-m", "not gpu", reserve=0, optional=True))
    ctest = (
        'cmake --preset dev -B "$1" && cmake --build "$1" --parallel "$2" && '
        'ctest --test-dir "$1" --parallel "$2" --output-on-failure'
    )
    folder, jobs = str(options.work / "ctest"), str(facts["cpus"])
    steps.append(
        Step(
            "ctest",
            ["bash", "-c", ctest, "ctest", folder, jobs],
            0,
            must_print=r"100% tests passed",
            needs_build=False,
            optional=True,
        )
    )
    return steps


def select(steps: list[Step], only: list[str], skip: list[str]) -> None:
    """Marks the steps that are to be run.

    Args:
        steps: all steps.
        only: names or patterns such as ``pytest-*`` of those to run; empty for all.
        skip: names or patterns of those to leave out.

    Raises:
        ValueError: nothing has such a name.
    """
    for pattern in [*only, *skip]:
        if not fnmatch.filter([step.name for step in steps], pattern):
            names = ", ".join(step.name for step in steps)
            raise ValueError(f"no step is called {pattern}; there are {names}")

    def matches(step: Step, patterns: list[str]) -> bool:
        return any(fnmatch.fnmatchcase(step.name, pattern) for pattern in patterns)

    for step in steps:
        step.selected = (not only or matches(step, only)) and not matches(step, skip)
        if not step.selected and not step.reason:
            step.reason = "not selected"
