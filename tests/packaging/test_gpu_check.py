"""scripts/gpu_check.sh where there is no GPU: its plan, and runs with programs that play one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"

pytestmark = pytest.mark.skipif(
    not SCRIPT.is_file() or shutil.which("timeout") is None, reason="takes a source tree and Linux"
)

#: How a command for compute-sanitizer ends, before its files.
SANITIZER = "-m sanitizer\\ and\\ gpu "
PLAYED = ("nvidia-smi", "nvcc", "python3", "cmake", "ctest", "ninja", "compute-sanitizer")
#: No git, which might say that files were changed.
REAL = (
    "awk basename bash cat cut dirname env grep gzip mkdir mv nproc readlink realpath rm sed seq"
    " sleep sort tail tar timeout tr"
)
#: Plays every program of the machine. $HERE/instead may do something else for some commands.
PLAYER = r"""#!/bin/bash
all="$(basename "$0") $*"
if [ -f "$HERE/instead" ]; then . "$HERE/instead"; fi
echo "$all" >>"$HERE/log"
case $all in
  nvidia-smi*) echo 999.1 ;;
  nvcc*) echo "Cuda compilation tools, release 13.7, V13.7.1" ;;
  python3*gpu_report.py*) exec "$REAL_PYTHON" -S "$@" ;;
  python3*"-m pytest"*) echo "=== 345 passed, 1 skipped in 1s ===" ;;
  python3*"pip install"*) while [ "$1" != --target ]; do shift; done; mkdir -p "$2" ;;
  python3*bench_*) while [ "$1" != --json ]; do shift; done; echo '{}' >"$2" ;;
  ctest*) echo "100% tests passed, 0 tests failed out of 9" ;;
  compute-sanitizer*) echo "=== 3 passed in 1s ==="; echo "========= ERROR SUMMARY: 0 errors" ;;
esac
"""
TORCH = """
__version__ = "9.9"
class cuda:
    is_available = lambda: True
    get_device_name = lambda index: "NVIDIA Imaginary 100"
    get_device_capability = lambda index: (9, 0)
"""
#: A pytest plugin: runs each test function once, and tells which operators none of them called.
OPERATORS = """
import pytest, torch
from torch.utils._python_dispatch import TorchDispatchMode

called = set()

class Listener(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        called.add(function.name())
        return function(*args, **(kwargs or {}))

@pytest.hookimpl(trylast=True)  # after -m
def pytest_collection_modifyitems(items):
    items[:] = {item.originalname: item for item in items}.values()

@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    with Listener():
        return (yield)

def pytest_terminal_summary(terminalreporter):
    names = {n for n in torch._C._dispatch_get_all_op_names() if n.startswith("dcls::")}
    terminalreporter.write_line(f"{len(names)} operators, not called: {sorted(names - called)}")
"""


class Machine:
    """A machine with a GPU, played by programs in a folder, and runs of the script there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.programs, self.output = folder, folder / "bin", folder / "output"
        self.programs.mkdir()
        for name in PLAYED:
            (self.programs / name).write_text(PLAYER)
            (self.programs / name).chmod(0o755)
        for name in REAL.split():
            (self.programs / name).symlink_to(shutil.which(name))
        modules = folder / "modules"
        modules.mkdir()
        for name in ("pip", "scikit_build_core", "pybind11", "pytest", "hypothesis"):
            (modules / f"{name}.py").touch()
        (modules / "torch.py").write_text(TORCH)
        self.environment = {
            "PATH": str(self.programs),
            "HERE": str(folder),
            "REAL_PYTHON": sys.executable,
            "PYTHONPATH": str(modules),
            "CUDA_HOME": str(folder / "none"),
        }

    def instead(self, commands: str) -> None:
        (self.folder / "instead").write_text(f"case $all in {commands} esac")

    def command(self, *options: str) -> list[str]:
        places = ("--output", str(self.output), "--work", str(self.folder / "work"))
        return ["bash", str(SCRIPT), *places, *options]

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        command = self.command(*options)
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=120
        )

    @property
    def report(self) -> dict:
        return json.loads((self.output / "gpu-check-nvidia-imaginary-100.json").read_text())

    @property
    def steps(self) -> dict[str, dict]:
        return {step["name"]: step for step in self.report["steps"]}

    def passed(self) -> set[str]:
        return {name for name, step in self.steps.items() if step["status"] == "passed"}


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


