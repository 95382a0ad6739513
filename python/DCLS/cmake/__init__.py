"""Where a CMake project finds the C++ library that comes with this package."""

from __future__ import annotations

from pathlib import Path

from DCLS import _backend

__all__ = ["config_dir", "prefix"]


def prefix() -> Path:
    """Returns the directory to add to ``CMAKE_PREFIX_PATH`` for ``find_package(DCLS)``.

    It holds ``include``, ``lib`` and ``share``.

    Raises:
        FileNotFoundError: this installation has no native library, or it was not loaded.
    """
    if _backend.native is None:
        raise FileNotFoundError(f"there is no C++ library here: {_backend.missing}")
    # Beside the extension module: in an editable install the Python files lie elsewhere.
    return Path(_backend.native.__file__).resolve().parent


def config_dir() -> Path:
    """Returns the directory of ``DCLSConfig.cmake``, which ``DCLS_DIR`` can be set to.

    Raises:
        FileNotFoundError: this installation has none: DCLS was built with ``DCLS_INSTALL=OFF``, or
            without the library.
    """
    directory = prefix() / "share" / "cmake" / "DCLS"
    if not (directory / "DCLSConfig.cmake").is_file():
        raise FileNotFoundError(
            f"{directory} has no DCLSConfig.cmake: this DCLS was built with DCLS_INSTALL=OFF"
        )
    return directory
