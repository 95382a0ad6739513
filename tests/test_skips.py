"""No test for a GPU may be taken for passed where it did not run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch

TESTS = Path(__file__).parent


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
    files = ["test_construct.py", "test_cuda.py"]
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
