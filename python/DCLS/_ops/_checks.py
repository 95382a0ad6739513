"""Checks that several families of operators share. Errors name the argument."""

from __future__ import annotations

from torch import Tensor

from DCLS._native import dense as _kernels
from DCLS._spec import SIGMA_VERSIONS, resolve_sigma_min

#: Most grid points on one axis of a kernel: up to it every index is exact in float32.
MAX_AXIS_SIZE = 1 << 24


def check_dtype(name: str, tensor: Tensor) -> None:
    """Raises unless the native library computes the dtype of ``tensor``."""
    if tensor.dtype not in _kernels.DTYPES:
        takes = ", ".join(sorted(str(dtype) for dtype in _kernels.DTYPES))
        raise TypeError(f"{name} must have a dtype out of {takes}, got {tensor.dtype}")


def check_device(name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """Raises unless both tensors are on one device."""
    if tensor.device != like.device:
        raise ValueError(
            f"{name} must be on the device of {like_name}, {like.device}, got {tensor.device}"
        )


def check_like(name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """Raises unless both tensors have one dtype and are on one device."""
    if tensor.dtype != like.dtype:
        raise TypeError(
            f"{name} must have the dtype of {like_name}, {like.dtype}, got {tensor.dtype}"
        )
    check_device(name, tensor, like_name, like)


def check_widths(SIG: Tensor | None, version: str, sigma_min: float) -> None:
    """Raises unless there are widths just where ``version``, which exists, has some."""
    has_sigma = version in SIGMA_VERSIONS
    if has_sigma and SIG is None:
        raise ValueError(f"SIG must be given for version {version!r}, got None")
    if not has_sigma and SIG is not None:
        raise ValueError(f"SIG must be None for version {version!r}, which has no widths")
    if has_sigma:
        resolve_sigma_min(version, sigma_min)
