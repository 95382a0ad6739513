"""scripts/gpu_check.sh where there is no GPU: with none, and with programs that play one."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"

pytestmark = pytest.mark.skipif(
    not SCRIPT.is_file() or shutil.which("bash") is None, reason="takes a source tree and bash"
)

#: Plays nvidia-smi, nvcc, compute-sanitizer, cmake, ctest and, but for gpu_report.py, python.
#: A file $FAKES/NAME holds shell commands for the step NAME instead of what it does otherwise.
PLAYER = r"""#!/bin/bash
me=$(basename "$0"); all="$me $*"
instead() { if [ -f "$FAKES/$1" ]; then echo "ran $1" >>"$FAKES/log"; . "$FAKES/$1"; exit; fi; }
case $all in
  "nvidia-smi --list-gpus") instead list-gpus; echo "GPU 0: NVIDIA Imaginary 100 (UUID: none)" ;;
  nvidia-smi*driver_version*) echo 999.1 ;;
  nvcc*) echo "Cuda compilation tools, release 13.7, V13.7.1" ;;
  python3*gpu_report.py*) exec -a "$0" @PYTHON@ "$@" ;;
  python3*get_device_capability*) instead ask-torch
    echo '{"torch": "9.9", "cuda_of_torch": "13.7", "gpu": "NVIDIA Imaginary 100",'\
         '"compute_capability": "9.0"}' ;;
  python3*find_spec*) instead ask-modules ;;
  python3*"pip install"*) echo "$all" >>"$FAKES/log"; instead build ;;
  cmake*) echo "$all" >>"$FAKES/log" ;;
  ctest*) instead ctest; echo "100% tests passed, 0 tests failed out of 9" ;;
  compute-sanitizer*) instead "$2"; "${@: -2}"; echo "========= ERROR SUMMARY: 0 errors" ;;
  python3*gpu_kernels.py) echo kernels >>"$FAKES/log" ;;
  python3*"pytest"*"not gpu") instead pytest-rest; echo "7 passed in 1s" ;;
  python3*"pytest"*gpu) instead pytest-gpu; echo "345 passed, 1 skipped in 1s" ;;
  python3*bench_*.py*) instead bench
    while [ "$1" != --json ]; do shift; done
    echo '{"benchmark": "construct"}' >"$2"; echo "median 1.0 [0.9-1.1] ms" ;;
  *) echo "nobody plays: $all" >&2; exit 99 ;;
