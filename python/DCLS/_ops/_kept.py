"""The modules of the operators, kept for an import after ``sys.modules`` lost the package.

Torch takes the definitions of a namespace once in a process. Such an import, as in tests and
notebooks, finds here the modules that made them. It must come before theirs.
"""

from __future__ import annotations

import sys

import torch

_PREFIX = f"{__package__}."
_ATTRIBUTE = "_dcls_modules"


def keep() -> None:
    """Keeps the modules of this package that have been imported."""
    modules = {
        name: module
        for name, module in sys.modules.items()
        if name.startswith(_PREFIX) and name != __name__
    }
    setattr(torch.ops.dcls, _ATTRIBUTE, (__file__, modules))


def _restore() -> None:
    first, modules = vars(torch.ops.dcls).get(_ATTRIBUTE, (__file__, {}))
    if first != __file__:
        raise ImportError(
            f"DCLS has been imported in this process from another place, {first}; start a new one"
        )
    sys.modules.update(modules)
    package = sys.modules[_PREFIX[:-1]]
    for name, module in modules.items():
        setattr(package, name.removeprefix(_PREFIX), module)


_restore()
