"""Import paths of modules that have moved: pickled layers and older code name them."""

from __future__ import annotations

import sys
from importlib import import_module

#: The path up to version 1.0, and the present one, both within ``DCLS``.
_MOVED = {
    "_method": "method",
    "construct.modules._axes": "nn.axes",
    "construct.modules.base": "nn.subclassing",
    "construct.modules.construct_kernel": "nn.builders",
    "construct.modules.conv": "nn.conv",
    "construct.modules.conv_nm": "nn.conv_nm",
    "construct.modules.transposed": "nn.transposed",
    "folding": "nn.fold",
}


def keep_old_paths() -> None:
    """Makes the old paths importable; each is the present module under another name."""
    for old, new in _MOVED.items():
        module = import_module(f"DCLS.{new}")
        parent, _, name = f"DCLS.{old}".rpartition(".")
        sys.modules[f"DCLS.{old}"] = module
        setattr(import_module(parent), name, module)
