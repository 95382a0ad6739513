"""Fixtures for all tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    """Each device a test should run on; skipped, with the reason, where it is not there."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("torch finds no CUDA device")
        from DCLS import _C

        if not _C.build_info()["cuda"]:
            pytest.skip("this DCLS was built without CUDA")
    return str(request.param)