# ---- the plan


def dry_run(*options: str) -> dict[str, str]:
    done = subprocess.run(
        ["bash", str(SCRIPT), "--dry-run", *options],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHON": sys.executable},
    )
    lines = done.stdout.splitlines()
    return dict(zip((name[2:] for name in lines[::2]), lines[1::2], strict=True))


def run_pytest(*options: str, path: str = "") -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    path = os.pathsep.join([path, os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env).stdout


def test_no_test_for_a_gpu_is_left_out():
    listing = run_pytest("--collect-only", "-m", "gpu", "tests")
    collected = {line.split("::")[0] for line in listing.splitlines() if "::" in line}
    steps = dry_run("--steps", "pytest-*").values()
    assert collected
    assert sorted(step.split(" -m gpu ")[1].strip() for step in steps) == sorted(collected)


def test_every_file_with_the_marker_is_watched():
    files = {path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)}
    marked = {str(f.relative_to(ROOT)) for f in files if "mark.sanitizer" in f.read_text("utf-8")}
    watched = dry_run("--steps", "memcheck")["memcheck"].split(SANITIZER)[1].split()
    assert set(watched) == marked


def test_compute_sanitizer_sees_every_operator(tmp_path):
    (tmp_path / "operators.py").write_text(OPERATORS)
    files = dry_run("--steps", "memcheck")["memcheck"].split(SANITIZER)[1].split()
    options = ("-p", "operators", "-m", "sanitizer and not gpu", *files)
    output = run_pytest(*options, path=str(tmp_path))
    found = re.search(r"(\d+) operators, not called: \[\]", output)
    assert found, output
    assert int(found[1]) >= 9
    assert "failed" not in output


def test_dry_run_prints_the_commands(tmp_path):
    upstream, output = str(tmp_path), tmp_path / "output"
    steps = dry_run("--upstream", upstream, "--output", str(output))
    assert "--no-build-isolation --no-deps" in steps["build"]
    assert f"--upstream {upstream}" in steps["bench-construct-2d"]
    assert "--upstream" not in steps["bench-device"]
    assert "compute-sanitizer --tool racecheck" in steps["racecheck"]
    assert list(dry_run("--steps", "bench-rule-*", "build")) == ["build"] + [
        f"bench-rule-{ndim}d" for ndim in (2, 1, 3)
    ]
    assert not output.exists()


# ---- what is refused


