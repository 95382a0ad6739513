"""A process that has measured nothing, and has a cache folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from DCLS.tuning import forget, lookup, state


@pytest.fixture(autouse=True)
def cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where files of measured choices are in the test."""
    monkeypatch.setenv("DCLS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(state, "_mode", "on")
    monkeypatch.setattr(lookup, "_has_warned", False)
    forget()
    lookup._files.cache_clear()
    yield tmp_path / "cache" / "tuning"
    forget()
    lookup._files.cache_clear()
