"""The demo behind ``dcls demo``: a small network with learnable spacings beside a plain one.

``model.py`` has the networks and ``train.py`` the training: these two are there to be copied from.
Both need the packages of the extra ``demo``; this module and ``settings.py`` do not.
"""

from __future__ import annotations

import importlib.util

__all__ = ["missing_packages"]

_EXTRA = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "tqdm": "tqdm"}


def missing_packages() -> list[str]:
    """The packages of the extra ``demo`` that are not installed."""
    return [name for module, name in _EXTRA.items() if importlib.util.find_spec(module) is None]