esac
"""


@pytest.fixture
def fakes(tmp_path):
    """A folder of programs that play a machine with a GPU."""
    folder = tmp_path / "fakes"
    programs = folder / "programs"
    programs.mkdir(parents=True)
    names = ["nvidia-smi", "nvcc", "python3", "cmake", "ctest", "ninja", "compute-sanitizer"]
    for name in names:
        file = programs / name
        file.write_text(PLAYER.replace("@PYTHON@", sys.executable))
        file.chmod(0o755)
    for name in ("bash", "basename", "dirname", "sed", "git", "sleep"):
        program = shutil.which(name)
        if program is not None:
            (programs / name).symlink_to(program)
    return folder


def arguments(fakes: Path, *more: str) -> list[str]:
    output, work = fakes.parent / "output", fakes.parent / "work"
    return ["bash", str(SCRIPT), "--output", str(output), "--work", str(work), *more]


def environment(fakes: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "CUDA_HOME")}
    return {
        **kept,
        "PATH": str(fakes / "programs"),
        "FAKES": str(fakes),
        "CUDA_HOME": str(fakes / "none"),
    }


def run(fakes: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments(fakes, *more),
        env=environment(fakes),
        capture_output=True,
        text=True,
        timeout=60,
    )


def report(fakes: Path) -> dict:
    return json.loads((fakes.parent / "output/gpu-check-nvidia-imaginary-100.json").read_text())


def statuses(fakes: Path) -> dict[str, str]:
    return {step["name"]: step["status"] for step in report(fakes)["steps"]}


def log(fakes: Path) -> str:
    file = fakes / "log"
    return file.read_text() if file.is_file() else ""


@pytest.fixture(scope="module")
def gpu_report():
    spec = importlib.util.spec_from_file_location("gpu_report", ROOT / "scripts/gpu_report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    path = list(sys.path)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path[:] = path
        del sys.modules[spec.name]


# ---- something is missing


def assert_says_so(fakes, message):
    done = run(fakes)
    assert done.returncode == 2
    assert done.stderr == f"gpu_check: {message}. Nothing was built.\n"
    assert done.stdout == ""
    assert log(fakes) == ""
    assert not (fakes.parent / "output").exists()
    assert not (fakes.parent / "work").exists()


def test_no_nvidia_smi(fakes):
    (fakes / "programs/nvidia-smi").unlink()
    assert_says_so(fakes, "there is no NVIDIA GPU here: nvidia-smi is not on the PATH")


def test_no_gpu(fakes):
    (fakes / "list-gpus").write_text("echo 'No devices were found'; exit 6")
    (fakes / "log").touch()
    done = run(fakes)
    assert done.returncode == 2
    assert "there is no NVIDIA GPU here: nvidia-smi lists none. Nothing was built." in done.stderr
    assert not (fakes.parent / "work").exists()


def test_no_nvcc(fakes):
    (fakes / "programs/nvcc").unlink()
    assert_says_so(fakes, f"nvcc is neither on the PATH nor in {fakes}/none/bin")


def test_no_torch(fakes):
    (fakes / "ask-torch").write_text("echo 'No module named torch' >&2; exit 1")
    done = run(fakes)
    assert done.returncode == 2
    assert "cannot import torch. Nothing was built." in done.stderr


def test_torch_without_cuda(fakes):
    (fakes / "ask-torch").write_text(
        """echo '{"torch": "9.9+cpu", "gpu": "", "compute_capability": ""}'"""
    )
    done = run(fakes)
    assert done.returncode == 2
    assert "torch 9.9+cpu of" in done.stderr
    assert "finds no CUDA device. Nothing was built." in done.stderr


def test_no_build_tools(fakes):
    (fakes / "ask-modules").write_text("echo pybind11 pytest")
    (fakes / "programs/ninja").unlink()
    done = run(fakes)
    assert done.returncode == 2
    assert "these are missing: pybind11, pytest, ninja. Nothing was built." in done.stderr


@pytest.mark.parametrize(
    ("option", "value"), [("--minutes", "0"), ("--minutes", "nan"), ("--upstream", "/nowhere")]
)
def test_bad_options(fakes, option, value):
    done = run(fakes, option, value)
    assert done.returncode == 2
    assert f"argument {option}: " in done.stderr
    assert log(fakes) == ""


def test_help(fakes):
    done = run(fakes, "--help")
    assert done.returncode == 0
    assert "--upstream FOLDER" in done.stdout
    assert "set -euo" not in done.stdout


# ---- whole runs


def test_all_steps(fakes, tmp_path):
    done = run(fakes, "--upstream", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    found = report(fakes)
    assert found["passed"]
    assert found["gpu"] == "NVIDIA Imaginary 100"
    assert (found["driver"], found["toolkit"], found["torch"]) == ("999.1", "13.7", "9.9")
    steps = statuses(fakes)
    order = ["build", "ctest", "pytest-gpu", "memcheck", "racecheck", "initcheck", "synccheck"]
    assert list(steps)[:7] == order
    assert list(steps)[-1] == "pytest-rest"
    for name, status in steps.items():
        if status == "skipped":  # a benchmark whose file is still to come
            assert name.startswith("bench-")
        else:
            assert status == "passed", name
    for name in ("bench-device", "bench-construct-2d", "bench-construct-3d"):
        assert steps[name] == "passed"
        file = tmp_path / "output" / f"{name.removeprefix('bench-')}-nvidia-imaginary-100.json"
        assert file.is_file()
        assert name + ":\nmedian 1.0 [0.9-1.1] ms" in done.stdout
    by_name = {step["name"]: step for step in found["steps"]}
    assert by_name["pytest-gpu"]["summary"] == "345 passed, 1 skipped in 1s"
    assert "--upstream" in by_name["bench-construct-2d"]["command"]
    assert "--upstream" not in by_name["bench-device"]["command"]
    ran = log(fakes)
    assert "cmake.define.DCLS_CUDA_ARCHITECTURES=90-real" in ran
    assert "--no-build-isolation" in ran
    assert ran.count("kernels") == 4
    assert "driver 999.1, toolkit 13.7, torch 9.9" in done.stdout


def test_failed_build_skips_what_needs_it(fakes):
    (fakes / "build").write_text("echo 'nvcc: it is all wrong' >&2; exit 3")
    done = run(fakes)
    assert done.returncode == 1
    assert "nvcc: it is all wrong" in done.stdout
    found = {step["name"]: step for step in report(fakes)["steps"]}
    assert found["build"]["status"] == "failed"
    assert found["build"]["reason"] == "exit status 3"
    assert found["build"]["tail"] == ["nvcc: it is all wrong"]
    assert found["ctest"]["status"] == "passed"
    assert found["memcheck"]["status"] == "skipped"
    assert found["memcheck"]["reason"] == "the build failed"
    assert not report(fakes)["passed"]


@pytest.mark.parametrize(
    ("step", "commands", "reason"),
    [
        ("pytest-gpu", "echo '346 skipped in 1s'", "nothing in its output"),
        ("memcheck", "echo 'Error: No attachable process found'", "nothing in its output"),
        ("racecheck", "echo '= RACECHECK SUMMARY: 2 hazards displayed'; exit 9", "exit status 9"),
        ("bench", "echo fast", "was not written"),
    ],
)
def test_what_looks_like_success_and_is_none(fakes, step, commands, reason):
    (fakes / step).write_text(commands)
    assert run(fakes).returncode == 1
    found = {entry["name"]: entry for entry in report(fakes)["steps"]}
    entry = found["bench-device" if step == "bench" else step]
    assert entry["status"] == "failed"
    assert reason in entry["reason"]
    assert found["pytest-rest"]["status"] == "passed"  # the others go on


def test_without_compute_sanitizer(fakes):
    (fakes / "programs/compute-sanitizer").unlink()
    assert run(fakes).returncode == 0
    assert statuses(fakes)["racecheck"] == "skipped"


def test_a_step_that_hangs(fakes):
    """It is ended, with what it started, and the later steps still have their time."""
    (fakes / "pytest-gpu").write_text("sleep 1234.5 & echo $! >$FAKES/pid; wait")
    begin = time.monotonic()
    assert run(fakes, "--minutes", "0.2").returncode == 1
    assert time.monotonic() - begin < 20
    found = {step["name"]: step for step in report(fakes)["steps"]}
    assert found["pytest-gpu"]["status"] == "failed"
    assert found["pytest-gpu"]["reason"].startswith("not done after")
    assert found["bench-construct-3d"]["status"] == "passed"
    with pytest.raises(ProcessLookupError):
        os.kill(int((fakes / "pid").read_text()), 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_results_so_far_are_kept(fakes, number):
    (fakes / "pytest-gpu").write_text("echo half; echo $$ >$FAKES/pid; exec sleep 30")
    with (fakes / "stdout").open("w") as stdout:
        process = subprocess.Popen(arguments(fakes), env=environment(fakes), stdout=stdout)
        for _ in range(200):
            if (fakes / "pid").is_file() and (fakes / "pid").read_text():
                break
            time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(20) == (1 if number != signal.SIGKILL else -signal.SIGKILL)
    pid = int((fakes / "pid").read_text())
    if number == signal.SIGKILL:
        os.kill(pid, signal.SIGKILL)  # nobody could
    found = {step["name"]: step for step in report(fakes)["steps"]}
    assert found["build"]["status"] == found["ctest"]["status"] == "passed"
    assert found["pytest-gpu"]["status"] == "failed"
    assert found["pytest-gpu"]["reason"].startswith("cut short")
    assert found["memcheck"]["status"] == found["pytest-rest"]["status"] == "not reached"
    assert not report(fakes)["passed"]
    if number != signal.SIGKILL:
        assert f"cut short: {number.name}" in (fakes / "stdout").read_text()
        assert found["pytest-gpu"]["tail"] == ["half"]
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_time_limits(gpu_report):
    reserves = [10.0, 20.0, 0.0]
    assert gpu_report.time_limits(reserves, 0, 100) == 80
    assert gpu_report.time_limits(reserves, 1, 100) == 100
    assert gpu_report.time_limits(reserves, 2, 100) == 100
    assert gpu_report.time_limits(reserves, 0, 15) == 5  # too little: in proportion
    assert gpu_report.time_limits(reserves, 0, -1) < 0


def test_reserves_fit_in_the_budget(gpu_report):
    """Each step gets at least its reserve if all those before it keep to theirs."""
    facts = {"cpus": 16, "compute_capability": "9.0", "gpu": "none"}
    options = gpu_report.argparse.Namespace(
        work=Path("/nonexistent"), output=Path("/nonexistent"), upstream=None
    )
    total = sum(step.reserve for step in gpu_report.make_steps(options, facts))
    assert total <= 60 * gpu_report.MINUTES - gpu_report.MARGIN


# ---- what it runs under sanitizers


def test_every_operator_is_run():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/gpu_kernels.py"), "--device", "cpu"],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "328 problems forward and backward on cpu, 0 wrong\n", done.stderr
    assert done.returncode == 0


def test_commit_outside_of_a_checkout(gpu_report, tmp_path):
    assert gpu_report.checkout.commit(tmp_path) == {}
    git = shutil.which("git")
    if git is not None:  # unpacked inside of somebody's repository
        subprocess.run([git, "init", "-q", str(tmp_path)], check=True)
        (tmp_path / "pyproject.toml").touch()
        assert gpu_report.checkout.commit(tmp_path) == {}


def test_commit_that_was_changed_since(gpu_report, tmp_path):
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not installed")
    result = tmp_path / "benchmarks" / "results" / "a.json"
    result.parent.mkdir(parents=True)
    for file in (tmp_path / "pyproject.toml", result):
        file.write_text("1")
    who = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    for command in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "first")):
        subprocess.run([git, "-C", str(tmp_path), *command], check=True)
    found = gpu_report.checkout.commit(tmp_path)
    assert len(found["commit"]) == 40
    assert found["changed"] is False
    result.write_text("2")  # is not what is measured
    assert gpu_report.checkout.commit(tmp_path) == found
    (tmp_path / "pyproject.toml").write_text("2")
    assert gpu_report.checkout.commit(tmp_path) == {**found, "changed": True}
