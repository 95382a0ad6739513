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

from DCLS import cmake, construct, functional, im2col, method, nn, reference
from DCLS._C import __version__
from DCLS._moved import keep_old_paths as _keep_old_paths
from DCLS._spec import VERSIONS
from DCLS.convert import convert_, is_depthwise
from DCLS.functional import construct_kernel
from DCLS.nn import *  # noqa: F403
from DCLS.nn import __all__ as _layer_names
from DCLS.nn.fold import fold
from DCLS.nn.frozen import freeze

__all__ = [
    "VERSIONS",
    "__version__",
    "cmake",
    "construct",
    "construct_kernel",
    "convert_",
    "fold",
    "freeze",
    "functional",
    "im2col",
    "is_depthwise",
    "method",
    "nn",
    "reference",
]
__all__ += _layer_names

_keep_old_paths()
