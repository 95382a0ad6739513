"""Dilated Convolution with Learnable Spacings (DCLS) for PyTorch."""

try:
    # Before the native library: torch's wheels carry the OpenMP runtime that both must share.
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "DCLS needs PyTorch, which is not installed. Install it as https://pytorch.org says, "
        "for example with: pip install torch",
        name="torch",
    ) from error

from DCLS import functional, reference
from DCLS._C import __version__
from DCLS.functional import construct_kernel

__all__ = ["__version__", "construct_kernel", "functional", "reference"]
