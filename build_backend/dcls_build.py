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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scikit_build_core import build as _build
from scikit_build_core.build import build_sdist, get_requires_for_build_sdist

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

#: Of one release: nvcc, its headers, the runtime, and nvvm, which makes PTX.
_REQUIRED = [
    f"nvidia-{name}==13.0.*"
    for name in ("cuda-nvcc", "cuda-crt", "cuda-runtime", "cuda-cccl", "nvvm")
]


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
        if wants_pypi_nvcc():
            raise RuntimeError("DCLS_NVCC=pypi needs a C++ compiler, and none was found")
        sys.stderr.write(
            "DCLS: no C++ compiler was found. This builds the pure wheel: torch expressions "
            "compute, on every device, slower than the native library.\n"
        )
        adapted["wheel.cmake"] = "false"
    return adapted


def _with_nvcc(found: list[str]) -> list[str]:
    return [*found, *_REQUIRED] if wants_pypi_nvcc() else found


def get_requires_for_build_wheel(config_settings: Settings | None = None) -> list[str]:
    """As PEP 517 has it."""
    return _with_nvcc(_build.get_requires_for_build_wheel(_adapted(config_settings)))


def get_requires_for_build_editable(config_settings: Settings | None = None) -> list[str]:
    """As PEP 660 has it."""
    return _with_nvcc(_build.get_requires_for_build_editable(_adapted(config_settings)))


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
        if program.is_file() and not os.access(program, os.X_OK):
            # A copy: the mode of a link would be that of the package, too.
            copied = shutil.copy2(program, folder / "program")
            os.chmod(copied, 0o755)
            os.replace(copied, program)
    return nvcc


def _packages() -> Path:
    spec = find_spec("nvidia")
    places = [] if spec is None else [Path(p) for p in spec.submodule_search_locations or ()]
    for place in places:
        if (place / "cu13" / "bin" / "nvcc").is_file():
            return place / "cu13"
    raise RuntimeError(
        "DCLS_NVCC=pypi, but nvidia-cuda-nvcc is not in the build environment. Without build "
        f"isolation, install it first: pip install {' '.join(_REQUIRED)}"
    )


@contextmanager
def _prepared(config_settings: Settings | None) -> Iterator[dict[str, Any]]:
    """The settings of a build, and a toolkit of PyPI's packages for as long as it takes."""
    settings = _adapted(config_settings)
    if not wants_pypi_nvcc():
        yield settings
        return
    with tempfile.TemporaryDirectory() as folder:
        nvcc = toolkit(_packages(), Path(folder) / "cuda")
        os.environ["CUDACXX"] = str(nvcc)
        settings.setdefault("cmake.define.DCLS_CUDA", "ON")
        settings.setdefault("cmake.define.CUDAToolkit_ROOT", str(nvcc.parent.parent))
        yield settings


def build_wheel(
    wheel_directory: str,
    config_settings: Settings | None = None,
    metadata_directory: str | None = None,
) -> str:
    """As PEP 517 has it."""
    with _prepared(config_settings) as settings:
        return _build.build_wheel(wheel_directory, settings, metadata_directory)


def build_editable(
    wheel_directory: str,
    config_settings: Settings | None = None,
    metadata_directory: str | None = None,
) -> str:
    """As PEP 660 has it."""
    with _prepared(config_settings) as settings:
        return _build.build_editable(wheel_directory, settings, metadata_directory)


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: Settings | None = None
) -> str:
    """As PEP 517 has it."""
    return _build.prepare_metadata_for_build_wheel(metadata_directory, _adapted(config_settings))


def prepare_metadata_for_build_editable(
    metadata_directory: str, config_settings: Settings | None = None
) -> str:
    """As PEP 660 has it."""
    return _build.prepare_metadata_for_build_editable(metadata_directory, _adapted(config_settings))
