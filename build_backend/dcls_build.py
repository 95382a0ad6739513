"""The build backend: that of scikit-build-core, which this file tells what the machine lacks.

- Without a C++ compiler it builds the pure wheel, in which torch expressions compute. It says so.
- ``DCLS_NVCC=pypi`` builds the CUDA kernels with the compiler that NVIDIA publishes on PyPI. pip
  installs it for the time of the build only.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scikit_build_core import build as _build
from scikit_build_core.build import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Settings = Mapping[str, Any]

#: Of one release: nvcc, its headers, the runtime, and what turns PTX's source into PTX.
_RELEASE = "13.0.*"
_PACKAGES = ("nvcc", "crt", "runtime", "cccl")


def find_compiler() -> str | None:
    """Returns a C++ compiler as CMake would find one; None if there is none."""
    named = os.environ.get("CXX", "").split()[:1]
    names = named or ["c++", "g++", "clang++", "cl"]
    return next((found for name in names if (found := shutil.which(name))), None)


def wants_pypi_nvcc() -> bool:
    """Whether the compiler for CUDA is to come from PyPI.

    Raises:
        ValueError: ``DCLS_NVCC`` has another value.
    """
    wish = os.environ.get("DCLS_NVCC", "")
    if wish not in ("", "pypi"):
        raise ValueError(f"DCLS_NVCC must be pypi or empty, got {wish!r}")
    return wish == "pypi"


def _adapted(settings: Settings | None) -> dict[str, Any]:
    """The settings, with a pure wheel where nothing else can be built."""
    adapted = dict(settings or {})
    given = {key.removeprefix("skbuild.") for key in adapted} | set(
        os.environ.keys() & {"SKBUILD_WHEEL_CMAKE"}
    )
    if not given & {"wheel.cmake", "SKBUILD_WHEEL_CMAKE"} and find_compiler() is None:
        sys.stderr.write(
            "DCLS: no C++ compiler was found. This builds the pure wheel: torch expressions "
            "compute, on every device, slower than the native library.\n"
        )
        adapted["wheel.cmake"] = "false"
        # What a developer's build left among the sources is not part of it.
        adapted["wheel.exclude"] = "DCLS/_C.*.so;DCLS/lib/*"
    return adapted


def get_requires_for_build_wheel(config_settings: Settings | None = None) -> list[str]:
    """As PEP 517 has it."""
    more = [f"nvidia-cuda-{name}=={_RELEASE}" for name in _PACKAGES]
    more.append(f"nvidia-nvvm=={_RELEASE}")
    found: list[str] = _build.get_requires_for_build_wheel(_adapted(config_settings))
    return [*found, *more] if wants_pypi_nvcc() else found


def toolkit(packages: Path, folder: Path) -> Path:
    """Makes a toolkit of the packages that CMake and nvcc take; returns its nvcc.

    Args:
        packages: the folder ``nvidia/cu13`` of an environment, which stays as it is.
        folder: where to make it. It must not exist.
    """

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:  # another file system
            shutil.copy2(source, target)

    shutil.copytree(packages, folder, copy_function=link)
    # nvcc looks into lib64, and CMake for a library without a version.
    library = folder / "lib"
    if not (folder / "lib64").exists():
        (folder / "lib64").symlink_to("lib")
    for versioned in library.glob("libcudart.so.*"):
        plain = library / "libcudart.so"
        if not plain.exists():
            plain.symlink_to(versioned.name)
    nvcc = folder / "bin" / "nvcc"
    for program in (*nvcc.parent.iterdir(), *(folder / "nvvm" / "bin").glob("*")):
        if program.is_file():
            program.chmod(program.stat().st_mode | 0o111)
    return nvcc


def _packages() -> Path:
    spec = find_spec("nvidia")
    places = [] if spec is None else [Path(p) for p in spec.submodule_search_locations or ()]
    for place in places:
        if (place / "cu13" / "bin" / "nvcc").is_file():
            return place / "cu13"
    raise RuntimeError("DCLS_NVCC=pypi, but nvidia-cuda-nvcc is not in the build environment")


def build_wheel(
    wheel_directory: str,
    config_settings: Settings | None = None,
    metadata_directory: str | None = None,
) -> str:
    """As PEP 517 has it."""
    settings = _adapted(config_settings)
    if not wants_pypi_nvcc():
        return _build.build_wheel(wheel_directory, settings, metadata_directory)
    with tempfile.TemporaryDirectory() as folder:
        nvcc = toolkit(_packages(), Path(folder) / "cuda")
        os.environ["CUDACXX"] = str(nvcc)
        settings.setdefault("cmake.define.DCLS_CUDA", "ON")
        settings.setdefault("cmake.define.CUDAToolkit_ROOT", str(nvcc.parent.parent))
        return _build.build_wheel(wheel_directory, settings, metadata_directory)


def build_editable(
    wheel_directory: str,
    config_settings: Settings | None = None,
    metadata_directory: str | None = None,
) -> str:
    """As PEP 660 has it."""
    return _build.build_editable(wheel_directory, _adapted(config_settings), metadata_directory)


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: Settings | None = None
) -> str:
    """As PEP 517 has it."""
    return _build.prepare_metadata_for_build_wheel(metadata_directory, _adapted(config_settings))
