"""The demo behind ``dcls demo``: a small network with learnable spacings beside a plain one.

Needs the packages of the extra ``demo``; this module itself does not, so that it can tell.
"""

from __future__ import annotations

import importlib

__all__ = ["MissingExtraError", "check_extras"]

_EXTRA = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "tqdm": "tqdm"}


class MissingExtraError(ImportError):
    """Packages of the extra ``demo`` are not installed."""


def _can_import(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def check_extras() -> None:
    """Imports the packages that the demo needs beyond those of DCLS.

    Raises:
        MissingExtraError: some are not there; the message names them and how to install them.
    """
    missing = [package for module, package in _EXTRA.items() if not _can_import(module)]
    if missing:
        raise MissingExtraError(
            f'the demo needs {", ".join(missing)}; install with: pip install "DCLS[demo]"'
        )
