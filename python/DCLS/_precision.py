"""In which precision torch lets a convolution of float32 tensors compute."""

from __future__ import annotations

import torch


def conv_precision(device_type: str) -> str:
    """Returns ``tf32``, ``bf16``, or a name for exact."""
    backend = "mkldnn" if device_type == "cpu" else "cuda"
    try:
        # Both ways to set it end there; the older getters raise where both were used.
        return str(torch._C._get_fp32_precision_getter(backend, "conv"))
    except AttributeError:  # before torch 2.9
        return "tf32" if backend == "cuda" and torch._C._get_cudnn_allow_tf32() else "ieee"


def may_round_float32(device_type: str) -> bool:
    """Whether torch may compute a float32 convolution with fewer bits (TF32)."""
    return conv_precision(device_type) in ("tf32", "bf16")


def allows_tf32(device: torch.device) -> bool:
    """Whether a native convolution of float32 tensors on a device may round them to TF32."""
    return device.type == "cuda" and conv_precision("cuda") == "tf32"
