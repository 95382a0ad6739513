"""No test for a GPU may be taken for passed where it did not run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

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
