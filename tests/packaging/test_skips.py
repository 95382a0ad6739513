"""No test for a GPU, or of the native library, may be taken for passed where it did not run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parents[1]

#: Plays a GPU of which the first test breaks the context.
BROKEN_CONTEXT = """
import pytest, torch

def synchronize():
    raise RuntimeError("an illegal memory access was encountered")

torch.cuda.is_initialized = lambda: True
torch.cuda.synchronize = synchronize

def test_for_the_cpu():
    pass

@pytest.mark.gpu
def test_that_breaks_it():
    assert False

@pytest.mark.gpu
def test_after_it():
    pass
"""


#: In two pieces, as conftest looks for the whole.
MARK = "pytest.mark." + "any_backend"


def test_skipped_gpu_tests_are_counted():
    """A run of the GPU tests says of each that it ran, or that it did not and why."""
    collect = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
    listing = subprocess.run(
        [*collect, "--collect-only", str(TESTS)], capture_output=True, text=True, cwd=TESTS.parent
    ).stdout
    found = re.search(r"(\d+)/\d+ tests collected", listing)
    assert found, listing
    count = int(found[1])
    assert count > 300
    files = ["ops/test_construct.py", "torch_tools/test_cuda.py"]
    output = subprocess.run(
        [*collect, "-k", "not 31_cells", *(str(TESTS / name) for name in files)],
        capture_output=True,
        text=True,
        cwd=TESTS.parent,
    ).stdout
    passed = sum(int(n) for n in re.findall(r"(\d+) passed", output))
    skipped = sum(int(n) for n in re.findall(r"(\d+) skipped", output))
    assert passed + skipped > 200, output
    if skipped:
        assert f"NOT RUN on a GPU: {skipped} tests" in output
        assert "torch finds no CUDA device" in output or "one CUDA device" in output
    if not torch.cuda.is_available():
        assert passed == 0


def test_a_dead_context_ends_the_run(tmp_path: Path) -> None:
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(BROKEN_CONTEXT)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a CUDA device\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-c", "pytest.ini"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stdout
    assert "test_it.py::test_for_the_cpu PASSED" in done.stdout
    assert "test_it.py::test_that_breaks_it FAILED" in done.stdout
    assert "test_after_it" not in done.stdout.partition("collected 3 items")[2]
    assert (
        "CUDA is dead after test_it.py::test_that_breaks_it; nothing later was run: "
        "an illegal memory access was encountered"
    ) in done.stdout


def test_float32_products_are_exact() -> None:
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(
    ("pure", "library", "backend", "marked"),
    [
        (True, False, "", True),
        (True, False, "native", False),
        (True, True, "", False),  # of another copy, which is first on the path
        (False, False, "auto", False),
        (False, True, "torch", True),
    ],
)
def test_the_pure_wheel_is_tested_by_the_marked_tests(
    tmp_path: Path, pure: bool, library: bool, backend: str, marked: bool
) -> None:
    """A build whose library is missing is no pure wheel: all tests are to run, and fail."""
    package = tmp_path / "DCLS"
    package.mkdir()
    (package / "__init__.py").touch()
    if library:
        (package / "_C.py").touch()
    information = tmp_path / "DCLS-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: DCLS\nVersion: 1.0\n")
    (information / "WHEEL").write_text(f"Root-Is-Purelib: {str(pure).lower()}\n")
    tests = tmp_path / "tests"
    tests.mkdir()
    shutil.copy(TESTS / "conftest.py", tests)
    (tests / "pytest.ini").write_text("[pytest]\nmarkers =\n any_backend: any\n native: library\n")
    (tests / "test_native.py").write_text("from DCLS import _C\ndef test_three(): pass\n")
    (tests / "test_any.py").write_text(
        f"import pytest\npytestmark = {MARK}\n"
        "def test_one(): pass\n@pytest.mark.native\ndef test_two(): pass\n"
    )
    options = ["-p", "no:cacheprovider", "--continue-on-collection-errors"]
    output = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "DCLS_BACKEND": backend},
        capture_output=True,
        text=True,
        cwd=tests,
    ).stdout
    if marked:
        assert "1 passed, 1 skipped" in output
        assert "NOT RUN, as they take the native library: 1 of 2 files of tests" in output
    else:
        assert ("3 passed" if library else "2 passed, 1 error") in output
        assert "NOT RUN, as" not in output
