"""What a bug report needs: versions, how the native library was built, what it found here."""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

import DCLS
from DCLS import _backend


def _torch_info() -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as caught:
        # With too old a driver torch warns and finds nothing; the warning is the reason to report.
        warnings.simplefilter("always")
        devices = [
            torch.cuda.get_device_name(index)
            for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        ]
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda or "",
        "devices": devices,
        "warnings": [str(warning.message) for warning in caught],
    }


def devices() -> dict[str, Any]:
    """Returns what torch and the native library say of GPUs: the parts of ``collect`` with devices.

    It initialises CUDA in this process, and processes that are forked from it later cannot use
    CUDA then.
    """
    if _backend.native is None:
        cuda = {"available": False, "driver": "", "reason": _backend.missing, "devices": []}
    else:
        cuda = dict(_backend.native.cuda_status())
    return {"torch": _torch_info(), "cuda": cuda}


@functools.cache
def _devices_seen_by_a_child() -> dict[str, Any]:
    """Returns ``devices`` of another process, so that this one may still fork.

    It is asked once: starting a process that imports torch takes seconds.
    """
    code = f"import json, sys; sys.path[:0] = {sys.path!r}; from DCLS import info"
    code += "; print(json.dumps(info.devices()))"
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    if child.returncode != 0:
        raise RuntimeError(f"the process that asks for devices failed:\n{child.stderr}")
    found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return found


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def collect() -> dict[str, Any]:
    """Returns the facts, as JSON can hold them.

    ``dcls`` (version, path), ``python``, ``platform``, ``torch`` (version, CUDA version it was
    built with or "", devices it sees, warnings), ``backend`` (what computes where, in words),
    ``native`` (how the native library was built and the SIMD level in use; None without it),
    ``cuda`` (whether the native library can use a GPU, driver and devices or the reason why not),
    ``threads`` (of torch, of ``OMP_NUM_THREADS``, CPUs of this process).

    Unless CUDA is in use already, another process asks for the devices: CUDA is not initialised
    here.

    Raises:
        RuntimeError: if that process fails.
    """
    found = devices() if torch.cuda.is_initialized() else _devices_seen_by_a_child()
    return {
        "dcls": {"version": DCLS.__version__, "path": str(Path(DCLS.__file__).parent)},
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "torch": found["torch"],
        "backend": _backend.describe(),
        "native": None if _backend.native is None else dict(_backend.native.build_info()),
        "cuda": found["cuda"],
        "threads": {
            "torch": torch.get_num_threads(),
            "omp_num_threads": os.environ.get("OMP_NUM_THREADS", ""),
            "cpus": _usable_cpus(),
        },
    }


def render(facts: dict[str, Any]) -> str:
    """Lays out the facts of ``collect`` as lines of text."""
    native, cuda, about_torch, threads = (
        facts[key] for key in ("native", "cuda", "torch", "threads")
    )
    of_native = []
    if native is not None:
        toolkit = "built without CUDA"
        if native["cuda"]:
            architectures = ", ".join(native["cuda_architectures"])
            toolkit = f"built with toolkit {native['cuda_toolkit']} for {architectures}"
        of_native = [
            ("compiler", f"{native['compiler']}, {'' if native['openmp'] else 'no '}OpenMP"),
            ("SIMD", f"{native['simd']} in use, compiled: {', '.join(native['simd_compiled'])}"),
            ("CUDA", toolkit),
        ]
    gpu = [f"none usable: {cuda['reason']}"]
    if cuda["available"]:
        gpu = cuda["devices"]
    torch_cuda = f"CUDA {about_torch['cuda']}" if about_torch["cuda"] else "built without CUDA"
    torch_devices = ", ".join(about_torch["devices"]) or "none"
    omp = threads["omp_num_threads"] or "not set"
    rows = [
        ("DCLS", f"{facts['dcls']['version']} in {facts['dcls']['path']}"),
        ("Python", facts["python"]),
        ("platform", facts["platform"]),
        ("torch", f"{about_torch['version']}, {torch_cuda}, GPUs: {torch_devices}"),
        *(("torch warns", message) for message in about_torch["warnings"]),
        ("backend", facts["backend"]),
        *of_native,
        ("driver", cuda["driver"] or "none found"),
        *(("GPU", device) for device in gpu),
        ("threads", f"{threads['torch']} of torch, {threads['cpus']} CPUs, OMP_NUM_THREADS {omp}"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows)
