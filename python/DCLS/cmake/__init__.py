"""Where CMake and pkg-config find the C++ library that comes with this package."""

from __future__ import annotations

from pathlib import Path

from DCLS import _backend

__all__ = ["config_dir", "pkg_config_dir", "prefix"]


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
    return _directory_of("cmake/DCLS/DCLSConfig.cmake")


def pkg_config_dir() -> Path:
    """Returns the directory of ``dcls.pc``, to add to ``PKG_CONFIG_PATH``.

    Raises:
        FileNotFoundError: this installation has none, as for :func:`config_dir`.
    """
    return _directory_of("pkgconfig/dcls.pc")


def _directory_of(name: str) -> Path:
    file = prefix() / "share" / name
    if not file.is_file():
        raise FileNotFoundError(
            f"{file.parent} has no {file.name}: this DCLS was built with DCLS_INSTALL=OFF"
        )
    return file.parent
