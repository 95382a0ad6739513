"""What torch and the machine are: the parts of a key that no layer knows."""

from __future__ import annotations

import functools
import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from DCLS import _backend
from DCLS._precision import conv_precision
from DCLS._version import __version__
from DCLS.method import is_tracing


def flags(device_type: str) -> tuple[Any, ...]:
    """Returns the settings of torch that a convolution's time depends on.

    It is asked for at each call of a layer, so that it reads torch's variables directly.
    """
    deterministic = torch._C._get_deterministic_algorithms()
    if device_type == "cpu":
        return (
            deterministic,
            torch.get_num_threads(),
            torch._C._get_mkldnn_enabled(),
            conv_precision("cpu"),
        )
    return (
        deterministic,
        torch._C._get_cudnn_enabled(),
        torch._C._get_cudnn_benchmark(),
        torch._C._get_cudnn_deterministic(),
        conv_precision("cuda"),
    )


@functools.cache
def machine(device: torch.device) -> dict[str, Any]:
    """Returns what a device is, and the versions of what runs on it, as JSON can hold them."""
    found: dict[str, Any] = {"torch": torch.__version__, "DCLS": __version__}
    if device.type == "cuda":
        found |= {
            "device": torch.cuda.get_device_name(device),
            "capability": list(torch.cuda.get_device_capability(device)),
            "cuda": torch.version.cuda or torch.version.hip or "",
            "cudnn": torch.backends.cudnn.version(),
            "driver": _backend.native.cuda_status()["driver"] if _backend.native else "",
        }
    else:
        found |= {
            "device": _processor() if device.type == "cpu" else device.type,
            "capability": torch.backends.cpu.get_cpu_capability(),
            "simd": _backend.native.build_info()["simd"] if _backend.native else "",
        }
    return found


def _from_linux(file: str, name: str) -> str:
    """The value of the first line ``name: value`` of a file in /proc, "" if there is none."""
    try:
        with open(f"/proc/{file}", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith(name):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""


def _processor() -> str:
    return _from_linux("cpuinfo", "model name") or platform.processor() or platform.machine()


def free_memory(device: torch.device) -> float:
    """Returns about how many bytes can still be allocated on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(free + cached)
    # What files hold in memory counts as free, as it does for the kernel.
    available = _from_linux("meminfo", "MemAvailable").removesuffix("kB").strip()
    return 1024.0 * int(available) if available else float("inf")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on a GPU or on a CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        part in text
        for part in ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")
    )


def in_process_group() -> bool:
    """Whether this process is one of several that train together."""
    distributed = torch.distributed
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def reason_not_to_measure(tensors: Sequence[Tensor]) -> str:
    """Says why a forward pass with these tensors must not measure now, else returns ""."""
    if is_tracing():
        return "torch compiles, exports or traces"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms the call"
    if torch._C._len_torch_dispatch_stack():
        return "a dispatch mode is active"
    if any(type(tensor) not in (Tensor, Parameter) for tensor in tensors):
        return "an input or a parameter is a subclass of Tensor"
    if forward_ad._current_level >= 0:
        return "forward-mode derivatives are computed"
    if any(tensor.is_cuda for tensor in tensors) and torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is captured"
    if in_process_group():
        return "processes train together: DCLS.tune measures for all of them"
    return ""