@pytest.mark.parametrize(
    ("lacking", "options", "message"),
    [
        (["bin/nvcc", "bin/ninja"], [], "not found: nvcc ninja. Nothing was run."),
        (["bin/compute-sanitizer"], [], "not found: compute-sanitizer."),
        (["modules/pybind11.py"], [], "lacks pybind11."),
        ([], ["--steps", "bench-*"], "there is no build in"),
        ([], ["--steps", "build", "ctset"], "no step is called ctset"),
        ([], ["--minutes", "soon"], "--minutes takes a number"),
        ([], ["--upstream", "/nowhere"], "there is no folder /nowhere."),
        ([], ["--fast"], "there is no option --fast"),
    ],
)
def test_what_is_missing_or_wrong_is_named(machine, lacking, options, message):
    for name in lacking:
        (machine.folder / name).unlink()
    done = machine.run(*options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gpu_check: ")
    assert message in done.stderr
    assert not machine.output.exists()


def test_torch_finds_no_gpu(machine):
    (machine.folder / "modules/torch.py").write_text(TORCH.replace("True", "False"))
    done = machine.run()
    assert done.returncode == 2
    assert "finds no CUDA device. Nothing was run." in done.stderr


def test_help_says_what_it_needs():
    done = subprocess.run(["bash", str(SCRIPT), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "It needs nvcc" in done.stdout
    assert "set -euo" not in done.stdout


# ---- runs


def test_all_steps_in_three_commands(machine):
    commands = (("build", "pytest-ops-c*", "ctest"), ("bench-conv*",), ("*check",))
    for steps in commands:
        done = machine.run("--commit", "abc", "--minutes", "9", "--steps", *steps)
        assert done.returncode == 0, done.stdout + done.stderr
    report = machine.report
    assert machine.passed() == set(
        dry_run("--steps", *(name for steps in commands for name in steps))
    )
    assert not report["passed"]  # the others were not reached
    assert (report["commit"], report["driver"], report["toolkit"]) == ("abc", "999.1", "13.7")
    assert machine.steps["pytest-ops-construct"]["summary"] == " 345 passed, 1 skipped in 1s "
    assert (machine.output / "conv-float16-nvidia-imaginary-100.json").is_file()
    log = (machine.folder / "log").read_text()
    assert "cmake.define.DCLS_CUDA_ARCHITECTURES=90-real" in log
    assert log.count("compute-sanitizer --tool") == 4
    # Of another commit nothing counts.
    assert machine.run("--commit", "other", "--steps", "ctest").returncode == 0
    assert machine.passed() == {"ctest"}


def test_a_failed_build(machine):
    machine.instead('*"pip install"*) echo "a.cu(1): error: wrong"; seq 99; exit 3;;')
    done = machine.run("--steps", "build", "ctest", "memcheck")
    assert done.returncode == 1
    assert "    a.cu(1): error: wrong\n" in done.stdout
    assert machine.steps["build"]["reason"] == "exit status 3"
    assert machine.steps["memcheck"]["reason"] == "the build failed"
    assert machine.passed() == {"ctest"}


@pytest.mark.parametrize(
    ("step", "commands", "reason"),
    [
        ("pytest-torch_tools-cuda", "*test_cuda.py*) kill -KILL $$;;", "exit status 137"),
        ("pytest-torch_tools-cuda", "*test_cuda.py*) echo 346 skipped; exit;;", "nothing in its"),
        ("memcheck", "compute-sanitizer*memcheck*) echo 3 passed; exit;;", "nothing in its output"),
    ],
)
def test_later_steps_run_after_a_failure(machine, step, commands, reason):
    machine.instead(commands)
    done = machine.run("--steps", "build", "pytest-torch*", "memcheck", "initcheck")
    assert done.returncode == 1
    assert machine.steps[step]["status"] == "failed"
    assert reason in machine.steps[step]["reason"]
    chosen = {"build", "pytest-torch_tools-cuda", "pytest-torch_tools-torch_tools"}
    assert machine.passed() == (chosen | {"memcheck", "initcheck"}) - {step}
    assert f"gpu_check: {step} failed" in done.stdout


def test_a_step_over_its_time_is_cut(machine):
    """With what it started; pytest is interrupted first, so that it can report."""
    machine.instead(
        "*test_cuda.py*) sleep 1234 & echo $! >$HERE/pid; "
        "trap 'echo interrupted; exit 2' INT; while :; do sleep 0.1; done;;"
    )
    done = machine.run("--minutes", "0.8", "--steps", "build", "pytest-torch*", "ctest")
    assert done.returncode == 1
    assert machine.steps["pytest-torch_tools-cuda"]["reason"].startswith("not done after")
    assert machine.passed() == {"build", "pytest-torch_tools-torch_tools", "ctest"}
    assert "    interrupted\n" in done.stdout
    left = Path("/proc", (machine.folder / "pid").read_text().strip(), "stat")
    assert not left.exists() or ") Z " in left.read_text()  # dead, and not yet asked for


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_results_so_far_are_packed(machine, number):
    machine.instead("*test_cuda.py*) echo $$ >$HERE/pid; exec sleep 30;;")
    command = machine.command("--steps", "build", "pytest-ops-construct", "pytest-torch*", "*check")
    with subprocess.Popen(command, env=machine.environment) as process:
        while not (machine.folder / "pid").is_file():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
    assert process.returncode == (1 if number == signal.SIGTERM else -number)
    with tarfile.open(machine.output / "gpu-check.tar.gz") as archive:
        steps = json.load(archive.extractfile("gpu-check-nvidia-imaginary-100.json"))["steps"]
        assert b"345 passed" in archive.extractfile("logs/pytest-ops-construct.log").read()
    found = {step["name"]: step["status"] for step in steps}
    assert found["pytest-ops-construct"] == "passed"
    assert found["pytest-torch_tools-cuda"] == "failed"
    assert found["memcheck"] == "not reached"
