"""What scripts/gpu_check.sh runs: which steps, which of them if some are chosen, and where from."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from gpu_machine import ROOT, SCRIPT, log, make_fakes, report, run, statuses

KERNELS = ROOT / "scripts" / "gpu_kernels.py"

pytestmark = pytest.mark.skipif(
    not SCRIPT.is_file() or shutil.which("bash") is None, reason="takes a source tree and bash"
)


@pytest.fixture
def fakes(tmp_path):
    return make_fakes(tmp_path)


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


# ---- all steps


def planned(gpu_report) -> list:
    facts = {"cpus": 16, "compute_capability": "9.0", "gpu": "none"}
    nowhere = Path("/nonexistent")
    options = gpu_report.argparse.Namespace(work=nowhere, output=nowhere, upstream=None)
    return gpu_report.make_steps(options, facts)


def test_reserves_fit_in_the_budget(gpu_report):
    """Each step gets at least its reserve if all those before it keep to theirs."""
    total = sum(step.reserve for step in planned(gpu_report))
    assert total <= 60 * gpu_report.MINUTES - gpu_report.MARGIN


def test_time_limits(gpu_report):
    reserves = [10.0, 20.0, 0.0]
    assert gpu_report.time_limits(reserves, 0, 100) == 80
    assert gpu_report.time_limits(reserves, 1, 100) == 100
    assert gpu_report.time_limits(reserves, 2, 100) == 100
    assert gpu_report.time_limits(reserves, 0, 15) == 5  # too little: in proportion
    assert gpu_report.time_limits(reserves, 0, -1) < 0


def test_no_test_for_a_gpu_is_left_out(gpu_report):
    collect = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
    listing = subprocess.run(
        [*collect, "--collect-only", "tests"], capture_output=True, text=True, cwd=ROOT
    ).stdout
    collected = {line.split("::")[0] for line in listing.splitlines() if "::" in line}
    named = [
        str(Path(argument).relative_to(ROOT))
        for step in planned(gpu_report)
        for argument in step.command
        if step.name.startswith("pytest-") and argument.endswith(".py")
    ]
    assert len(named) == len(set(named))
    assert collected == set(named)


def test_every_operator_is_run():
    """In parts, as the steps run them."""
    count = 0
    for family in ("construct", "direct_conv", "im2col"):
        done = subprocess.run(
            [sys.executable, str(KERNELS), "--device", "cpu", "--only", family],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found = re.fullmatch(r"(\d+) problems .* on cpu, 0 wrong\n", done.stdout)
        assert found, done.stdout
        count += int(found[1])
    assert count == 328


# ---- some of them


def test_chosen_steps(fakes):
    """The others' results stay, those in the report if they are known to be of the same commit."""
    (fakes / "programs/git").unlink()  # it might say that files were changed
    output = fakes.parent / "output"
    assert run(fakes, "--commit", "abc", "--steps", "build", "bench-conv*").returncode == 0
    steps = statuses(fakes)
    assert [name for name, status in steps.items() if status == "passed"] == [
        "build",
        "bench-conv",
        "bench-conv-float16",
        "bench-conv-bfloat16",
    ]
    assert {status for name, status in steps.items()} == {"passed", "not reached"}
    assert not report(fakes)["passed"]
    result = output / "conv-nvidia-imaginary-100.json"
    result.write_text("earlier")
    (fakes / "bench").write_text("exit 1")
    arguments = ("--commit", "abc", "--steps", "bench-*", "--skip", "bench-conv", "bench-rule*")
    assert run(fakes, *arguments).returncode == 1
    assert result.read_text() == "earlier"
    assert not (output / "conv-float16-nvidia-imaginary-100.json").exists()
    steps = statuses(fakes)
    assert steps["build"] == steps["bench-conv"] == "passed"
    assert steps["bench-conv-float16"] == "failed"
    assert steps["bench-rule-2d"] == "not reached"
    assert log(fakes).count("pip install") == 1
    # Of another commit nothing counts.
    assert run(fakes, "--commit", "other", "--steps", "ctest").returncode == 0
    assert report(fakes)["commit"] == "other"
    assert {name for name, status in statuses(fakes).items() if status == "passed"} == {"ctest"}
    assert run(fakes, "--steps", "ctset").returncode == 2


def test_chosen_steps_take_a_build(fakes):
    done = run(fakes, "--steps", "pytest-cuda")
    assert done.returncode == 2
    assert "there is no build in" in done.stderr
    assert log(fakes) == ""


def test_one_file_holds_everything(fakes):
    """Logs and results of each step that has ended, also if the run is killed in the next one."""
    (fakes / "pytest-construct").write_text("kill -9 $PPID; exit 1")
    assert run(fakes, "--skip", "*check-*").returncode == -signal.SIGKILL
    with tarfile.open(fakes.parent / "output" / "gpu-check.tar.gz") as archive:
        names = archive.getnames()
        content = json.load(archive.extractfile("gpu-check-nvidia-imaginary-100.json"))
        said = archive.extractfile("logs/pytest-cuda.out").read()
    assert said == b"345 passed, 1 skipped in 1s\n"
    assert "logs/build.err" in names
    by_name = {step["name"]: step["status"] for step in content["steps"]}
    assert by_name["pytest-cuda"] == "passed"


# ---- the commit


def test_commit_outside_of_a_checkout(gpu_report, tmp_path, monkeypatch):
    monkeypatch.delenv("DCLS_COMMIT", raising=False)
    assert gpu_report.checkout.commit(tmp_path) == {}
    with monkeypatch.context() as context:
        context.setenv("DCLS_COMMIT", "abc")
        assert gpu_report.checkout.commit(tmp_path) == {"commit": "abc"}
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
