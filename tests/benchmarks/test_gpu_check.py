"""scripts/gpu_check.sh where there is no GPU: with none, and with programs that play one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time

import pytest
from gpu_machine import SCRIPT, arguments, environment, log, make_fakes, report, run, statuses

pytestmark = pytest.mark.skipif(
    not SCRIPT.is_file() or shutil.which("bash") is None, reason="takes a source tree and bash"
)


@pytest.fixture
def fakes(tmp_path):
    return make_fakes(tmp_path)


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


def test_what_only_tests_need_may_be_missing(fakes):
    (fakes / "ask-modules").write_text("echo hypothesis")
    done = run(fakes, "--steps", "build")
    assert done.returncode == 0
    assert "tests that need hypothesis will fail" in done.stdout


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
    assert list(steps)[:3] == ["build", "pytest-cuda", "pytest-construct"]
    assert list(steps)[-2:] == ["pytest-rest", "ctest"]
    assert set(steps.values()) == {"passed"}
    order = [list(steps).index(f"bench-{name}") for name in ("conv", "rule-2d", "construct-2d")]
    assert list(steps).index("synccheck-im2col") < order[0] < order[1] < order[2]
    for name in ("bench-device", "bench-construct-2d", "bench-construct-3d"):
        assert steps[name] == "passed"
        file = tmp_path / "output" / f"{name.removeprefix('bench-')}-nvidia-imaginary-100.json"
        assert file.is_file()
        assert name + ":\nmedian 1.0 [0.9-1.1] ms" in done.stdout
    by_name = {step["name"]: step for step in found["steps"]}
    assert by_name["pytest-cuda"]["summary"] == "345 passed, 1 skipped in 1s"
    assert "--upstream" in by_name["bench-construct-2d"]["command"]
    assert "--upstream" not in by_name["bench-device"]["command"]
    ran = log(fakes)
    assert "cmake.define.DCLS_CUDA_ARCHITECTURES=90-real" in ran
    assert "--no-build-isolation" in ran
    for family in ("construct", "direct_conv", "im2col"):
        assert ran.count(f"kernels {family}\n") == 4
    watched = [line for line in ran.splitlines() if line.startswith("compute-sanitizer")]
    only_ours = {line.split()[2] for line in watched if "--kernel-regex kns=dcls" in line}
    assert only_ours == {"racecheck", "synccheck"}
    assert "driver 999.1, toolkit 13.7, torch 9.9" in done.stdout


def test_failed_build_skips_what_needs_it(fakes):
    (fakes / "build").write_text(
        "echo 'a.cu(1): error: it is all wrong'; for i in {1..99}; do echo more; done\n"
        "echo 'pip failed' >&2; exit 3"
    )
    done = run(fakes)
    assert done.returncode == 1
    assert "    a.cu(1): error: it is all wrong" in done.stdout
    found = {step["name"]: step for step in report(fakes)["steps"]}
    assert found["build"]["status"] == "failed"
    assert found["build"]["reason"] == "exit status 3"
    assert found["build"]["errors"] == ["a.cu(1): error: it is all wrong"]
    assert found["build"]["tail"] == ["more"] * 25
    assert found["ctest"]["status"] == "passed"
    assert found["memcheck-im2col"]["status"] == "skipped"
    assert found["memcheck-im2col"]["reason"] == "the build failed"
    assert not report(fakes)["passed"]


@pytest.mark.parametrize(
    ("step", "commands", "reason"),
    [
        ("pytest-cuda", "echo '346 skipped in 1s'", "nothing in its output"),
        ("memcheck", "echo 'Error: No attachable process found'", "nothing in its output"),
        ("racecheck", "echo '= RACECHECK SUMMARY: 2 hazards displayed'; exit 9", "exit status 9"),
        ("bench", "echo fast", "was not written"),
    ],
)
def test_what_looks_like_success_and_is_none(fakes, step, commands, reason):
    (fakes / step).write_text(commands)
    assert run(fakes).returncode == 1
    found = {entry["name"]: entry for entry in report(fakes)["steps"]}
    suffixes = {"bench": "-device", "memcheck": "-construct", "racecheck": "-im2col"}
    entry = found[step + suffixes.get(step, "")]
    assert entry["status"] == "failed"
    assert reason in entry["reason"]
    assert found["pytest-rest"]["status"] == "passed"  # the others go on


def test_without_compute_sanitizer(fakes):
    """Then nobody has watched the kernels, and the report may not read as if."""
    (fakes / "programs/compute-sanitizer").unlink()
    done = run(fakes)
    assert done.returncode == 1
    assert not report(fakes)["passed"]
    assert statuses(fakes)["racecheck-construct"] == "skipped"
    assert "skipped after 0.0 s (compute-sanitizer was not found)" in done.stdout
    # A toolkit has it, which need not be on the PATH.
    program = fakes / "none" / "compute-sanitizer" / "compute-sanitizer"
    program.parent.mkdir(parents=True)
    program.write_text((fakes / "programs/nvcc").read_text())
    program.chmod(0o755)
    assert run(fakes, "--steps", "build", "*check-*").returncode == 0
    assert statuses(fakes)["racecheck-construct"] == "passed"


def test_a_step_that_hangs(fakes):
    """It is ended, with what it started, and the later steps still have their time."""
    (fakes / "pytest-cuda").write_text("sleep 1234.5 & echo $! >$FAKES/pid; wait")
    begin = time.monotonic()
    chosen = ("build", "pytest-cuda", "bench-construct-3d")
    assert run(fakes, "--minutes", "0.4", "--steps", *chosen).returncode == 1
    assert time.monotonic() - begin < 30
    found = {step["name"]: step for step in report(fakes)["steps"]}
    assert found["pytest-cuda"]["status"] == "failed"
    assert found["pytest-cuda"]["reason"].startswith("not done after")
    assert found["bench-construct-3d"]["status"] == "passed"
    with pytest.raises(ProcessLookupError):
        os.kill(int((fakes / "pid").read_text()), 0)


def test_an_optional_step_that_takes_too_long(fakes):
    (fakes / "ctest").write_text("exec sleep 1234.5")
    done = run(fakes, "--minutes", "0.15", "--steps", "build", "ctest")
    assert done.returncode == 0, done.stdout
    (step,) = (step for step in report(fakes)["steps"] if step["name"] == "ctest")
    assert step["status"] == "not reached"
    assert step["reason"].startswith("not done after")


def test_what_takes_too_long_is_interrupted_first(fakes):
    """pytest then tells of the tests that it has run."""
    (fakes / "pytest-cuda").write_text(
        "trap 'echo interrupted; exit 2' INT; echo begun; while :; do sleep 0.1; done"
    )
    run(fakes, "--minutes", "0.1", "--steps", "build", "pytest-cuda")
    (step,) = (step for step in report(fakes)["steps"] if step["name"] == "pytest-cuda")
    assert step["tail"] == ["begun", "interrupted"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_results_so_far_are_kept(fakes, number):
    (fakes / "pytest-cuda").write_text("echo half; echo $$ >$FAKES/pid; exec sleep 30")
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
    assert found["build"]["status"] == "passed"
    assert found["pytest-cuda"]["status"] == "failed"
    assert found["pytest-cuda"]["reason"].startswith("cut short")
    assert found["memcheck-im2col"]["status"] == found["pytest-rest"]["status"] == "not reached"
    assert not report(fakes)["passed"]
    if number != signal.SIGKILL:
        assert f"cut short: {number.name}" in (fakes / "stdout").read_text()
        assert found["pytest-cuda"]["tail"] == ["half"]
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
