"""Packages that some tests take, and that need not be installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

#: The extra of this package that brings it.
_EXTRAS = {
    "accelerate": "trainers",
    "lightning": "trainers",
    "matplotlib": "plot",
    "onnx": "test",
    "onnxruntime": "test",
    "onnxscript": "test",
    "sklearn": "demo",
    "timm": "timm",
}

#: Operators of torchvision, for as long as this object lives.
_operators: list[torch.library.Library] = []


def import_or_skip(name: str) -> Any:
    """Returns the package, or skips the test with a reason that says what is missing."""
    reason = f"{name} is not installed: pip install '.[{_EXTRAS[name]}]'"
    try:
        return pytest.importorskip(name, reason=reason)
    except RuntimeError as error:
        # Beside a CPU build of torch, PyPI's torchvision does not find its operators. Its import
        # asks for the schemas of these two.
        if "torchvision::" not in str(error) or _operators:
            raise
        _operators.append(torch.library.Library("torchvision", "FRAGMENT"))
        for operator in ("nms", "qnms"):
            _operators[0].define(
                f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        return pytest.importorskip(name, reason=reason)


def import_all_or_skip(code: str) -> None:
    """Imports the packages of ``_EXTRAS`` that some code imports, or skips the test."""
    for name in _EXTRAS:
        if f"import {name}" in code or f"from {name}" in code:
            import_or_skip(name)
