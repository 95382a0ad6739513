"""The demo behind ``dcls demo``: networks with learned positions beside others of their size.

``tasks`` has the data and the networks, and ``train.py`` the training: these are there to be copied
from. The data needs the packages of the extra ``demo``; this module and ``settings.py`` do not.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

__all__ = ["missing_packages"]

_EXTRA = {"matplotlib": "matplotlib", "tqdm": "tqdm"}


def missing_packages(of_task: Mapping[str, str]) -> list[str]:
    """The packages of the extra ``demo`` that are not installed.

    Args:
        of_task: modules that the task needs, with the packages that bring them.
    """
    needed = {**of_task, **_EXTRA}
    return [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
