"""Fixtures for all tests, and an account of what could not be run here."""

from __future__ import annotations

import os
import warnings
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import hypothesis
import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores: teams of threads that wait for each other would take turns.
    _THREADS = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    torch.set_num_threads(_THREADS)
    os.environ.setdefault("OMP_NUM_THREADS", str(_THREADS))  # of the processes that tests start

# Layers on a GPU would measure at each new shape, and files of earlier runs would choose for them.
os.environ.setdefault("DCLS_TUNING", "off")


def _by_torch() -> bool:
    """Whether torch expressions compute: on purpose, or as what is installed is the pure wheel.

    A library that is missing elsewhere is an error, which the tests are there to find.
    """
    wish = os.environ.get("DCLS_BACKEND") or "auto"
    if wish != "auto":
        return wish == "torch"
    try:
        wheel = metadata.distribution("DCLS").read_text("WHEEL") or ""
    except metadata.PackageNotFoundError:  # a tree on the path
        return False
    return "Root-Is-Purelib: true" in wheel.splitlines() and find_spec("DCLS._C") is None


_BY_TORCH = _by_torch()

#: Tests for a GPU that were skipped.
_not_run: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    """The same examples in every run; others with ``--hypothesis-seed``."""
    hypothesis.settings.register_profile("fixed", derandomize=True)
    if config.getoption("hypothesis_seed", None) is None:
        hypothesis.settings.load_profile("fixed")


def _for_any_backend(file: Path) -> bool:
    return "pytest.mark.any_backend" in file.read_text(encoding="utf-8")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Where torch expressions compute, the files that are marked ``any_backend`` are the suite."""
    if not _BY_TORCH or collection_path.suffix != ".py":
        return None
    return not _for_any_backend(collection_path)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leaves out what is promised of the native library only."""
    if _BY_TORCH and item.get_closest_marker("native"):
        pytest.skip("torch expressions compute")


@pytest.fixture(autouse=True)
def _seed(request: pytest.FixtureRequest) -> None:
    """What a test draws from torch does not depend on the tests before it."""
    torch.manual_seed(int(request.config.getoption("hypothesis_seed", None) or 0))


@pytest.fixture(scope="session", autouse=True)
def _exact_float32() -> None:
    """No TF32, which cuDNN uses unless told otherwise: its 10 bits pass no tolerance of float32."""
    with warnings.catch_warnings():
        # From torch 2.9 on there is another way to say it, which older ones do not know.
        warnings.filterwarnings("ignore", "Please use the new API settings to control TF32")
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Each device a test should run on; skipped, with the reason, where it is not there."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("torch finds no CUDA device")
        from DCLS import _C

        if not _C.build_info()["cuda"]:
            pytest.skip("this DCLS was built without CUDA")
    return str(request.param)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Ends the run where a test has left a CUDA context in which nothing works any more.

    Kernels end after the test that launched them, and what an illegal access breaks stays broken:
    without this the tests to come would fail, with its error, in its place.
    """
    if item.get_closest_marker("gpu") is None or not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        reason = f"CUDA is dead after {item.nodeid}; nothing later was run: {error}"
        pytest.exit(reason, returncode=1)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Counts the tests for a GPU that were skipped; with several workers, where they report."""
    if report.skipped and "gpu" in report.keywords:
        _not_run.append(report.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many tests for a GPU, and files of tests, were left out: they have not passed."""
    count = len(_not_run)
    if count:
        terminalreporter.write_line(f"NOT RUN on a GPU: {count} tests", yellow=True)
    if _BY_TORCH:
        asked = [Path(argument.partition("::")[0]) for argument in terminalreporter.config.args]
        files = {f for path in asked if path.is_dir() for f in path.rglob("test_*.py")}
        files |= {path for path in asked if path.is_file()}
        count = sum(not _for_any_backend(file) for file in files)
        line = f"NOT RUN, as they take the native library: {count} of {len(files)} files of tests"
        terminalreporter.write_line(line, yellow=True)
