"""How tests load and run the programs in benchmarks/ and docs/."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

#: Stands in for the modules of DCLS 0.1.1: our layers, and how far off their output is.
LAYERS = """
import DCLS

class Dcls1d(DCLS.Dcls1d):
    def forward(self, x):
        return {factor} * super().forward(x)

class Dcls2d(DCLS.Dcls2d):
    def forward(self, x):
        return {factor} * super().forward(x)
"""


def load(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path = BENCHMARKS) -> ModuleType:
    monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module(name)


def run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bench.py", "--threads", "1", "--quick", *arguments])
    status: int = module.main()
    return status


def stand_in(folder: Path, modules: str) -> Path:
    """A folder as pip would fill it with DCLS 0.1.1, but with the given text as its modules."""
    file = folder / "DCLS" / "construct" / "modules.py"
    file.parent.mkdir(parents=True)
    file.write_text(modules)
    note = folder / "dcls-0.1.1.dist-info" / "METADATA"
    note.parent.mkdir()
    note.write_text("Metadata-Version: 2.1\nName: dcls\nVersion: 0.1.1\n")
    return folder
