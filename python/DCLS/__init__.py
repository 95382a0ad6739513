"""Dilated Convolution with Learnable Spacings (DCLS) for PyTorch."""

try:
    # Before the native library: torch's wheels carry the OpenMP runtime that both must share.
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "DCLS needs PyTorch, which is not installed. Install it as https://pytorch.org says, "
        "for example with: pip install torch",
        name="torch",
    ) from None

from DCLS import cmake, construct, functional, im2col, reference
from DCLS._C import __version__
from DCLS.construct.modules import *  # noqa: F403
from DCLS.construct.modules import __all__ as _module_names
from DCLS.folding import fold
from DCLS.functional import construct_kernel

__all__ = [
    "__version__",
    "cmake",
    "construct",
    "construct_kernel",
    "fold",
    "functional",
    "im2col",
    "reference",
]
__all__ += _module_names
