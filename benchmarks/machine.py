"""What a run stands on: this machine, this build, and the DCLS 0.1.1 that it is compared with."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from types import ModuleType
from typing import Any

import checkout
import torch

from DCLS import info

UPSTREAM_FILE = Path("DCLS", "construct", "modules.py")


def load_upstream(folder: Path) -> ModuleType:
    """Loads the construct modules of another DCLS beside ours, under another name."""
    spec = importlib.util.spec_from_file_location("upstream_dcls", folder / UPSTREAM_FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def upstream_version(folder: Path) -> str:
    """The version that pip noted in a folder; "of unknown version" where it noted none."""
    for found in importlib.metadata.distributions(name="dcls", path=[str(folder)]):
        return found.version
    return "of unknown version"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine_facts(device: str) -> dict[str, Any]:
    """What the numbers depend on, as JSON can hold it."""
    facts = info.collect()
    found: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cpus": facts["threads"]["cpus"],
        "threads": torch.get_num_threads(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "system": f"{platform.system()} {platform.machine()}",
        "python": facts["python"],
        "torch": facts["torch"]["version"],
        "dcls": {"version": facts["dcls"]["version"], **checkout.commit()},
        "backend": facts["backend"],
    }
    if facts["native"] is not None:
        names = ("compiler", "simd", *(["cuda_toolkit"] if device == "cuda" else []))
        found |= {name: facts["native"][name] for name in names}
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
        found["driver"] = facts["cuda"]["driver"]
        found["cuda_of_torch"] = facts["torch"]["cuda"]
        backends = torch.backends
        found["tf32"] = backends.cudnn.allow_tf32 or backends.cuda.matmul.allow_tf32
    return found
