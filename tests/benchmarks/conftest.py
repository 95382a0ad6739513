"""Fixtures of the tests of the benchmarks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    """A benchmark sets the number of threads; the next test has the former one again."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
