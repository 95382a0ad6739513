"""Packages that some tests take, and that need not be installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

#: The extra of this package that brings it.
_EXTRAS = {
    "accelerate": "trainers",
    "h5py": "examples",
    "lightning": "trainers",
    "PIL.Image": "timm",
    "matplotlib": "plot",
    "nir": "nir",
    "nirtorch": "spiking",
    "onnx": "test",
    "onnxruntime": "test",
    "onnxscript": "test",
    "sklearn": "demo",
    "snntorch": "spiking",
    "spikingjelly": "spiking",
    "timm": "timm",
}

#: What these packages warn of, their own use of others and the machine.
_THEIR_WARNINGS = (
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:.*num_workers.*:UserWarning",
    "ignore:.*logging interval.*:UserWarning",
    "ignore:.*available but not used.*:UserWarning",
)

#: Operators of torchvision, for as long as this object lives.
_operators: list[torch.library.Library] = []


def import_or_skip(name: str) -> Any:
    """Returns the package, or skips the test with a reason that says what is missing."""
    if name in ("lightning", "timm"):
        _let_torchvision_load()
    reason = f"{name} is not installed: pip install '.[{_EXTRAS[name]}]'"
    return pytest.importorskip(name, reason=reason)


def _let_torchvision_load() -> None:
    """Gives torchvision, which some packages import if it is there, what its import asks for.

    Beside a CPU build of torch, PyPI's torchvision does not find its operators.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error) or _operators:
            raise
        for module in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
        _operators.append(torch.library.Library("torchvision", "FRAGMENT"))
        for operator in ("nms", "qnms"):
            _operators[0].define(
                f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        importlib.import_module("torchvision")


def without_their_warnings(test: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a test pass that has warnings of these packages."""
    for warning in _THEIR_WARNINGS:
        test = pytest.mark.filterwarnings(warning)(test)
    return test


def import_all_or_skip(code: str) -> None:
    """Imports the packages of ``_EXTRAS`` that some code imports, or skips the test."""
    for name in _EXTRAS:
        if f"import {name}" in code or f"from {name}" in code:
            import_or_skip(name)
