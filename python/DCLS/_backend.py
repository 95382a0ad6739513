"""What computes: the native library on its devices, torch expressions everywhere else.

The native library has kernels for CPUs and for GPUs of NVIDIA. Expressions of torch compute on any
other device (``mps``, ``xpu``, ROCm's ``cuda``, a ``PrivateUse1`` backend). They compute on all
devices where the library is missing, cannot be loaded or is not wanted.

The environment variable ``DCLS_BACKEND`` chooses, before the import: ``auto`` (default), ``native``
(an ImportError where the library cannot be loaded) or ``torch`` (no native library).
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import Any, Final

import torch

_VARIABLE: Final = "DCLS_BACKEND"
_CHOICES: Final = ("auto", "native", "torch")


def _load() -> tuple[Any, str]:
    """Returns the native library, or None and why there is none."""
    wish = os.environ.get(_VARIABLE) or "auto"
    if wish not in _CHOICES:
        raise ImportError(f"{_VARIABLE} must be one of {', '.join(_CHOICES)}, got {wish!r}")
    if wish == "torch":
        return None, f"{_VARIABLE}=torch"
    try:
        return importlib.import_module("DCLS._C"), ""
    except ImportError as error:
        if wish == "native":
            raise
        if isinstance(error, ModuleNotFoundError) and error.name == "DCLS._C":
            return None, "this copy of DCLS has no native library"
        # It is there: somebody expects it.
        logging.getLogger("DCLS").warning(
            "the native library cannot be loaded, torch expressions compute: %s", error
        )
        return None, f"the native library cannot be loaded: {error}"


#: The native library, or None; and why there is none, empty where there is one.
native: Any
native, missing = _load()

_said: set[str] = set()


def is_native(device_type: str) -> bool:
    """Whether the native library computes on devices of a type; if not, torch expressions do.

    CUDA counts even where the library was built without it: a call then says how to build it. Meta
    tensors count where there is a library: they stand for those of a CPU.
    """
    if native is None:
        return False
    if device_type == "cuda":
        return torch.version.hip is None
    return device_type in ("cpu", "meta")


def why_not_native(device_type: str) -> str:
    """Returns why torch expressions compute on a device."""
    if missing:
        return missing
    name = "ROCm" if device_type == "cuda" else device_type
    return f"the native library has no kernels for {name}"


def describe() -> str:
    """Says in one line what computes where."""
    if native is None:
        return f"torch expressions compute on all devices: {missing}"
    cuda = "CPU" if torch.version.hip is not None else "CPU and CUDA"
    return f"the native library computes on {cuda}, torch expressions on other devices"


def report(device_type: str) -> None:
    """Writes one line to the log for each type of device on which torch expressions compute."""
    if device_type not in _said:
        _said.add(device_type)
        logging.getLogger("DCLS").info(
            "on %s torch expressions compute: %s", device_type, why_not_native(device_type)
        )
